/* A device whose handlers are counted, for the native tests of dispatch. */
#ifndef DEVICE_FIXTURE_H
#define DEVICE_FIXTURE_H

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "umdev.h"

#include "device_decls.h"
#include "check.h"

/* What the Python side would do: counts calls, keeps the last values. */
static struct {
    atomic_uint reads, writes;
    uint32_t slot, element;
    uint64_t value, old, answer;
    int fail;
} seen;

static inline uint64_t on_read(void *context, uint32_t slot)
{
    (void)context;
    atomic_fetch_add(&seen.reads, 1);
    seen.slot = slot;
    if (seen.fail)
        umdev_device_fault();
    return seen.answer;
}

static inline uint64_t on_read_element(void *context, uint32_t slot, uint32_t element)
{
    seen.element = element;
    return on_read(context, slot);
}

static inline void on_write(void *context, uint32_t slot, uint64_t value)
{
    (void)context;
    atomic_fetch_add(&seen.writes, 1);
    seen.slot = slot;
    seen.value = value;
    if (seen.fail)
        umdev_device_fault();
}

static inline void on_write_old(void *context, uint32_t slot, uint64_t value, uint64_t old)
{
    seen.old = old;
    on_write(context, slot, value);
}

static inline void on_write_element(void *context, uint32_t slot, uint32_t element, uint64_t value)
{
    seen.element = element;
    on_write(context, slot, value);
}

static const umdev_callbacks callbacks = {on_read, on_read_element, on_write, on_write_old, on_write_element};

struct fixture {
    umdev_device *device;
    umdev_layout *layout;
    uint64_t *state;
};

static inline struct fixture make(const umdev_register *registers, uint32_t count, uint64_t size)
{
    struct fixture f;
    int error;
    f.device = umdev_device_new();
    f.layout = umdev_layout_new(registers, count, 15, &error);
    CHECK(f.device && f.layout && error == 0);
    f.state = calloc(512, 8);
    CHECK(umdev_device_add_region(f.device, 0, size) == 0);
    CHECK(umdev_device_set_layout(f.device, 0, f.layout, (uint8_t *)f.state, &callbacks, NULL) == 0);
    memset(&seen, 0, sizeof seen);
    return f;
}

static inline void drop(struct fixture *f)
{
    umdev_device_free(f->device);
    umdev_layout_free(f->layout);
    free(f->state);
}

static inline uint64_t ones(uint32_t bytes)
{
    return bytes >= 8 ? ~UINT64_C(0) : (UINT64_C(1) << 8 * bytes) - 1;
}

static inline uint64_t rd(umdev_device *device, uint64_t offset, uint32_t length, int *result)
{
    uint64_t value = 0x5A5A5A5A5A5A5A5A;
    int got = umdev_device_access(device, 0, offset, &value, length, 0, 0, 0);
    if (result)
        *result = got;
    return value & ones(length);
}

static inline int wr(umdev_device *device, uint64_t offset, uint64_t value, uint32_t length)
{
    return umdev_device_access(device, 0, offset, &value, length, UMDEV_WRITE, 0, 0);
}

enum kind { RW, RO, WO, W1C, W1S, RC, RESERVED, KINDS };

static inline umdev_register declare(enum kind kind, uint64_t offset, uint32_t width, uint32_t cell)
{
    umdev_register r = {.offset = offset, .count = 1, .width = width, .cell = cell};
    uint64_t all = ones(width);
    r.rw = kind == RW || kind == WO ? all : 0;
    r.w1c = kind == W1C ? all : 0;
    r.w1s = kind == W1S ? all : 0;
    r.rc = kind == RC ? all : 0;
    r.hide = kind == WO || kind == RESERVED ? all : 0;
    return r;
}

#endif
