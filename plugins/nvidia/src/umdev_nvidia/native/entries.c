/* Page directory and page table entries of the GF100 family, 64 bits each.
 *
 * Facts: Linux, drivers/gpu/drm/nouveau (nvkm/subdev/mmu, vmmgf100.c), and gm107's registers as nouveau was seen to
 * fill them. A directory entry names two tables, one of large pages in its low word and one of small pages in its high
 * word; both cover the same 128 MiB. For one address a driver makes a page valid in one of them; in both, it is a
 * mistake whose outcome is one of the two.
 */
#include "softgpu.h"

#include "nv_decls.h"

enum { DIRECTORY = 0, SMALL = 1, LARGE = 2, SMALL_SHIFT = 12, LARGE_SHIFT = 17 };
enum { TABLE_VRAM = 1, APERTURE_VRAM = 0, APERTURE_PEER = 1 };
#define VALID UINT64_C(0x1)
#define READ_ONLY UINT64_C(0x4)

/* A word of a directory entry: bits 1:0 where the table is (0 none, 1 video memory, 2 and 3 the system's), 31:4 its
 * page. */
static void table(uint32_t word, uint32_t level, softgpu_entry *ret)
{
    uint32_t where = word & 3;
    if (where == 0)
        return;
    ret->kind = SOFTGPU_TABLE;
    ret->level = level;
    ret->target = where == TABLE_VRAM ? SOFTGPU_LOCAL : SOFTGPU_SYSTEM;
    ret->address = (uint64_t)(word & 0xFFFFFFF0) << 8;
}

/* Bits 0 valid, 2 read-only, 31:4 the page, 34:33 its aperture (0 video memory, 1 a peer's: there is none, 2 and 3 the
 * system's). The kind in bits 43:36 says how tiles are compressed; memory is linear here. */
static void page(uint64_t entry, uint32_t shift, softgpu_entry *ret)
{
    uint32_t aperture = entry >> 33 & 3;
    if (!(entry & VALID) || aperture == APERTURE_PEER)
        return;
    ret->kind = SOFTGPU_PAGE;
    ret->shift = shift;
    ret->target = aperture == APERTURE_VRAM ? SOFTGPU_LOCAL : SOFTGPU_SYSTEM;
    ret->address = (entry & 0xFFFFFFF0) << 8;
    ret->writable = !(entry & READ_ONLY);
}

void nv_decode(void *context, uint32_t level, uint64_t entry, softgpu_entry *ret)
{
    if (level == DIRECTORY) {
        table((uint32_t)(entry >> 32), SMALL, &ret[0]);
        table((uint32_t)entry, LARGE, &ret[1]);
    } else {
        page(entry, level == SMALL ? SMALL_SHIFT : LARGE_SHIFT, &ret[0]);
    }
}
