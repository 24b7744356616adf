/* The C interface of softgpu, without a single directive: read by softgpu.h and by cffi alike.
 * Nothing here raises, blocks for long or trusts a number: every answer is a value of enum softgpu_result.
 */
typedef struct softgpu_port softgpu_port;   /* the only way to guest memory; one per life of a virtual GPU */
typedef struct softgpu_space softgpu_space; /* addresses as an engine sees them, on top of a port */
typedef struct softgpu_bell softgpu_bell;   /* tells a scheduler that C has work for a queue */
typedef struct softgpu_bells softgpu_bells; /* all bells of a scheduler */

enum softgpu_result {
    SOFTGPU_OK = 0,
    SOFTGPU_MORE = 1,           /* the budget is used up: call again with another */
    SOFTGPU_NOT_PRESENT = 2,    /* the page tables have no page for the address */
    SOFTGPU_NOT_PERMITTED = 3,  /* a store where page or map allow none, or a load likewise */
    SOFTGPU_OUT_OF_RANGE = 4,   /* beyond the bits of the space, or the end of the memory behind it */
    SOFTGPU_UNREACHABLE = 5,    /* a bus address that no map covers, or bus mastering is off */
    SOFTGPU_BAD_TABLE = 6,      /* a page table that can't be read, or an entry that makes no sense */
    SOFTGPU_CLOSED = 7,         /* the port's life is over */
    SOFTGPU_INVALID = 8,        /* numbers that no hardware would take */
    SOFTGPU_WOULD_DEADLOCK = 9  /* memory by message, from a handler that the driver waits for: defer it */
};

/* What went wrong, where. */
typedef struct softgpu_fault {
    uint32_t reason;   /* enum softgpu_result, from SOFTGPU_NOT_PRESENT on */
    uint32_t write;    /* 1: a store */
    uint32_t level;    /* of the page table that the walk stopped at, 0 the root's */
    uint32_t reserved;
    uint64_t address;  /* in the space */
    uint64_t beneath;  /* what it came to: a bus address, an offset in memory, or the entry's own address */
} softgpu_fault;

/* ---- the port ---- */

/* What stands behind a space. */
enum softgpu_target {
    SOFTGPU_SYSTEM = 0, /* bus addresses: the guest's memory, by DMA */
    SOFTGPU_LOCAL = 1,  /* the device's own memory: this virtual GPU's share of it */
    SOFTGPU_TABLES = 2, /* a private buffer of the model, for page tables that are no guest memory */
    SOFTGPU_SPARE = 3,
    SOFTGPU_TARGETS = 4
};

/* ---- spaces ---- */

enum softgpu_entry_kind {
    SOFTGPU_NONE = 0,
    SOFTGPU_TABLE = 1,
    SOFTGPU_PAGE = 2
};

/* What a page-table entry means. */
typedef struct softgpu_entry {
    uint32_t kind;
    uint32_t target;   /* where the table or page lies: enum softgpu_target */
    uint64_t address;  /* of its first byte there */
    uint32_t level;    /* TABLE: its level, greater than that of this entry */
    uint32_t shift;    /* PAGE: log2 of its bytes, from 12 to the level's shift */
    uint32_t writable; /* PAGE */
    uint32_t reserved;
} softgpu_entry;

/* Fills ret[0], and ret[1] where the entry names a second table or page, tried when nothing is present behind the
 * first. Both come in as SOFTGPU_NONE. Must be pure: any thread, at any time. */
typedef void (*softgpu_decode)(void *context, uint32_t level, uint64_t entry, softgpu_entry *ret);

enum softgpu_limit {
    SOFTGPU_LEVELS_MAX = 6
};

typedef struct softgpu_level {
    uint32_t shift;  /* log2 of the bytes that one entry covers, 12 to 63 */
    uint32_t bits;   /* of the address that index the table, 1 to 32 */
    uint32_t bytes;  /* of an entry: 4 or 8, little-endian */
    uint32_t stride; /* from entry to entry */
} softgpu_level;

