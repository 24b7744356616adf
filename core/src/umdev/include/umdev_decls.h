/* The C ABI of umdev, without a single directive: read by umdev.h and by cffi alike.
 * Every struct starts with a header and only grows; a reader checks `size` before it touches a member
 * that was added after ABI 1.0. Values are in host byte order.
 */
typedef struct umdev_header {
    uint32_t size;  /* bytes of the struct as its writer knew it */
    uint16_t major; /* differs: do not touch */
    uint16_t minor; /* grows with each added member */
} umdev_header;

typedef struct umdev_device umdev_device; /* one virtual PCI function */
typedef struct umdev_memory umdev_memory; /* the address space its DMA sees */
typedef struct umdev_irq umdev_irq;       /* its interrupt vectors */
typedef struct umdev_table umdev_table;   /* an immutable snapshot of an address space */

/* What a handler, or an access as a whole, comes to. */
enum umdev_result {
    UMDEV_OK = 0,
    UMDEV_PENDING = 1,   /* completed later with the token that the handler stored in *value */
    UMDEV_UNHANDLED = 2, /* nothing declared here: counted in the burn-down list; reads as 0 */
    UMDEV_ABORT = 3,     /* all ones, as an aborted PCI read */
    UMDEV_FAULT = 4,     /* the model raised: all ones, counted */
    UMDEV_GONE = 5       /* the device is detached or closed: all ones */
};

enum umdev_access_flag {
    UMDEV_WRITE = 1,  /* else a read */
    UMDEV_POSTED = 2  /* a write whose initiator waits for no answer */
};

/* VFIO's region and interrupt indexes (Linux uapi, vfio.h). */
enum umdev_region_index {
    UMDEV_REGION_BAR0 = 0,
    UMDEV_REGION_ROM = 6,
    UMDEV_REGION_CONFIG = 7,
    UMDEV_REGION_COUNT = 9
};
enum umdev_irq_index {
    UMDEV_IRQ_INTX = 0,
    UMDEV_IRQ_MSI = 1,
    UMDEV_IRQ_MSIX = 2,
    UMDEV_IRQ_ERR = 3,
    UMDEV_IRQ_REQ = 4,
    UMDEV_IRQ_COUNT = 5
};
enum umdev_protection {
    UMDEV_READABLE = 1,
    UMDEV_WRITABLE = 2
};

/* One register access as a handler sees it. */
typedef struct umdev_access {
    umdev_header header;
    uint32_t region;    /* VFIO region index */
    uint32_t flags;     /* enum umdev_access_flag */
    uint64_t offset;    /* in the region, of the register's first byte */
    uint32_t width;     /* of the register: 1, 2, 4 or 8 bytes */
    uint32_t byte_mask; /* bit n: byte n of the register is accessed */
    uint32_t index;     /* element of a register array, else 0 */
    uint32_t initiator; /* which vCPU or client, where the bus knows it */
    uint32_t space;     /* PASID; 0 without one */
    uint32_t reserved;
} umdev_access;

/* A C handler. `device` is the umdev_device; *value is what was written, or receives what is read.
 * The device lock is held unless the handler was declared lock-free. Returns enum umdev_result. */
typedef int (*umdev_handler)(void *device, const umdev_access *access, uint64_t *value);

/* Fault injection and replay: sees every access before it is dispatched. Returns -1 to let it pass,
 * else an umdev_result that ends it. Called without the device lock. */
typedef int (*umdev_intercept)(void *context, uint32_t region, uint64_t offset, void *bytes, uint32_t length,
                               uint32_t flags);

/* Bytes behind an IO-virtual address, valid until umdev_api.reader_exit. */
typedef struct umdev_span {
    uint8_t *host;      /* NULL: reachable by message only */
    uint64_t length;    /* contiguous bytes from the address asked for */
    uint32_t protection;
    uint32_t reserved;
} umdev_span;

/* How memory is reached where no descriptor came with the map; set by a bus. Return 0 or a negative errno. */
typedef int (*umdev_message_transfer)(void *context, uint64_t iova, void *bytes, uint64_t length, int write);
/* 1: transfers under way end with -ECANCELED at once, and so do new ones, until it is called with 0. Any thread; it
 * does not wait. */
typedef void (*umdev_message_cancel)(void *context, int cancelled);

/* What a C plugin may call. One table per process, supplied by the core, valid for the life of the process. */
typedef struct umdev_api {
    umdev_header header;
    /* An access by the driver: any length for windows and configuration space, 1, 2, 4, 8 (or a split of them) for
     * registers. Little-endian bytes. Takes the device lock as needed; any thread. Returns enum umdev_result, or
     * -EDEADLK when it needs the lock and this thread holds it; a read that does not end in UMDEV_OK has filled `bytes`
     * (all ones, or zeros for UMDEV_UNHANDLED). */
    int (*access)(umdev_device *device, uint32_t region, uint64_t offset, void *bytes, uint32_t length, uint32_t flags,
                  uint32_t initiator, uint32_t space);
    /* The device lock, not recursive: 0, or -EDEADLK when this thread holds it. Never wait for it holding the GIL. */
    int (*lock)(umdev_device *device);
    int (*trylock)(umdev_device *device); /* 1: taken */
    void (*unlock)(umdev_device *device);
    /* End an access that a handler left UMDEV_PENDING. 0, or -ENOENT for an unknown token. */
    int (*complete)(umdev_device *device, uint64_t token, uint64_t value);
    void *(*user_data)(umdev_device *device); /* what the model stored for its C handlers */
    umdev_memory *(*memory)(umdev_device *device);
    umdev_irq *(*irq)(umdev_device *device);
    /* DMA: 0 or a negative errno (EFAULT not mapped, EACCES direction, EPERM no bus mastering, EDEADLK by message
     * from a handler, ECANCELED by message while a reset ends work). By message, the device lock is free meanwhile. */
    int (*dma_read)(umdev_memory *memory, uint32_t space, uint64_t iova, void *bytes, uint64_t length);
    int (*dma_write)(umdev_memory *memory, uint32_t space, uint64_t iova, const void *bytes, uint64_t length);
    /* A section in which pointers from `lookup` stay valid. At most 1 MiB of work; never block inside. */
    const umdev_table *(*reader_enter)(umdev_memory *memory, uint32_t *ticket);
    void (*reader_exit)(umdev_memory *memory, uint32_t ticket);
    int (*lookup)(const umdev_table *table, uint32_t space, uint64_t iova, umdev_span *ret); /* 0 or -EFAULT */
    /* Interrupts: edge on the active message kind (MSI-X, MSI), and the INTx level as OR of 64 sources. */
    int (*signal)(umdev_irq *irq, uint32_t vector);
    void (*set_level)(umdev_irq *irq, uint32_t source, int level);
} umdev_api;
