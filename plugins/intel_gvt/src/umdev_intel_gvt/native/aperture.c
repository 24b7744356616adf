/* The part of graphics memory that the processor reaches through BAR 2, by the global table and the fences. */
#include <string.h>

#include "softgpu.h"

#include "gvt_decls.h"

enum { TILE = 4096, X_WIDTH = 512, X_HEIGHT = 8, Y_WIDTH = 128, Y_HEIGHT = 32, Y_COLUMN = 16 };

/* A tile is 4 KiB: X has 8 rows of 512 bytes; Y has 8 columns, 16 bytes wide and 32 rows high (Intel Graphics PRM, Kaby
 * Lake, volume 5, memory views). */
uint64_t gvt_untile(const gvt_fence *fence, uint64_t address)
{
    uint64_t width = fence->y_tiled ? Y_WIDTH : X_WIDTH, height = fence->y_tiled ? Y_HEIGHT : X_HEIGHT;
    uint64_t row = (address - fence->first) / fence->pitch, column = (address - fence->first) % fence->pitch;
    uint64_t tile = row / height * (fence->pitch / width) + column / width;
    uint64_t x = column % width, y = row % height;
    uint64_t within = fence->y_tiled ? x / Y_COLUMN * (Y_COLUMN * Y_HEIGHT) + y * Y_COLUMN + x % Y_COLUMN
                                     : y * X_WIDTH + x;
    return fence->first + tile * TILE + within;
}

static const gvt_fence *fence_at(const gvt_aperture *aperture, uint64_t address)
{
    for (int i = 0; i < 4; i++) {
        if (address >= aperture->fences[i].first && address < aperture->fences[i].end)
            return &aperture->fences[i];
    }
    return NULL;
}

/* How many bytes from the address on lie next to each other. Fences begin and end at pages. */
static uint32_t run_length(const gvt_fence *fence, uint64_t address)
{
    uint32_t run = 4096 - (uint32_t)(address % 4096);
    if (fence) { /* whose pitch a guest may set to what is no multiple of a tile's width */
        uint32_t column = (uint32_t)((address - fence->first) % fence->pitch);
        uint32_t width = fence->y_tiled ? Y_COLUMN : X_WIDTH, row = fence->pitch - column;
        run = row < run ? row : run;
        run = width - column % width < run ? width - column % width : run;
    }
    return run;
}

static void access_run(gvt_aperture *aperture, uint64_t address, uint8_t *bytes, uint32_t length, uint32_t flags)
{
    const softgpu_api *api = aperture->api;
    int failed;
    if (flags & UMDEV_WRITE)
        failed = api->space_write(aperture->space, address, bytes, length, NULL);
    else
        failed = api->space_read(aperture->space, address, bytes, length, NULL);
    if (failed) {
        aperture->refused++;
        if (!(flags & UMDEV_WRITE))
            memset(bytes, 0xFF, length);
    }
}

int gvt_aperture_access(void *context, uint64_t offset, void *bytes, uint32_t length, uint32_t flags)
{
    gvt_aperture *aperture = context;
    uint8_t *at = bytes;
    while (length) {
        const gvt_fence *fence = fence_at(aperture, offset);
        uint32_t run = run_length(fence, offset);
        if (run > length)
            run = length;
        access_run(aperture, fence ? gvt_untile(fence, offset) : offset, at, run, flags);
        offset += run, at += run, length -= run;
    }
    return UMDEV_OK;
}
