/* softgpu: what its C files share. */
#ifndef SOFTGPU_INTERNAL_H
#define SOFTGPU_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "softgpu.h"
#include "functions.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "guests, page tables and pixels are little-endian here");

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define HIDDEN __attribute__((visibility("hidden")))

enum {
    PAGE = 4096,       /* the smallest page, and the granule of translations that are kept */
    BY_MESSAGE = 1000, /* beyond enum softgpu_result: there is no pointer to this memory */
    READ = UMDEV_READABLE,
    WRITE = UMDEV_WRITABLE
};

struct softgpu_port {
    const umdev_api *api;
    umdev_memory *memory;
    _Atomic uint32_t closed;
    _Atomic uint32_t inside; /* sections that port_close waits for */
    struct {
        uint8_t *host;
        uint64_t size;
        bool writable;
    } memories[SOFTGPU_TARGETS]; /* SOFTGPU_SYSTEM has none */
};

/* A stretch of time in which pointers into memory are valid. Short: see umdev_api.reader_enter. */
typedef struct section {
    softgpu_port *port;
    const umdev_table *table;
    uint32_t ticket;
    uint64_t found_at; /* what was looked up last, and is likely asked for again */
    umdev_span found;
} section;

HIDDEN int section_enter(section *s, softgpu_port *port); /* SOFTGPU_OK or SOFTGPU_CLOSED */
HIDDEN void section_exit(section *s);
/* A pointer to the run's first byte, and how far it goes. SOFTGPU_OK, a fault, or BY_MESSAGE. */
HIDDEN int section_reach(section *s, const softgpu_run *run, uint32_t needed, uint8_t **host, uint64_t *length);
/* Moves bytes by pointer or by message, `*moved` of them before a fault; not in a section. */
HIDDEN int port_transfer(softgpu_port *port, const softgpu_run *run, void *bytes, uint64_t length, bool write,
                         uint64_t *moved);

/* As softgpu_space_translate, with page tables read inside the section where one is given: then BY_MESSAGE means "leave
 * it and ask again". */
HIDDEN int space_walk(softgpu_space *space, section *s, uint64_t address, uint32_t needed, softgpu_run *ret,
                      softgpu_fault *fault);
HIDDEN softgpu_port *space_port(const softgpu_space *space);
/* Changes whenever older translations must be forgotten. */
HIDDEN uint64_t space_generation(softgpu_space *space);

static inline int fault_set(softgpu_fault *fault, int reason, uint64_t address, uint32_t needed, uint32_t level,
                            uint64_t beneath)
{
    if (fault)
        *fault = (softgpu_fault){.reason = (uint32_t)reason, .write = (needed & WRITE) != 0, .level = level,
                                 .address = address, .beneath = beneath};
    return reason;
}

/* Surfaces. `x` counts bytes. */
HIDDEN bool surface_valid(const softgpu_surface *surface);
/* Address of a byte, and how many bytes from it on (or, backwards, up to and with it) follow each other in memory and
 * in the row. */
HIDDEN uint64_t surface_locate(const softgpu_surface *surface, int64_t x, int64_t y, bool backwards, uint64_t *run);

/* In tiles of 16-byte columns: how many bytes of the row the tile has behind the column of byte `x`, and how far from
 * it the next column lies. Elsewhere 0. */
HIDDEN uint32_t surface_columns(const softgpu_surface *surface, int64_t x, uint32_t *hop);

enum {
    SECTION_BYTES = 256 << 10, /* between looks at the budget, and the longest that an unmap waits for */
    KEPT = 64                  /* pointers that a section keeps, a power of two */
};

/* Pointers into one surface's memory, valid in one section: rows of a tiled image come back to their pages. */
typedef struct window {
    softgpu_space *space;
    uint32_t needed;
    uint64_t generation;
    struct {
        uint64_t page; /* its number, plus one; 0: empty */
        uint8_t *host;
        uint64_t length;
    } kept[KEPT];
} window;

HIDDEN void window_open(window *w, softgpu_space *space, uint32_t needed);
/* A pointer to `address` and how far it goes, up to `wanted` or a little more. SOFTGPU_OK, a fault, or BY_MESSAGE. */
HIDDEN int window_find(window *w, section *s, uint64_t address, uint64_t wanted, uint8_t **host, uint64_t *length,
                       softgpu_fault *fault);

/* Raster operations. */
enum { PIECE = 4096, PERIOD_MAX = 32 };
/* A pattern of `period` bytes, repeated over PIECE bytes from any of its phases on. */
typedef struct pattern {
    uint32_t period;
    uint32_t length;
    bool uniform; /* one byte all over */
    uint8_t bytes[PIECE + PERIOD_MAX];
} pattern;
HIDDEN void pattern_set(pattern *p, const uint8_t *bytes, uint32_t period, uint64_t length);
/* Store the pattern, from the phase on that its byte 0 has been moved to (`from` points into its bytes). */
HIDDEN void pattern_fill(const pattern *p, const uint8_t *from, uint8_t *target, uint64_t length);
/* target = rop(brush, source, target), bits outside of `mask` excepted (NULL: none). At most PIECE bytes; `source` does
 * not overlap `target`, and may be NULL where the operation does not look at it. */
HIDDEN void raster(uint8_t *target, const uint8_t *source, const uint8_t *brush, const uint8_t *mask, uint32_t length,
                   uint8_t rop);

static inline bool rop_reads_target(uint8_t rop)
{
    return ((rop >> 1) & 0x55) != (rop & 0x55);
}

static inline bool rop_reads_source(uint8_t rop)
{
    return ((rop >> 2) & 0x33) != (rop & 0x33);
}

static inline bool rop_reads_pattern(uint8_t rop)
{
    return (rop >> 4) != (rop & 0x0F);
}

#endif
