/* The processor's ways to a vGPU's video memory: BAR 1 and BAR 3 through page tables, PRAMIN directly; and the
 * VBIOS. */
#include <stdbool.h>
#include <string.h>

#include "softgpu.h"

#include "nv_decls.h"

enum { USERD = 0x200, PUT = 0x8C, WORD = 4 };

/* A natural access is one load or store, as on hardware. */
static void move(uint8_t *host, uint8_t *bytes, uint32_t length, bool write)
{
    bool natural = (uintptr_t)host % length == 0;
    if (natural && length == 4) {
        uint32_t value = 0;
        memcpy(&value, bytes, 4);
        if (write)
            __atomic_store_n((uint32_t *)host, value, __ATOMIC_RELEASE);
        else
            value = __atomic_load_n((uint32_t *)host, __ATOMIC_ACQUIRE);
        memcpy(bytes, &value, 4);
    } else if (natural && length == 8) {
        uint64_t value = 0;
        memcpy(&value, bytes, 8);
        if (write)
            __atomic_store_n((uint64_t *)host, value, __ATOMIC_RELEASE);
        else
            value = __atomic_load_n((uint64_t *)host, __ATOMIC_ACQUIRE);
        memcpy(bytes, &value, 8);
    } else if (write) {
        memcpy(host, bytes, length);
    } else {
        memcpy(bytes, host, length);
    }
}

static void kick(nv_vram *vram, uint64_t put)
{
    for (uint32_t i = 0; i < vram->channels; i++) {
        if (vram->put[i] == put) {
            vram->kicked(vram->context, vram->channel[i]);
            return;
        }
    }
}

/* Tells whoever's put pointer was written; one write in 128 comes near any. */
static void notice(nv_vram *vram, uint64_t address, uint32_t length)
{
    for (uint64_t put = address / USERD * USERD + PUT; put < address + length; put += USERD) {
        if (put + WORD > address)
            kick(vram, put);
    }
}

/* False: not all of it lies in video memory, and nothing was done. */
static bool vram_access(nv_vram *vram, uint64_t address, uint8_t *bytes, uint32_t length, bool write)
{
    if (address >= vram->size || length > vram->size - address)
        return false;
    move(vram->bytes + address, bytes, length, write);
    if (write && vram->channels)
        notice(vram, address, length);
    return true;
}

/* `*length` comes in as what is wanted and goes out as what was done, or can't be. */
static bool piece(nv_window *window, uint64_t offset, uint8_t *bytes, uint32_t *length, bool write)
{
    const softgpu_api *api = window->api;
    uint32_t page = 4096 - (uint32_t)(offset % 4096);
    if (*length > page)
        *length = page;
    if (!window->space || offset > window->limit || *length - 1 > window->limit - offset)
        return false;
    softgpu_run run;
    if (api->space_translate(window->space, offset, write, &run, NULL))
        return false;
    if (run.target == SOFTGPU_LOCAL)
        return vram_access(window->vram, run.address, bytes, *length, write);
    if (write)
        return api->space_write(window->space, offset, bytes, *length, NULL) == SOFTGPU_OK;
    return api->space_read(window->space, offset, bytes, *length, NULL) == SOFTGPU_OK;
}

int nv_window_access(void *context, uint64_t offset, void *bytes, uint32_t length, uint32_t flags)
{
    nv_window *window = context;
    bool write = flags & UMDEV_WRITE;
    uint8_t *at = bytes;
    while (length) {
        uint32_t part = length;
        if (!piece(window, offset, at, &part, write)) {
            window->refused++;
            if (!write)
                memset(at, 0xFF, part);
        }
        offset += part;
        at += part;
        length -= part;
    }
    return UMDEV_OK;
}

int nv_pramin_access(void *context, uint64_t offset, void *bytes, uint32_t length, uint32_t flags)
{
    nv_pramin *pramin = context;
    bool write = flags & UMDEV_WRITE;
    if (!vram_access(pramin->vram, pramin->base + offset, bytes, length, write)) {
        pramin->refused++;
        if (!write)
            memset(bytes, 0xFF, length);
    }
    return UMDEV_OK;
}

int nv_prom_access(void *context, uint64_t offset, void *bytes, uint32_t length, uint32_t flags)
{
    const nv_prom *prom = context;
    if (flags & UMDEV_WRITE)
        return UMDEV_OK;
    memset(bytes, 0xFF, length);
    if (offset < prom->size)
        memcpy(bytes, prom->image + offset, length < prom->size - offset ? length : prom->size - offset);
    return UMDEV_OK;
}
