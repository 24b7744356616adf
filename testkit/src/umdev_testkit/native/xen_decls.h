/* What Python calls of the helper library of the Xen test bed; read by the C files and by cffi, so without directives.
 * Functions return 0 or a negative errno. */

/* Builds and controls domains. Not for several threads at once. */
typedef struct umdev_xen umdev_xen;

umdev_xen *umdev_xen_open(int *ret);
void umdev_xen_close(umdev_xen *xen);

typedef struct {
    uint32_t exists; /* 0: no domain has this number */
    uint32_t dying, shutdown, reason; /* destroyed, but somebody has its pages mapped; reason of the shutdown */
    uint64_t pages; /* that it has */
} umdev_xen_state;

/* A paused domain with no memory. `most` bounds its memory, in KiB. `pvh`: with local APICs as the only devices. */
int umdev_xen_domain_create(umdev_xen *xen, uint32_t vcpus, int pvh, uint64_t most, uint32_t *ret_domain);
/* Memory for `count` pages from guest frame `first` on, filled with zeros. */
int umdev_xen_domain_populate(umdev_xen *xen, uint32_t domain, uint64_t first, uint32_t count);
/* Every processor begins at `entry` in flat 32-bit mode: EAX and EDI hold its number, ESI `second`; processor n's stack
 * begins n pages below `stack`. The descriptor table of four entries is at `gdt`. */
int umdev_xen_domain_enter(umdev_xen *xen, uint32_t domain, uint32_t vcpus, uint32_t entry, uint32_t second,
                           uint32_t stack, uint32_t gdt);
int umdev_xen_domain_unpause(umdev_xen *xen, uint32_t domain);
int umdev_xen_domain_pause(umdev_xen *xen, uint32_t domain);
int umdev_xen_domain_shutdown(umdev_xen *xen, uint32_t domain, uint32_t reason);
int umdev_xen_domain_destroy(umdev_xen *xen, uint32_t domain);
int umdev_xen_domain_state(umdev_xen *xen, uint32_t domain, umdev_xen_state *ret);
/* Numbers of the domains there are, those that are dying included; `ret_count` of at most `room`. */
int umdev_xen_domain_list(umdev_xen *xen, uint32_t room, uint32_t *ret_domains, uint32_t *ret_count);
/* Copies between `buffer` and guest-physical memory. */
int umdev_xen_domain_read(umdev_xen *xen, uint32_t domain, uint64_t address, void *buffer, uint64_t length);
int umdev_xen_domain_write(umdev_xen *xen, uint32_t domain, uint64_t address, const void *buffer, uint64_t length);

/* The smallest device model there can be: an ioreq server with one port, whose write ends a run, and, where `size` is
 * not 0, with a memory-mapped range whose reads answer with the number of reads before. Call it from one thread. */
typedef struct umdev_xen_model umdev_xen_model;

umdev_xen_model *umdev_xen_model_new(uint32_t domain, uint32_t vcpus, uint64_t port, uint64_t mmio, uint64_t size,
                                     int *ret);
void umdev_xen_model_free(umdev_xen_model *model);
/* Serves until a processor writes to the port; the processor then stays where it is until the next call.
 * -ETIMEDOUT after `timeout` ms without a request (negative: none), -EINTR when a signal came. */
int umdev_xen_model_run(umdev_xen_model *model, int timeout, uint32_t *ret_value);
/* Lets the processor go that waits in its write to the port, if one does. */
void umdev_xen_model_release(umdev_xen_model *model);
