/* protect: declarations for cffi; no directives. A device of another process that hears of stores. */

typedef struct umdev_kvm_remote {
    int events;     /* SOCK_SEQPACKET: the address of a page goes out, and comes back when the device has been told */
    int control;    /* shut down when the device does not answer */
    int cancel;     /* eventfd: the device goes away, nothing is waited for any more */
    int patience;   /* milliseconds that a device may take */
    int silent;     /* the device is gone or has not answered: it is told nothing more */
    uint64_t told;  /* notifications so far */
} umdev_kvm_remote;

/* An umdev_page_notify: tells the device and returns when it has answered, is gone, or has taken too long. */
void umdev_kvm_remote_notify(void *remote, uint64_t address);
