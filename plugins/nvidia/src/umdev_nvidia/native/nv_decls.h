/* nvidia: what its C files offer; no directives, cffi reads this too. */

enum nv_limit { NV_CHANNELS = 2048 };

/* ---- a vGPU's video memory ---- */

/* Somebody wrote the put pointer of a channel's ring. The device lock is held. */
typedef void (*nv_kicked)(void *context, uint32_t channel);

/* Video memory and the words in it that kick channels: GM107's host polls them, here the write itself is seen. All
 * but `bytes` and `size` changes under the device lock. */
typedef struct nv_vram {
    uint8_t *bytes;
    uint64_t size;
    nv_kicked kicked;
    void *context;
    uint32_t channels; /* entries in use of the two arrays */
    uint32_t reserved;
    uint64_t put[2048];     /* offset of the put pointer, 0x8c modulo 0x200 */
    uint32_t channel[2048]; /* its number */
} nv_vram;

/* ---- windows.c: the processor's ways to video memory ---- */

/* BAR 1 or BAR 3: addresses behind page tables. */
typedef struct nv_window {
    const void *api; /* softgpu_api */
    void *space;     /* softgpu_space; NULL: off */
    nv_vram *vram;
    uint64_t limit;   /* the last address */
    uint64_t refused; /* accesses that led nowhere */
} nv_window;

/* A umdev_bytes_handler for the whole BAR. What leads nowhere reads as ones and takes no write. The device lock is
 * held. */
int nv_window_access(void *window, uint64_t offset, void *bytes, uint32_t length, uint32_t flags);

/* PRAMIN: a megabyte of BAR 0 that shows video memory from `base` on. */
typedef struct nv_pramin {
    nv_vram *vram;
    uint64_t base;
    uint64_t refused;
} nv_pramin;

/* A umdev_bytes_handler; beyond video memory as above. The device lock is held. */
int nv_pramin_access(void *pramin, uint64_t offset, void *bytes, uint32_t length, uint32_t flags);

/* PROM: the VBIOS as the flash chip holds it. */
typedef struct nv_prom {
    const uint8_t *image;
    uint64_t size;
} nv_prom;

/* A umdev_bytes_handler, lock-free: writes are ignored, what is behind the image reads as ones. */
int nv_prom_access(void *prom, uint64_t offset, void *bytes, uint32_t length, uint32_t flags);

/* ---- entries.c ---- */

/* A softgpu_decode of GF100's page tables: level 0 is the directory, 1 a table of small pages, 2 one of large pages. */
void nv_decode(void *context, uint32_t level, uint64_t entry, softgpu_entry *ret);