typedef struct softgpu_format {
    uint32_t address_bits; /* greater addresses are SOFTGPU_OUT_OF_RANGE */
    uint32_t levels;       /* walks begin at level 0 */
    softgpu_level level[6];
} softgpu_format;

/* The decoder that most formats can use, softgpu_decode_masks: one of these per level. */
typedef struct softgpu_masks {
    uint64_t present;    /* a bit of it is set: there is something */
    uint64_t writable;   /* all of it set: stores are allowed; 0: always */
    uint64_t leaf;       /* a bit of it is set: a page; all ones: always; 0: never */
    uint64_t table;      /* bits of a table's address */
    uint64_t page;       /* bits of a page's address */
    uint32_t page_shift; /* log2 of a page's bytes */
    uint32_t next;       /* level of the table */
    uint32_t target;     /* of both */
    uint32_t reserved;
} softgpu_masks;

/* A stretch of one target. */
typedef struct softgpu_run {
    uint64_t address;
    uint64_t length;
    uint32_t target;
    uint32_t writable;
} softgpu_run;

/* ---- budgets ---- */

/* How much a step may do. `units` is bytes moved, plus whatever the model charges for its commands; the last piece of
 * work may take it below 0. Any thread may set `stop` (it is over) or move `deadline_ns` (somebody
 * waits), atomically. */
typedef struct softgpu_budget {
    int64_t units;
    uint64_t deadline_ns; /* CLOCK_MONOTONIC; 0: none */
    uint32_t stop;
    uint32_t reserved;
} softgpu_budget;

/* ---- the blitter ---- */

enum softgpu_tiling {
    SOFTGPU_LINEAR = 0,
    SOFTGPU_TILED_X = 1, /* tiles of 512 bytes by 8 rows, row after row (Intel, "Tile X") */
    SOFTGPU_TILED_Y = 2, /* tiles of 128 bytes by 32 rows, in columns of 16 bytes (Intel, "Tile Y") */
    SOFTGPU_BLOCKS = 3   /* blocks of 64 bytes by 8 << block_rows rows by 1 << block_layers layers (NVIDIA, "block
                            linear", GF100 and later); a surface is one layer */
};

/* An image in a space. Pixel (0, 0) is at `address`; coordinates may be negative and reach before it. */
typedef struct softgpu_surface {
    softgpu_space *space;
    uint64_t address;    /* tiled: aligned to 4 KiB, blocks: to 512 */
    int64_t pitch;       /* bytes from row to row, of either sign; tiled: a positive multiple of a tile's width */
    uint32_t tiling;
    uint16_t block_rows; /* SOFTGPU_BLOCKS: log2 of the 8-row groups in a layer of a block, 0 to 5 */
    uint16_t block_layers; /* likewise, of the layers in a block, 0 to 5 */
} softgpu_surface;

enum softgpu_blit_flag {
    SOFTGPU_CLIP = 1,   /* nothing outside of the clip rectangle is touched */
    SOFTGPU_BRUSH = 2,  /* the pattern is `brush`, else one pixel, `color` */
    SOFTGPU_MASKED = 4  /* only the bits of `write_mask` change */
};

/* A rectangle to be drawn. The caller owns it, fills all but `state`, and keeps it until it is done.
 * Each pixel becomes f(pattern, source, target): bit n of `rop` is f for (pattern, source, target) = the bits of n, so
 * 0xF0 is a fill, 0xCC a copy (the "ROP3" codes of Windows GDI, which GPUs use). Where a raster operation does not
 * look at source or target, none is read. */
typedef struct softgpu_blit {
    softgpu_surface target;
    softgpu_surface source; /* space may be NULL where the operation looks at none */
    int64_t x;              /* of the rectangle in the target, in pixels */
    int64_t y;
    uint64_t width;
    uint64_t height;
    int64_t source_x;       /* where the rectangle's first pixel comes from */
    int64_t source_y;
    int64_t clip_x;         /* the clip rectangle, in pixels of the target; x2 and y2 are outside */
    int64_t clip_y;
    int64_t clip_x2;
    int64_t clip_y2;
    int64_t brush_x;        /* the pixel of the target that the brush's first pixel falls on */
    int64_t brush_y;
    uint32_t pixel_bytes;   /* 1 to 16; a brush: 1, 2 or 4 */
    uint32_t rop;           /* 0 to 255 */
    uint32_t flags;
    uint32_t reserved;
    uint8_t color[16];      /* one pixel, little-endian */
    uint8_t write_mask[16]; /* likewise */
    uint8_t brush[256];     /* 8 rows of 8 pixels */
    uint64_t state[12];     /* the blitter's own */
} softgpu_blit;

