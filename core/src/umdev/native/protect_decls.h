/* protect: internal declarations of the core; no directives, cffi reads this too.
 * Write-protection of a guest mapping by userfaultfd. Addresses are those of the process that owns the mapping.
 */

/* A new userfaultfd of this process: through `device` (an open /dev/userfaultfd), or by the system call when it is -1.
 * `user_only`: faults of user code alone, which needs no privilege; refuse it for KVM guests. Descriptor or -errno. */
int umdev_userfault_open(int device, int user_only);
/* The handshake. Asynchronous: the kernel resolves faults by itself and remembers them (Linux 6.7). 0, -EOPNOTSUPP
 * when the kernel lacks a feature that this needs, or another negative errno. */
int umdev_userfault_enable(int userfault, int asynchronous);

/* Called before the store lands, with the client's device lock held, without the GIL; for each client one at a time,
 * in a thread of the protector. Stores to pages that the client has not armed don't wait for it, or a millisecond. */
typedef void (*umdev_page_notify)(void *context, uint64_t address);

enum umdev_protect_mode {
    UMDEV_PROTECT_TRAP = 1, /* notify once for each arming; then the page is writable */
    UMDEV_PROTECT_TRACK = 2 /* remember; umdev_protect_client_collect reports and arms again */
};
enum umdev_protect_limit {
    UMDEV_PROTECT_RANGES_MAX = 64,  /* guest mappings of one protector */
    UMDEV_PROTECT_MESSAGES_MAX = 64 /* faults taken in at once; the others wait in the kernel, their threads blocked */
};

typedef struct umdev_protector umdev_protector;           /* one per guest: owns its userfaultfd */
typedef struct umdev_protect_client umdev_protect_client; /* one per device (or part of it) that asks */

/* It serves the process that makes it, and no child that this one forks: there the guest is gone, whatever is asked.
 * Takes both descriptors, also when it fails: an enabled userfaultfd and, for an asynchronous one, the pagemap of the
 * process that owns it (else -1). Threads serve it from now on. NULL with errno. */
umdev_protector *umdev_protector_new(int userfault, int pagemap, int asynchronous);
/* Every blocked writer goes on. From a notification: when that has returned. Clients are only good for closing and
 * freeing then. */
void umdev_protector_free(umdev_protector *protector);
/* From asynchronous to synchronous, for the first client that wants TRAP: tracked pages count as changed, since stores
 * in between are seen by neither. Takes the descriptor, also when it fails. 0 or a negative errno. */
int umdev_protector_upgrade(umdev_protector *protector, int userfault);
int umdev_protector_asynchronous(umdev_protector *protector);
/* A whole mapping (VMA), page-aligned. -EBUSY: another userfaultfd has it. -ENOSPC: UMDEV_PROTECT_RANGES_MAX. */
int umdev_protector_register(umdev_protector *protector, uint64_t address, uint64_t length);
/* Forgets every page of the range for every client. -ENOENT. */
int umdev_protector_unregister(umdev_protector *protector, uint64_t address);
uint64_t umdev_protector_faults(umdev_protector *protector); /* stores that were stopped so far */

/* `device` NULL: notifications take no lock. NULL with errno. */
umdev_protect_client *umdev_protect_client_new(umdev_protector *protector, int mode, umdev_device *device,
                                               umdev_page_notify notify, void *context);
/* No notification begins later, and none is running on return unless the caller is inside it. Whoever else is in a
 * call, or comes later, gets -ESRCH or nothing. May be called twice. */
void umdev_protect_client_close(umdev_protect_client *client);
/* Closes it if need be; nobody may use it any more. */
void umdev_protect_client_free(umdev_protect_client *client);
/* Page addresses, in any order; ascending ones are handled in runs. 0, -EFAULT (*failed is in no range), -EBUSY
 * (*failed is the page of the notification that is running in this very thread), -ESRCH (the guest is gone), or what
 * the kernel says; after an error none is new. */
int umdev_protect_client_arm(umdev_protect_client *client, const uint64_t *pages, uint32_t count, uint64_t *failed);
/* Pages that were never armed, or are in no range, are passed over. */
int umdev_protect_client_disarm(umdev_protect_client *client, const uint64_t *pages, uint32_t count);
/* TRACK: pages stored to since they were last reported, ascending, armed again. The number, or a negative errno. No
 * more than `capacity`; others stay for the next call. -EPERM: the client traps. */
int64_t umdev_protect_client_collect(umdev_protect_client *client, uint64_t *pages, uint64_t capacity);
uint64_t umdev_protect_client_pages(umdev_protect_client *client); /* armed now (TRAP), watched (TRACK) */
