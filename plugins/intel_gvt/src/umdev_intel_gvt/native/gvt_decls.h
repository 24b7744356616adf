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

/* A umdev_bytes_handler: an access to BAR 2. Pages that are not there read as ones and take no write. The device lock is
 * held. */
int gvt_aperture_access(void *aperture, uint64_t offset, void *bytes, uint32_t length, uint32_t flags);
/* Where the byte lies that the processor sees at `address`, inside the fence. */
uint64_t gvt_untile(const gvt_fence *fence, uint64_t address);

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
