/* memory: internal declarations of the core; no directives, cffi reads this too. */

/* One DMA map. Maps of one space do not overlap. `host` NULL: reachable by message only. */
typedef struct umdev_map_entry {
    uint32_t space;      /* PASID; 0 without one */
    uint32_t protection; /* enum umdev_protection */
    uint64_t iova;
    uint64_t size;
    uint8_t *host;
    uint64_t id;       /* the publisher's own number */
    int32_t guard;     /* slot of the SIGBUS guard, -1: none */
    uint32_t reserved; /* 0 */
} umdev_map_entry;

enum umdev_memory_limit {
    UMDEV_MEMORY_MAPS_MAX = 65535,     /* maps in one address space */
    UMDEV_MEMORY_SECTION_MAX = 1048576, /* bytes copied in one reader section */
    UMDEV_MESSAGE_TRANSFER_MAX = 65536  /* bytes asked of an umdev_message_transfer at once */
};
enum umdev_memory_error {
    UMDEV_MEMORY_POISONED = 133 /* EHWPOISON, which Python's errno module doesn't name */
};

umdev_memory *umdev_memory_new(void); /* NULL without memory; bus mastering is on until somebody clears it */
/* No reader, transfer or publisher may be left. */
void umdev_memory_free(umdev_memory *memory);

/* Each of these swaps in a new table and returns when no reader of the old one is left. Any thread, but not in a
 * reader section (-EDEADLK). Entries are sorted by (space, iova). 0, or -EINVAL (unsorted, overlapping, empty or
 * wrapping entries), -ENOSPC (UMDEV_MEMORY_MAPS_MAX), -ENOMEM; then the old table stays. */
int umdev_memory_publish(umdev_memory *memory, const umdev_map_entry *entries, uint32_t count);
int umdev_memory_insert(umdev_memory *memory, const umdev_map_entry *entry);
/* Drops every map that lies wholly in first..last (both inside). The number dropped, or a negative errno. */
int umdev_memory_remove(umdev_memory *memory, uint32_t space, uint64_t first, uint64_t last);
uint32_t umdev_memory_count(umdev_memory *memory);

/* When it returns, no transfer begun with bus mastering on is left in mapped memory. */
int umdev_memory_set_bus_master(umdev_memory *memory, int enabled);
int umdev_memory_bus_master(umdev_memory *memory);
/* Waits until no transfer that began earlier is inside a section; -EDEADLK in a reader section. */
int umdev_memory_drain(umdev_memory *memory);
/* Waits for calls of the old function in progress: whoever clears it ends those first. Without `cancel` (NULL) a reset
 * waits for transfers. */
void umdev_memory_set_messages(umdev_memory *memory, umdev_message_transfer transfer, umdev_message_cancel cancel,
                               void *context);
/* Passes it on to `cancel`, if there is one. */
void umdev_memory_cancel_messages(umdev_memory *memory, int cancelled);
/* While they are cancelled: until the carrier has none, whoever asked for them. Without `cancel` it waits for
 * nothing. */
void umdev_memory_drain_messages(umdev_memory *memory);
/* For buses that map on demand: called where a transfer meets an address that no map covers, outside of any section,
 * with the device's lock held or not. 1: a map covers it now; it may be gone again when the transfer looks, which asks
 * anew then, a few times. */
typedef int (*umdev_memory_filler)(void *context, uint32_t space, uint64_t iova, uint64_t length, int write);
/* Waits as set_messages does. */
void umdev_memory_set_filler(umdev_memory *memory, umdev_memory_filler filler, void *context);
/* Whose handlers must not wait for messages (see umdev_device_context), and whose lock is free while somebody waits for
 * one (see umdev_device_suspend); NULL: none. Set before the first transfer. */
void umdev_memory_set_device(umdev_memory *memory, umdev_device *device);

const umdev_table *umdev_memory_reader_enter(umdev_memory *memory, uint32_t *ticket);
void umdev_memory_reader_exit(umdev_memory *memory, uint32_t ticket);
int umdev_memory_lookup(const umdev_table *table, uint32_t space, uint64_t iova, umdev_span *ret);
/* 0 or -EFAULT not mapped, -EACCES direction, -EPERM no bus mastering, -EDEADLK by message from a handler, -ECANCELED
 * by message while a reset ends work, -UMDEV_MEMORY_POISONED the file shrank, -ENOTCONN nobody carries messages, or
 * what the carrier answered. An aligned transfer of 1, 2, 4 or 8 bytes is one access. After an error nothing at or
 * after *failed was moved. */
