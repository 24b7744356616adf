/* device: internal declarations of the core; no directives, cffi reads this too.
 * One umdev_device per virtual PCI function: its lock, its regions, and the dispatch of the driver's accesses.
 */

/* ---- the device object ---- */

umdev_device *umdev_device_new(void); /* NULL: out of memory */
/* No thread may be inside or enter a call on `device`. Register state, layouts and window memory stay their owner's. */
void umdev_device_free(umdev_device *device);
/* What umdev_api hands to C handlers. */
void umdev_device_set_parts(umdev_device *device, umdev_memory *memory, umdev_irq *irq, void *user_data);
void umdev_device_set_user_data(umdev_device *device, void *user_data);
uint32_t umdev_device_id(const umdev_device *device); /* unique in the process; names the device in traces */
umdev_memory *umdev_device_memory(umdev_device *device);
umdev_irq *umdev_device_irq(umdev_device *device);
void *umdev_device_user_data(umdev_device *device);

/* The lock: not recursive. -EDEADLK when the calling thread holds it already. */
int umdev_device_lock(umdev_device *device);
int umdev_device_trylock(umdev_device *device); /* 1: taken; 0: held by someone, the caller included */
void umdev_device_unlock(umdev_device *device); /* only by the thread that holds it */
int umdev_device_held(umdev_device *device);    /* 1: the calling thread holds it */

/* DMA by message lets the lock go while it waits: the client may itself wait for an access before it answers.
 * 1: the lock is free until umdev_device_resume; 0: the calling thread does not hold it; -ECANCELED: somebody waits in
 * umdev_device_settle for such work to end. */
int umdev_device_suspend(umdev_device *device);
void umdev_device_resume(umdev_device *device);
/* With the lock held, which is free meanwhile: until nothing is suspended any more. `cancel`: what is suspended gets
 * -ECANCELED now, and for all further DMA by message until it has let the lock go for good; what threads without the
 * lock have under way by message gets it, too. */
void umdev_device_settle(umdev_device *device, int cancel);

/* What the calling thread is doing inside a handler of `device`. */
enum umdev_context {
    UMDEV_CONTEXT_NONE = 0,   /* no access: deferred work, timer, reset */
    UMDEV_CONTEXT_POSTED = 1, /* a write whose initiator waits for no answer */
    UMDEV_CONTEXT_WAITING = 2 /* a read, a configuration or I/O access: the initiator waits */
};
int umdev_device_context(const umdev_device *device);

/* Gates; any thread, at any time. An access that has begun is not interrupted. */
void umdev_device_set_gone(umdev_device *device, int gone); /* every access ends in UMDEV_GONE, pending ones too */
int umdev_device_set_region_enabled(umdev_device *device, uint32_t region, int enabled);
void umdev_device_set_intercept(umdev_device *device, umdev_intercept intercept, void *context); /* NULL: none.
                                              An access that has begun may still call the one before. */

/* ---- regions: described before the first access ---- */

/* A handler of bytes: `bytes` is what is written, or receives what is read. Returns enum umdev_result. */
typedef int (*umdev_bytes_handler)(void *context, uint64_t offset, void *bytes, uint32_t length, uint32_t flags);

enum umdev_area_flag {
    UMDEV_AREA_LOCKLESS = 1, /* the handler runs without the device lock */
    UMDEV_AREA_READONLY = 2  /* writes to the window are dropped */
};
/* Each returns 0, -EINVAL (bad index, range or twice) or -EEXIST (overlaps a register, a window or an overlay). */
int umdev_device_add_region(umdev_device *device, uint32_t region, uint64_t size);
/* `host` must stay valid as long as the device; offset and length are in bytes, of any alignment. */
int umdev_device_add_window(umdev_device *device, uint32_t region, uint64_t offset, uint64_t length, uint8_t *host,
                            uint32_t flags);
/* The handler sees offsets relative to the overlay. */
int umdev_device_add_overlay(umdev_device *device, uint32_t region, uint64_t offset, uint64_t length,
                             umdev_bytes_handler handler, void *context, uint32_t flags);

/* ---- registers ---- */

enum umdev_register_flag {
    UMDEV_REGISTER_MASKED = 1,      /* the upper half of a write enables bits of the lower half */
    UMDEV_REGISTER_COMMIT_LOW = 2,  /* 64 bits: the upper half waits for a write to the lower one */
    UMDEV_REGISTER_COMMIT_HIGH = 4, /* 64 bits: the lower half waits for a write to the upper one */
    UMDEV_REGISTER_LOCKLESS = 8,    /* its native handler runs without the device lock */
    UMDEV_REGISTER_DOORBELL = 16    /* any value counts as 0 in all bytes; neither masked nor with a commit rule */
};
/* What runs after a write is stored, or before a read is answered. */
enum umdev_register_call {
    UMDEV_CALL_NONE = 0,
    UMDEV_CALL_NATIVE = 1,
    UMDEV_CALL_VALUE = 2,    /* callbacks.read or .write */
    UMDEV_CALL_OLD = 3,      /* callbacks.write_old */
    UMDEV_CALL_ELEMENT = 4   /* callbacks.read_element or .write_element */
};
typedef struct umdev_register {
    uint64_t offset; /* in the region, of the first element; a multiple of the width */
    uint64_t stride; /* bytes between elements of an array; ignored when count is 1 */
    uint32_t count;  /* elements; 1 for a register */
    uint32_t width;  /* 1, 2, 4 or 8 bytes */
    uint32_t cell;   /* byte offset of the first element's value in the state; a multiple of the width */
    uint32_t latch;  /* with a commit rule: byte offset of the first element's 8-byte latch in the state */
    uint32_t flags;
    uint32_t on_read;
    uint32_t on_write;
    uint32_t reserved;
    /* Every access kind, per bit, is a combination of five masks. */
    uint64_t rw;   /* a write stores the bit */
    uint64_t w1c;  /* writing 1 clears it */
    uint64_t w1s;  /* writing 1 sets it */
    uint64_t rc;   /* a read clears it */
    uint64_t hide; /* it reads as 0 */
    umdev_handler native;
} umdev_register;