/* ---- the table ---- */

typedef struct softgpu_api {
    umdev_header header;

    /* Any thread. NULL without memory. `device` must outlive the port. */
    softgpu_port *(*port_new)(const umdev_api *api, umdev_device *device);
    /* Nobody may use it or its spaces any more. */
    void (*port_free)(softgpu_port *port);
    /* What a target is made of; `host` must stay valid until port_close. Before the first access. SOFTGPU_SYSTEM is
     * there already. 0 or SOFTGPU_INVALID. */
    int (*port_set_memory)(softgpu_port *port, uint32_t target, uint8_t *host, uint64_t size, int writable);
    /* Final, and may be called twice. When it returns, no access through the port is inside memory that is mapped, and
     * every later one answers SOFTGPU_CLOSED. The device lock may be held. (Where memory is reached by message, one
     * message that is on its way may still arrive.) */
    void (*port_close)(softgpu_port *port);

    /* A window onto `size` bytes of a target. NULL without memory, for a size of 0 or a range that wraps. */
    softgpu_space *(*space_linear)(softgpu_port *port, uint32_t target, uint64_t base, uint64_t size);
    /* A space behind page tables; nothing is present before space_set_root. Copies `format`; `context` must outlive the
     * space. NULL without memory or for a format that makes no sense. */
    softgpu_space *(*space_paged)(softgpu_port *port, const softgpu_format *format, softgpu_decode decode,
                                  void *context);
    void (*space_free)(softgpu_space *space);
    /* Any thread, at any time: accesses that begin later walk the new tables. The address is not checked before. */
    void (*space_set_root)(softgpu_space *space, uint32_t target, uint64_t address);
    /* Forget what was translated. Any thread, at any time. */
    void (*space_invalidate)(softgpu_space *space);

    /* These may be called by any thread, several at once, the device lock held or not; `fault` may be NULL. Each
     * returns enum softgpu_result. An aligned access of 1, 2, 4 or 8 bytes is one access. After a fault, a write has
     * stored what lies before fault->address, and the buffer of a read is undefined from there on. */
    int (*space_read)(softgpu_space *space, uint64_t address, void *bytes, uint64_t length, softgpu_fault *fault);
    int (*space_write)(softgpu_space *space, uint64_t address, const void *bytes, uint64_t length,
                       softgpu_fault *fault);
    /* Where an address leads; `ret` reaches to the end of its page. */
    int (*space_translate)(softgpu_space *space, uint64_t address, int write, softgpu_run *ret, softgpu_fault *fault);

    /* 1 while something is left, nobody has set `stop` and the deadline has not passed. */
    int (*budget_left)(const softgpu_budget *budget);

    /* Checks and prepares. SOFTGPU_OK, or SOFTGPU_INVALID: then nothing is drawn. */
    int (*blit_begin)(softgpu_blit *blit);
    /* Draws on. SOFTGPU_OK: done, SOFTGPU_MORE, or a fault: then it can't go on, and what was drawn stays. Rows are
     * drawn in the order that lets source and target overlap where both are linear with one pitch, or lie in one
     * surface; else an overlapping source may be read after it was drawn over. Not two threads at once. */
    int (*blit_step)(softgpu_blit *blit, softgpu_budget *budget, softgpu_fault *fault);

    /* Have the scheduler ask the owner of a queue for its work: soon, in the scheduler's thread, and at least once
     * after the last ring. Any thread, any lock held, without the interpreter; it does not wait. (ABI 1.1) */
    void (*bell_ring)(softgpu_bell *bell);
} softgpu_api;