int umdev_memory_transfer(umdev_memory *memory, uint32_t space, uint64_t iova, void *bytes, uint64_t length, int write,
                          uint64_t *failed);
/* The common case of a transfer, which waits for nobody: within one map, in memory of this process. 1: done; 0: not,
 * and umdev_memory_transfer says why, or does it. */
int umdev_memory_copy(umdev_memory *memory, uint32_t space, uint64_t iova, void *bytes, uint64_t length, int write);
int umdev_memory_read(umdev_memory *memory, uint32_t space, uint64_t iova, void *bytes, uint64_t length);
int umdev_memory_write(umdev_memory *memory, uint32_t space, uint64_t iova, const void *bytes, uint64_t length);

/* A client's file, mapped for the device. `base`, `extent`: what is reserved; `host`: the byte asked for. */
typedef struct umdev_backing {
    uint8_t *base;
    uint64_t extent;
    uint8_t *host;
    uint32_t protection;
    int32_t guard;
    uint32_t counted; /* 1: among those that umdev_memory_backings_max limits */
} umdev_backing;
/* How many files this process maps at once, for all address spaces together: half of vm.max_map_count as it was at the
 * first call, so that no client takes what threads, libraries and malloc need. */
uint32_t umdev_memory_backings_max(void);
/* The descriptor is only borrowed. 0, or -EMEDIUMTYPE (neither tmpfs nor hugetlbfs), -EFBIG (beyond the end of the
 * file), -EACCES (not opened for this), -EDQUOT (umdev_memory_backings_max are open), -EINVAL, -ENOMEM. */
int umdev_memory_backing_open(int descriptor, uint64_t offset, uint64_t length, uint32_t protection,
                              umdev_backing *ret);
/* Take over memory that the caller has mapped, whole pages. 0, -EINVAL (crooked), -ENOMEM; then it stays the
 * caller's. */
int umdev_memory_backing_adopt(void *base, uint64_t length, uint32_t protection, umdev_backing *ret);
/* Anonymous zeros take the place of the file; pointers stay valid. 0 or a negative errno. */
int umdev_memory_backing_detach(const umdev_backing *backing);
void umdev_memory_backing_close(umdev_backing *backing);

/* Keep pages in memory: populated (for writing: with pages of their own) and mlocked. Addresses and lengths are
 * multiples of a page. 0, -ENOMEM or -EPERM or -EAGAIN (RLIMIT_MEMLOCK), -EFAULT (the file shrank), or another. */
int umdev_memory_pin(uint64_t address, uint64_t length, int writable);
int umdev_memory_unpin(uint64_t address, uint64_t length);

/* SIGBUS guard: an access to a range whose file shrank turns the whole range into zeros and marks it. Slot or
 * negative errno. The range must outlive its slot. It handles SIGBUS for the process and passes on what is not its own;
 * a handler that the program installs above it has the signal until the next guard is added. */
int umdev_guard_add(uint8_t *address, uint64_t length, uint32_t protection);
void umdev_guard_remove(int slot);
int umdev_guard_poisoned(int slot); /* 1: the file shrank; -1 is never poisoned */

/* What the loopback guest's processor does to its own mapping. Aligned 1, 2, 4 and 8 bytes are one access. They may
 * fault for as long as a protector wishes, so Python calls them without the GIL. */
void umdev_guest_store(uint8_t *address, const void *bytes, uint64_t length);
void umdev_guest_load(const uint8_t *address, void *bytes, uint64_t length);
void umdev_guest_fill(uint8_t *address, int byte, uint64_t length);
uint32_t umdev_guest_add32(uint8_t *address, uint32_t value); /* the value before */
uint64_t umdev_guest_add64(uint8_t *address, uint64_t value);
uint64_t umdev_guest_exchange64(uint8_t *address, uint64_t value);
uint64_t umdev_guest_compare_exchange64(uint8_t *address, uint64_t expected, uint64_t value);
