/* intel_gvt: what its C files offer; no directives, cffi reads this too. */

/* ---- ggtt.c: the driver's view of the global page table ---- */

/* Table entries [first, end), by index: one per 4 KiB page of graphics memory. */
typedef struct gvt_slice {
    uint32_t first;
    uint32_t end;
} gvt_slice;

typedef struct gvt_ggtt {
    uint64_t *entries; /* one for each page of graphics memory */
    uint32_t count;
    uint32_t reserved;
    gvt_slice slices[2]; /* what belongs to this vGPU: aperture, hidden memory */
    uint64_t updates;    /* entries written, wholly or in part */
    uint64_t refused;    /* writes outside the slices or of a size that the table does not take */
} gvt_ggtt;

/* A umdev_bytes_handler: an access to the table by the driver. 4 or 8 aligned bytes; outside the slices reads give 0
 * and writes are dropped and counted. The device lock is held. */
int gvt_ggtt_access(void *ggtt, uint64_t offset, void *bytes, uint32_t length, uint32_t flags);

/* ---- aperture.c: graphics memory through BAR 2 ---- */

/* A tiled range of the aperture; `end` 0: none. Bytes. */
typedef struct gvt_fence {
    uint64_t first;
    uint64_t end;
    uint32_t pitch;
    uint32_t y_tiled; /* else X */
} gvt_fence;

typedef struct gvt_aperture {
    const void *api; /* softgpu_api */
    void *space;     /* softgpu_space: the global table */
    gvt_fence fences[4];
    uint64_t refused; /* accesses to pages that are not there */
} gvt_aperture;

/* A umdev_bytes_handler: an access to BAR 2. Pages that are not there read as ones and take no write. The device lock
 * is held. */
int gvt_aperture_access(void *aperture, uint64_t offset, void *bytes, uint32_t length, uint32_t flags);
/* Where the byte lies that the processor sees at `address`, inside the fence. */
uint64_t gvt_untile(const gvt_fence *fence, uint64_t address);

/* ---- interrupts.c: the interrupt tree ---- */

enum gvt_block {
    GVT_GT_BLOCKS = 4, /* numbers 0 to 3 */
    GVT_PCU = 4,
    GVT_BLOCKS = 5
};

/* A block of events. The cells are those of its registers, so there is no second copy of anything. */
typedef struct gvt_events {
    uint32_t *imr;
    uint32_t *iir;
    uint32_t *ier;
    uint64_t offset; /* of IIR in BAR 0 */
    uint32_t queued; /* bits of IIR that will be set again when they are cleared */
    uint32_t reserved;
} gvt_events;

typedef struct gvt_tree {
    void *device;      /* umdev_device */
    uint32_t *master;  /* the cell of MASTER_IRQ; bit 31 is all that it holds */
    gvt_events blocks[5];
    uint64_t messages; /* sent since the device was made */
    uint32_t level;    /* the tree's output */
    uint32_t reserved;
} gvt_tree;

/* All with the device lock held. */
uint32_t gvt_tree_pending(const gvt_tree *tree); /* MASTER_IRQ's bits: which blocks have something */
void gvt_tree_reset(gvt_tree *tree); /* the registers are reset already */

/* ---- submission.c: an engine's submission port ---- */

enum gvt_submission_limit {
    GVT_ENGINES = 4,
    GVT_PORT_WRITES = 4,
    GVT_STATUS_ENTRIES = 6
};

/* An event for the status buffer. */
typedef struct gvt_event {
    uint32_t status;
    uint32_t context; /* its identity */
    uint32_t skipped; /* events before it that the buffer would not hold any more */
} gvt_event;

/* What the driver has submitted. An element is a context's descriptor, 64 bits. */
typedef struct gvt_engine {
    const void *softgpu;   /* softgpu_api */
    void *bell;            /* softgpu_bell: rings when an idle engine gets something */
    uint64_t port_offset;  /* in BAR 0 */
    uint32_t block;        /* of its events in the tree, and the bit of event 0 there */
    uint32_t shift;
    const uint32_t *mask;  /* cells: its own IMR, GFX_MODE, EXECLIST_STATUS and its upper half */
    const uint32_t *mode;
    uint32_t *status;
    uint32_t *running;
    uint64_t elements[2];  /* the first one runs */
    uint64_t waiting[2];   /* for those to be through */
    uint32_t count;
    uint32_t waiting_count;
    uint32_t port[4];      /* a part of a submission */
    uint32_t port_count;
    uint32_t fresh;        /* 1: the scheduler does not know of the elements yet */
    uint32_t again;        /* 1: the first element was submitted again since its context was loaded or looked at */
    gvt_event events[6];   /* noted for the status buffer, a ring */
    uint32_t first;
    uint32_t noted;
    uint32_t skipped;
    uint64_t submissions;       /* since the device was made */
    uint64_t refused_strangers; /* of a driver that has not read PVINFO */
    uint64_t refused_disabled;  /* to an engine whose run list is not enabled */
} gvt_engine;

/* All with the device lock held. */
int gvt_engine_noted(gvt_engine *engine, gvt_event *ret); /* takes the oldest one; 0: none is left */
uint32_t gvt_engine_next(gvt_engine *engine);             /* the first element is through; its identity */
int gvt_engine_start_waiting(gvt_engine *engine);         /* 1: there was something, which runs now */
void gvt_engine_reset(gvt_engine *engine);

/* ---- hot.c ---- */

/* The state of C handlers: the device's user data. */
typedef struct gvt_vgpu {
    gvt_tree tree;
    gvt_engine engines[4];
    uint32_t handshake; /* 1: the driver has read PVINFO */
    uint32_t reserved;
} gvt_vgpu;

void gvt_use(const void *umdev_api); /* before any handler runs */

/* An event of an engine, unless a mask keeps it out. The device lock is held. */
void gvt_engine_raise(gvt_vgpu *vgpu, uint32_t engine, uint32_t event);

/* Each a umdev_handler: MASTER_IRQ, IIR, IER; the submission port. */
int gvt_master(void *device, const umdev_access *access, uint64_t *value);
int gvt_identity(void *device, const umdev_access *access, uint64_t *value);
int gvt_enable(void *device, const umdev_access *access, uint64_t *value);
int gvt_submit_port(void *device, const umdev_access *access, uint64_t *value);

/* ---- unlisted.c ---- */

/* A umdev_handler for registers that have no name here: plain memory, and each appears in the burn-down list. */
int gvt_unlisted(void *device, const umdev_access *access, uint64_t *value);

/* ---- scan.c: the command stream's lengths ---- */

enum gvt_stop {
    GVT_STOP_END = 0,     /* all dwords were consumed */
    GVT_STOP_EXECUTE = 1, /* a command that has an effect, complete in the buffer, at `at` */
    GVT_STOP_PARTIAL = 2, /* a command that begins at `at` and is longer than what is left */
    GVT_STOP_UNKNOWN = 3  /* a header that names no command, at `at` */
};
typedef struct gvt_scan {
    uint32_t at;       /* dwords consumed */
    uint32_t length;   /* of the command at `at`, in dwords; 0 at the end and for an unknown one */
    uint32_t stop;     /* enum gvt_stop */
    uint32_t commands; /* commands without effect that were passed over */
    uint32_t states;   /* of these, 3D and media packets */
    uint32_t reserved;
} gvt_scan;

/* Length in dwords of the command that `header` begins, 0 for none. */
uint32_t gvt_command_length(uint32_t header);
/* Passes over commands without effect from `dwords[0]` on; reads each dword once. */
void gvt_scan_commands(const uint32_t *dwords, uint32_t count, gvt_scan *ret);