/* A register map, shared by every device of a class and never changed: two-level table from offset to register. */
typedef struct umdev_layout umdev_layout;
/* Copies `registers`. `sizes` is the sum of the legal access sizes (1, 2, 4, 8). NULL and *error: -EINVAL, -EEXIST
 * (two registers overlap), -E2BIG (more than 65,535 registers), -ENOMEM. */
umdev_layout *umdev_layout_new(const umdev_register *registers, uint32_t count, uint32_t sizes, int *error);
void umdev_layout_free(umdev_layout *layout);
/* Which register holds the byte at `offset`: its index and *element, or -1. */
int64_t umdev_layout_find(const umdev_layout *layout, uint64_t offset, uint32_t *element);
uint64_t umdev_layout_bytes(const umdev_layout *layout); /* memory it takes */

/* Handlers outside C. `slot` is the register's index in the layout. Called with the device lock held. One that fails
 * calls umdev_device_fault() before it returns. */
typedef struct umdev_callbacks {
    uint64_t (*read)(void *context, uint32_t slot);
    uint64_t (*read_element)(void *context, uint32_t slot, uint32_t element);
    void (*write)(void *context, uint32_t slot, uint64_t value);
    void (*write_old)(void *context, uint32_t slot, uint64_t value, uint64_t old);
    void (*write_element)(void *context, uint32_t slot, uint32_t element, uint64_t value);
} umdev_callbacks;
/* Marks the calling thread's current access as UMDEV_FAULT. */
void umdev_device_fault(void);
/* Puts registers into a region. `state` holds the cells (aligned to 8 bytes); it, the layout and the callbacks' context
 * must stay valid as long as the device. Once per region, before its overlays. */
int umdev_device_set_layout(umdev_device *device, uint32_t region, const umdev_layout *layout, uint8_t *state,
                            const umdev_callbacks *callbacks, void *context);
/* Changes bits of a cell in one atomic step: any thread, with or without the lock. Returns the value before. */
uint64_t umdev_cell_update(uintptr_t cell, uint32_t width, uint64_t clear, uint64_t set);

/* ---- accesses ---- */

/* umdev_api.access. Waits for a handler that answers UMDEV_PENDING. -EDEADLK when the access needs the device lock and
 * the calling thread holds it: `bytes` of a read are all ones then. */
int umdev_device_access(umdev_device *device, uint32_t region, uint64_t offset, void *bytes, uint32_t length,
                        uint32_t flags, uint32_t initiator, uint32_t space);
/* How an access that was left pending ended. May run with the device lock held: it must not enter the device. */
typedef void (*umdev_completion)(void *context, int result);
/* The same without waiting: UMDEV_PENDING promises one later call of `completion`; `bytes` must stay valid until
 * then. */
int umdev_device_start(umdev_device *device, uint32_t region, uint64_t offset, void *bytes, uint32_t length,
                       uint32_t flags, uint32_t initiator, uint32_t space, umdev_completion completion, void *context);
int umdev_device_complete(umdev_device *device, uint64_t token, uint64_t value);
/* Ends every pending access with UMDEV_ABORT (reset). */
void umdev_device_abort_pending(umdev_device *device);

typedef struct umdev_counters {
    uint64_t reads;     /* accesses begun, whatever came of them */
    uint64_t writes;
    uint64_t unhandled; /* touched bytes where nothing is declared */
    uint64_t aborted;   /* out of range or through a closed gate */
    uint64_t faulted;   /* a handler failed */
    uint64_t illegal;   /* a size that the region does not take */
} umdev_counters;
void umdev_device_counters(umdev_device *device, umdev_counters *ret);

/* The burn-down list: where the driver reached for something that the model does not declare. */
typedef struct umdev_unmodelled {
    uint64_t offset;
    uint64_t value; /* last written */
    uint64_t reads;
    uint64_t writes;
    uint32_t region;
    uint32_t length; /* of the last access */
} umdev_unmodelled;
/* Copies at most `capacity` entries, returns how many there are; *lost counts accesses past the 4,096 kept offsets. */
uint32_t umdev_device_unmodelled(umdev_device *device, umdev_unmodelled *entries, uint32_t capacity, uint64_t *lost);
void umdev_device_forget_unmodelled(umdev_device *device);

/* The function table that C plugins get. */
const umdev_api *umdev_get_api(void);
