/* softgpu: how pixels lie in memory. */
#include "internal.h"

enum {
    TILE = 4096,
    X_WIDTH = 512,
    X_ROWS = 8,
    Y_WIDTH = 128,
    Y_ROWS = 32,
    COLUMN = 16,
    GOB = 512,
    GOB_WIDTH = 64,
    GOB_ROWS = 8
};

bool surface_valid(const softgpu_surface *surface)
{
    const int64_t farthest = 1ll << 32;
    if (!surface->space || surface->pitch > farthest || surface->pitch < -farthest)
        return false;
    switch (surface->tiling) {
    case SOFTGPU_LINEAR:
        return true;
    case SOFTGPU_TILED_X:
        return surface->pitch > 0 && surface->pitch % X_WIDTH == 0 && surface->address % TILE == 0;
    case SOFTGPU_TILED_Y:
        return surface->pitch > 0 && surface->pitch % Y_WIDTH == 0 && surface->address % TILE == 0;
    case SOFTGPU_BLOCKS:
        return surface->pitch > 0 && surface->pitch % GOB_WIDTH == 0 && surface->address % GOB == 0 &&
               surface->block_rows <= 5 && surface->block_layers <= 5;
    default:
        return false;
    }
}

/* Coordinates before the first tile are tiles before the first one: divisions round down. */
static int64_t tile_number(int64_t coordinate, int64_t size)
{
    return (coordinate - (coordinate & (size - 1))) / size;
}

static uint64_t tiled_x(const softgpu_surface *surface, int64_t x, int64_t y)
{
    uint64_t tile = (uint64_t)(tile_number(y, X_ROWS) * (surface->pitch / X_WIDTH) + tile_number(x, X_WIDTH));
    return surface->address + tile * TILE + (uint64_t)((y & (X_ROWS - 1)) * X_WIDTH + (x & (X_WIDTH - 1)));
}

static uint64_t tiled_y(const softgpu_surface *surface, int64_t x, int64_t y)
{
    uint64_t tile = (uint64_t)(tile_number(y, Y_ROWS) * (surface->pitch / Y_WIDTH) + tile_number(x, Y_WIDTH));
    int64_t column = (x & (Y_WIDTH - 1)) / COLUMN;
    return surface->address + tile * TILE +
           (uint64_t)(column * COLUMN * Y_ROWS + (y & (Y_ROWS - 1)) * COLUMN + (x & (COLUMN - 1)));
}

/* A group of 64 bytes by 8 rows ("GOB") is one of 32-byte halves, row pairs and 16-byte sectors: envytools, "NV50+
 * tiled storage", GF100 shape. Groups stack up to a block's layer, layers to a block; blocks lie row after row. */
static uint64_t blocks(const softgpu_surface *surface, int64_t x, int64_t y)
{
    int64_t rows = GOB_ROWS << surface->block_rows;
    uint64_t block = (uint64_t)(tile_number(y, rows) * (surface->pitch / GOB_WIDTH) + tile_number(x, GOB_WIDTH));
    uint64_t within = (uint64_t)(((x & 32) << 3) + ((y & 6) << 5) + ((x & 16) << 1) + ((y & 1) << 4) + (x & 15));
    uint64_t group = (block << (surface->block_rows + surface->block_layers)) + (uint64_t)((y & (rows - 1)) / GOB_ROWS);
    return surface->address + group * GOB + within;
}

uint64_t surface_locate(const softgpu_surface *surface, int64_t x, int64_t y, bool backwards, uint64_t *run)
{
    uint64_t address;
    uint64_t step; /* bytes that lie together, a power of two */
    switch (surface->tiling) {
    case SOFTGPU_TILED_X:
        address = tiled_x(surface, x, y);
        step = X_WIDTH;
        break;
    case SOFTGPU_TILED_Y:
        address = tiled_y(surface, x, y);
        step = COLUMN;
        break;
    case SOFTGPU_BLOCKS:
        address = blocks(surface, x, y);
        step = COLUMN;
        break;
    default:
        address = surface->address + (uint64_t)y * (uint64_t)surface->pitch + (uint64_t)x;
        *run = backwards ? (address & (PAGE - 1)) + 1 : UINT64_MAX;
        return address;
    }
    uint64_t offset = (uint64_t)x & (step - 1);
    *run = backwards ? offset + 1 : step - offset;
    return address;
}

uint32_t surface_columns(const softgpu_surface *surface, int64_t x, uint32_t *hop)
{
    uint32_t column;
    switch (surface->tiling) {
    case SOFTGPU_TILED_Y:
        column = (uint32_t)(x & (Y_WIDTH - 1)) / COLUMN;
        *hop = COLUMN * Y_ROWS;
        return Y_WIDTH - COLUMN * (column + 1);
    case SOFTGPU_BLOCKS:
        column = (uint32_t)(x & (GOB_WIDTH - 1)) / COLUMN;
        *hop = column == 1 ? 256 - 32 : 32; /* columns at 0, 32, 256, 288 */
        return GOB_WIDTH - COLUMN * (column + 1);
    default:
        *hop = 0;
        return 0;
    }
}

/* Bytes of one row, `x` of them behind its first. */
static int transfer(const softgpu_surface *surface, int64_t x, int64_t y, uint8_t *bytes, uint64_t length, bool write,
                    softgpu_fault *fault)
{
    const int64_t farthest = 1ll << 40;
    if (!surface_valid(surface) || x < -farthest || x > farthest || y < -farthest / 64 || y > farthest / 64 ||
        length > (uint64_t)farthest)
        return fault_set(fault, SOFTGPU_INVALID, surface->address, write ? WRITE : READ, 0, 0);
    while (length) {
        uint64_t run;
        uint64_t address = surface_locate(surface, x, y, false, &run);
        uint64_t part = run < length ? run : length;
        int result = write ? softgpu_space_write(surface->space, address, bytes, part, fault)
                           : softgpu_space_read(surface->space, address, bytes, part, fault);
        if (UNLIKELY(result))
            return result;
        x += (int64_t)part;
        bytes += part;
        length -= part;
    }
    return SOFTGPU_OK;
}

int softgpu_surface_read(const softgpu_surface *surface, int64_t x, int64_t y, void *bytes, uint64_t length,
                         softgpu_fault *fault)
{
    return transfer(surface, x, y, bytes, length, false, fault);
}

int softgpu_surface_write(const softgpu_surface *surface, int64_t x, int64_t y, const void *bytes, uint64_t length,
                          softgpu_fault *fault)
{
    return transfer(surface, x, y, (uint8_t *)(uintptr_t)bytes, length, true, fault);
}
