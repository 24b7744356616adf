/* The device object without Python: every access kind x width x split, races, pending accesses, gates, the trace. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "umdev.h"

#include "device_decls.h"
#include "trace_decls.h"

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* What the Python side would do: counts calls, keeps the last values. */
static struct {
    atomic_uint reads, writes;
    uint32_t slot, element;
    uint64_t value, old, answer;
    int fail;
} seen;

static uint64_t on_read(void *context, uint32_t slot)
{
    (void)context;
    atomic_fetch_add(&seen.reads, 1);
    seen.slot = slot;
    if (seen.fail)
        umdev_device_fault();
    return seen.answer;
}

static uint64_t on_read_element(void *context, uint32_t slot, uint32_t element)
{
    seen.element = element;
    return on_read(context, slot);
}

static void on_write(void *context, uint32_t slot, uint64_t value)
{
    (void)context;
    atomic_fetch_add(&seen.writes, 1);
    seen.slot = slot;
    seen.value = value;
    if (seen.fail)
        umdev_device_fault();
}

static void on_write_old(void *context, uint32_t slot, uint64_t value, uint64_t old)
{
    seen.old = old;
    on_write(context, slot, value);
}

static void on_write_element(void *context, uint32_t slot, uint32_t element, uint64_t value)
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

static struct fixture make(const umdev_register *registers, uint32_t count, uint64_t size)
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

static void drop(struct fixture *f)
{
    umdev_device_free(f->device);
    umdev_layout_free(f->layout);
    free(f->state);
}

static uint64_t ones(uint32_t bytes)
{
    return bytes >= 8 ? ~UINT64_C(0) : (UINT64_C(1) << 8 * bytes) - 1;
}

static uint64_t rd(umdev_device *device, uint64_t offset, uint32_t length, int *result)
{
    uint64_t value = 0x5A5A5A5A5A5A5A5A;
    int got = umdev_device_access(device, 0, offset, &value, length, 0, 0, 0);
    if (result)
        *result = got;
    return value & ones(length);
}

static int wr(umdev_device *device, uint64_t offset, uint64_t value, uint32_t length)
{
    return umdev_device_access(device, 0, offset, &value, length, UMDEV_WRITE, 0, 0);
}

/* ---- the contract, enumerated ---- */

enum kind { RW, RO, WO, W1C, W1S, RC, RESERVED, KINDS };

static umdev_register declare(enum kind kind, uint64_t offset, uint32_t width, uint32_t cell)
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

/* What one byte becomes, by the definition of the kinds: bytes are independent of each other. */
static uint8_t byte_written(enum kind kind, uint8_t old, uint8_t value)
{
    switch (kind) {
    case RW:
    case WO:
        return value;
    case W1C:
        return old & (uint8_t)~value;
    case W1S:
        return old | value;
    default:
        return old;
    }
}

static void test_kinds(void)
{
    static const uint32_t widths[] = {1, 2, 4, 8};
    for (int kind = 0; kind < KINDS; kind++) {
        for (int w = 0; w < 4; w++) {
            uint32_t width = widths[w];
            /* Two neighbours of one kind, so that accesses also straddle them. */
            umdev_register two[] = {declare((enum kind)kind, 16, width, 0), declare((enum kind)kind, 16 + width, width, 8)};
            struct fixture f = make(two, 2, 64);
            for (int s = 0; s < 4; s++) {
                uint32_t size = widths[s];
                for (uint32_t at = 16; at + size <= 16 + 2 * width; at++) {
                    uint8_t before[16], value[8], got[8];
                    for (uint32_t i = 0; i < 16; i++)
                        before[i] = (uint8_t)(0x35 + 29 * i);
                    for (uint32_t i = 0; i < 8; i++)
                        value[i] = (uint8_t)(0xC6 + 17 * i);
                    uint8_t *cells[2] = {(uint8_t *)f.state, (uint8_t *)f.state + 8};
                    memcpy(cells[0], before, width);
                    memcpy(cells[1], before + width, width);
                    CHECK(umdev_device_access(f.device, 0, at, value, size, UMDEV_WRITE, 0, 0) == UMDEV_OK);
                    for (uint32_t i = 0; i < 2 * width; i++) {
                        uint32_t touched = 16 + i >= at && 16 + i < at + size;
                        uint8_t want = touched ? byte_written((enum kind)kind, before[i], value[16 + i - at]) : before[i];
                        CHECK(cells[i / width][i % width] == want);
                        before[i] = want;
                    }
                    CHECK(umdev_device_access(f.device, 0, at, got, size, 0, 0, 0) == UMDEV_OK);
                    for (uint32_t i = 0; i < 2 * width; i++) {
                        uint32_t touched = 16 + i >= at && 16 + i < at + size;
                        if (touched)
                            CHECK(got[16 + i - at] == (kind == WO || kind == RESERVED ? 0 : before[i]));
                        CHECK(cells[i / width][i % width] == (touched && kind == RC ? 0 : before[i]));
                    }
                }
            }
            drop(&f);
        }
    }
}

static void test_handlers(void)
{
    umdev_register r[] = {declare(RW, 0, 4, 0), declare(RW, 4, 4, 4), declare(RO, 8, 4, 8), declare(W1C, 12, 4, 12),
                          {.offset = 0x100, .stride = 16, .count = 4, .width = 4, .cell = 16, .rw = ones(4)}};
    r[0].on_write = UMDEV_CALL_VALUE;
    r[1].on_write = UMDEV_CALL_OLD;
    r[2].on_read = UMDEV_CALL_VALUE;
    r[3].on_write = UMDEV_CALL_VALUE;
    r[4].on_write = r[4].on_read = UMDEV_CALL_ELEMENT;
    struct fixture f = make(r, 5, 0x1000);
    int result;

    /* A split access calls each register once, in ascending order; untouched bytes come from the old value. */
    CHECK(wr(f.device, 0, 0x11223344, 4) == UMDEV_OK && seen.value == 0x11223344 && seen.writes == 1);
    CHECK(wr(f.device, 4, 0x55667788, 4) == UMDEV_OK && seen.old == 0 && seen.writes == 2);
    CHECK(wr(f.device, 2, 0xAABBCCDD, 4) == UMDEV_OK && seen.writes == 4);
    CHECK(seen.slot == 1 && seen.value == 0x5566AABB && seen.old == 0x55667788);
    CHECK(f.state[0] == UINT64_C(0x5566AABBCCDD3344));

    seen.answer = 0xDEADBEEF;
    CHECK(rd(f.device, 8, 4, &result) == 0xDEADBEEF && result == UMDEV_OK && seen.reads == 1);
    CHECK(rd(f.device, 9, 2, NULL) == 0xADBE && ((uint32_t *)f.state)[2] == 0);

    /* Untouched W1C bits are not seen as written. */
    ((uint32_t *)f.state)[3] = 0xFFFF;
    CHECK(wr(f.device, 12, 0x0F, 1) == UMDEV_OK && seen.value == 0x0F && ((uint32_t *)f.state)[3] == 0xFFF0);

    CHECK(wr(f.device, 0x120, 7, 4) == UMDEV_OK && seen.element == 2 && seen.value == 7);
    CHECK(rd(f.device, 0x132, 2, NULL) == 0xDEAD && seen.element == 3);
    CHECK(rd(f.device, 0x124, 4, &result) == 0 && result == UMDEV_UNHANDLED);

    umdev_counters counters;
    seen.fail = 1;
    CHECK(wr(f.device, 0, 1, 4) == UMDEV_FAULT && rd(f.device, 8, 4, &result) == ones(4) && result == UMDEV_FAULT);
    umdev_device_counters(f.device, &counters);
    CHECK(counters.faulted == 2);
    seen.fail = 0;
    CHECK(wr(f.device, 0, 1, 4) == UMDEV_OK);
    drop(&f);
}

static void test_masked_and_commit(void)
{
    umdev_register r[] = {declare(RW, 0, 4, 0), declare(RW, 8, 8, 8), declare(RW, 16, 8, 16)};
    r[0].flags = UMDEV_REGISTER_MASKED;
    r[1].flags = UMDEV_REGISTER_COMMIT_HIGH;
    r[1].latch = 32;
    r[2].flags = UMDEV_REGISTER_COMMIT_LOW;
    r[2].latch = 40;
    r[1].on_write = r[2].on_write = UMDEV_CALL_VALUE;
    struct fixture f = make(r, 3, 64);

    CHECK(wr(f.device, 0, 0x00030001, 4) == UMDEV_OK && rd(f.device, 0, 4, NULL) == 1);
    CHECK(wr(f.device, 0, 0x00020002, 4) == UMDEV_OK && rd(f.device, 0, 4, NULL) == 3);
    CHECK(wr(f.device, 0, 0xFF, 1) == UMDEV_OK && rd(f.device, 0, 4, NULL) == 3); /* no enables were written */

    CHECK(wr(f.device, 8, 0x11111111, 4) == UMDEV_OK && seen.writes == 0 && rd(f.device, 8, 8, NULL) == 0);
    CHECK(wr(f.device, 12, 0x22222222, 4) == UMDEV_OK && seen.writes == 1);
    CHECK(seen.value == UINT64_C(0x2222222211111111) && rd(f.device, 8, 8, NULL) == seen.value);
    CHECK(wr(f.device, 12, 0x33333333, 4) == UMDEV_OK && seen.value == UINT64_C(0x3333333311111111));
    CHECK(wr(f.device, 9, 0xAB, 1) == UMDEV_OK && wr(f.device, 12, 0x44444444, 4) == UMDEV_OK);
    CHECK(seen.value == UINT64_C(0x444444441111AB11));
    CHECK(wr(f.device, 8, UINT64_C(0x1234567890), 8) == UMDEV_OK && seen.value == UINT64_C(0x1234567890));

    ((uint32_t *)f.state)[2] = 0x55; /* the model changes the lower half: nothing of an earlier commit waits */
    CHECK(wr(f.device, 12, 0x66, 4) == UMDEV_OK && seen.value == UINT64_C(0x6600000055));

    seen.writes = 0;
    CHECK(wr(f.device, 20, 0x22222222, 4) == UMDEV_OK && seen.writes == 0);
    CHECK(wr(f.device, 16, 0x11111111, 4) == UMDEV_OK && seen.value == UINT64_C(0x2222222211111111));
    drop(&f);
}

static void test_layout(void)
{
    int error;
    uint32_t element;
    umdev_register overlap[] = {declare(RW, 0, 8, 0), declare(RW, 4, 4, 8)};
    CHECK(!umdev_layout_new(overlap, 2, 15, &error) && error == -EEXIST);
    umdev_register odd = declare(RW, 2, 4, 0);
    CHECK(!umdev_layout_new(&odd, 1, 15, &error) && error == -EINVAL);
    umdev_register good = declare(RW, 0, 4, 0);
    CHECK(!umdev_layout_new(&good, 1, 0, &error) && error == -EINVAL);
    umdev_layout *layout = umdev_layout_new(&good, 0, 15, &error);
    CHECK(layout && umdev_layout_find(layout, 0, &element) == -1);
    umdev_layout_free(layout);

    /* 2,000 registers spread over 16 MiB, and a million doorbells a page apart. */
    umdev_register *many = calloc(2001, sizeof *many);
    for (uint32_t i = 0; i < 2000; i++)
        many[i] = declare(RW, i * UINT64_C(8388) / 4 * 4, 4, 4 * i);
    layout = umdev_layout_new(many, 2000, 15, &error);
    CHECK(layout && umdev_layout_bytes(layout) < 3 << 20);
    for (uint32_t i = 0; i < 2000; i++)
        CHECK(umdev_layout_find(layout, many[i].offset + 3, &element) == i);
    CHECK(umdev_layout_find(layout, 4, &element) == -1);
    umdev_layout_free(layout);
    many[0] = (umdev_register){.offset = 0, .stride = 4096, .count = 1 << 20, .width = 4};
    many[1] = (umdev_register){.offset = 8, .stride = 4096, .count = 1 << 20, .width = 4, .cell = 4 << 20};
    layout = umdev_layout_new(many, 2, 15, &error);
    CHECK(layout && umdev_layout_bytes(layout) < 1 << 20);
    CHECK(umdev_layout_find(layout, 4096 * UINT64_C(777777) + 9, &element) == 1 && element == 777777);
    CHECK(umdev_layout_find(layout, 4096 * UINT64_C(777777) + 12, &element) == -1);
    umdev_layout_free(layout);
    free(many);
}

static void test_sizes_bounds_gates(void)
{
    umdev_register r = declare(RW, 0, 4, 0);
    umdev_counters counters;
    int result, error;
    umdev_layout *layout = umdev_layout_new(&r, 1, 4, &error);
    umdev_device *device = umdev_device_new();
    uint64_t state[1] = {0};
    CHECK(umdev_device_add_region(device, 0, 16) == 0 && umdev_device_add_region(device, 0, 16) == -EINVAL);
    CHECK(umdev_device_add_region(device, 9, 16) == -EINVAL && umdev_device_add_region(device, 1, 0) == -EINVAL);
    CHECK(umdev_device_set_layout(device, 0, layout, (uint8_t *)state, &callbacks, NULL) == 0);
    CHECK(rd(device, 0, 1, &result) == 0xFF && result == UMDEV_ABORT);
    CHECK(wr(device, 0, 1, 8) == UMDEV_ABORT && state[0] == 0);
    uint8_t big[64];
    CHECK(umdev_device_access(device, 0, 0, big, 12, 0, 0, 0) == UMDEV_ABORT && big[11] == 0xFF);
    umdev_device_counters(device, &counters);
    CHECK(counters.illegal == 3 && counters.aborted == 0);
    CHECK(rd(device, 14, 4, &result) == ones(4) && result == UMDEV_ABORT);
    CHECK(rd(device, UINT64_MAX - 1, 4, &result) == ones(4) && result == UMDEV_ABORT);
    CHECK(umdev_device_access(device, 7, 0, big, 4, 0, 0, 0) == UMDEV_ABORT);
    CHECK(umdev_device_access(device, 1000, 0, big, 4, 0, 0, 0) == UMDEV_ABORT);
    CHECK(umdev_device_access(device, 0, 0, big, 0, 0, 0, 0) == UMDEV_OK);
    umdev_device_counters(device, &counters);
    CHECK(counters.aborted == 4);

    CHECK(umdev_device_set_region_enabled(device, 0, 0) == 0 && umdev_device_set_region_enabled(device, 5, 0) == -EINVAL);
    CHECK(wr(device, 0, 1, 4) == UMDEV_ABORT && rd(device, 0, 4, NULL) == ones(4));
    CHECK(umdev_device_set_region_enabled(device, 0, 1) == 0);
    CHECK(wr(device, 0, 1, 4) == UMDEV_OK && rd(device, 0, 4, NULL) == 1);
    umdev_device_set_gone(device, 1);
    CHECK(rd(device, 0, 4, &result) == ones(4) && result == UMDEV_GONE && wr(device, 0, 9, 4) == UMDEV_GONE);
    umdev_device_set_gone(device, 0);
    CHECK(rd(device, 0, 4, NULL) == 1);
    umdev_device_free(device);
    umdev_layout_free(layout);
}

static int swap_bytes(void *context, uint64_t offset, void *bytes, uint32_t length, uint32_t flags)
{
    uint8_t *memory = context;
    if (offset >= 8)
        return UMDEV_ABORT;
    for (uint32_t i = 0; i < length; i++) {
        if (flags & UMDEV_WRITE)
            memory[offset + i] = (uint8_t)~((uint8_t *)bytes)[i];
        else
            ((uint8_t *)bytes)[i] = (uint8_t)~memory[offset + i];
    }
    return UMDEV_OK;
}

static void test_areas(void)
{
    umdev_register r = declare(RW, 0x10, 4, 0);
    struct fixture f = make(&r, 1, 0x1000);
    uint8_t window[0x100] = {1, 2, 3, 4, 5, 6, 7, 8, 9}, rom[4] = {7, 7, 7, 7}, memory[16] = {0}, bytes[0x100];
    int result;
    CHECK(umdev_device_add_window(f.device, 0, 0x14, sizeof window, window, 0) == 0);
    CHECK(umdev_device_add_window(f.device, 0, 0x800, 4, rom, UMDEV_AREA_READONLY) == 0);
    CHECK(umdev_device_add_overlay(f.device, 0, 0x400, 16, swap_bytes, memory, 0) == 0);
    CHECK(umdev_device_add_overlay(f.device, 0, 0x0C, 8, swap_bytes, memory, 0) == -EEXIST); /* the register */
    CHECK(umdev_device_add_overlay(f.device, 0, 0x113, 8, swap_bytes, memory, 0) == -EEXIST); /* the window */
    CHECK(umdev_device_add_window(f.device, 0, 0x3FF, 2, window, 0) == -EEXIST);
    CHECK(umdev_device_add_window(f.device, 0, 0xFFF, 2, window, 0) == -EINVAL);
    CHECK(umdev_device_add_window(f.device, 0, UINT64_MAX, 2, window, 0) == -EINVAL);
    CHECK(umdev_device_add_overlay(f.device, 0, 0x700, 0, swap_bytes, memory, 0) == -EINVAL);

    CHECK(umdev_device_access(f.device, 0, 0x14, bytes, 0x100, 0, 0, 0) == UMDEV_OK && !memcmp(bytes, window, 0x100));
    CHECK(wr(f.device, 0x15, 0xBBAA, 2) == UMDEV_OK && window[1] == 0xAA && window[2] == 0xBB);
    CHECK(wr(f.device, 0x800, 1, 4) == UMDEV_OK && rd(f.device, 0x800, 4, NULL) == 0x07070707);
    /* Half register, half window, in one access. */
    CHECK(wr(f.device, 0x10, UINT64_C(0x4444444433333333), 8) == UMDEV_OK);
    CHECK(f.state[0] == 0x33333333 && window[3] == 0x44 && rd(f.device, 0x10, 8, NULL) == UINT64_C(0x4444444433333333));
    CHECK(wr(f.device, 0x400, 0x0F, 1) == UMDEV_OK && memory[0] == 0xF0 && rd(f.device, 0x400, 1, NULL) == 0x0F);
    CHECK(rd(f.device, 0x408, 4, &result) == ones(4) && result == UMDEV_ABORT);
    drop(&f);
}

static umdev_device *asked;
static int context_seen;

static int ask_context(void *context, uint64_t offset, void *bytes, uint32_t length, uint32_t flags)
{
    (void)context, (void)offset, (void)bytes, (void)length, (void)flags;
    context_seen = umdev_device_context(asked);
    return UMDEV_OK;
}

/* Which accesses let their initiator wait: all but posted writes, and configuration writes are never posted. */
static void test_context(void)
{
    static const struct { uint32_t region, flags; int context; } cases[] = {
        {0, 0, UMDEV_CONTEXT_WAITING}, {0, UMDEV_WRITE, UMDEV_CONTEXT_WAITING},
        {0, UMDEV_POSTED, UMDEV_CONTEXT_WAITING}, {0, UMDEV_WRITE | UMDEV_POSTED, UMDEV_CONTEXT_POSTED},
        {7, 0, UMDEV_CONTEXT_WAITING}, {7, UMDEV_WRITE | UMDEV_POSTED, UMDEV_CONTEXT_WAITING}};
    uint8_t byte = 0;
    asked = umdev_device_new();
    for (uint32_t region = 0; region < 8; region += 7) {
        CHECK(umdev_device_add_region(asked, region, 16) == 0);
        CHECK(umdev_device_add_overlay(asked, region, 0, 16, ask_context, NULL, 0) == 0);
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK(umdev_device_access(asked, cases[i].region, 0, &byte, 1, cases[i].flags, 0, 0) == UMDEV_OK);
        CHECK(context_seen == cases[i].context && umdev_device_context(asked) == UMDEV_CONTEXT_NONE);
    }
    umdev_device_free(asked);
}

static void test_unmodelled(void)
{
    umdev_register r = declare(RW, 4, 4, 0);
    struct fixture f = make(&r, 1, UINT64_C(1) << 20);
    umdev_unmodelled entries[3];
    uint64_t lost;
    int result;
    CHECK(rd(f.device, 8, 4, &result) == 0 && result == UMDEV_UNHANDLED && wr(f.device, 8, 77, 4) == UMDEV_UNHANDLED);
    CHECK(rd(f.device, 0, 8, &result) == 0 && result == UMDEV_OK); /* half of it is declared */
    CHECK(umdev_device_unmodelled(f.device, entries, 3, &lost) == 2 && lost == 0);
    const umdev_unmodelled *e = entries[0].offset == 8 ? &entries[0] : &entries[1];
    CHECK(e->offset == 8 && e->reads == 1 && e->writes == 1 && e->value == 77 && e->length == 4 && e->region == 0);
    for (uint64_t offset = 16; offset < 16 + 8 * 5000; offset += 8)
        rd(f.device, offset, 4, NULL);
    CHECK(umdev_device_unmodelled(f.device, entries, 3, &lost) == 4096 && lost == 5002 - 4096);
    umdev_device_forget_unmodelled(f.device);
    CHECK(umdev_device_unmodelled(f.device, entries, 3, &lost) == 0 && lost == 0);
    drop(&f);
}

/* ---- native handlers, pending accesses ---- */

static int native(void *device, const umdev_access *access, uint64_t *value)
{
    CHECK(access->header.size == sizeof *access && access->space == 0);
    if (access->offset == 0) { /* counts, with the lock held */
        CHECK(umdev_device_held(device));
        CHECK(umdev_device_context(device) == (access->flags & UMDEV_POSTED ? UMDEV_CONTEXT_POSTED : UMDEV_CONTEXT_WAITING));
        *value += 1;
        return UMDEV_OK;
    }
    if (access->offset == 4) { /* lock-free: index and byte mask */
        CHECK(!umdev_device_held(device));
        *value = access->byte_mask;
        return UMDEV_OK;
    }
    if (access->offset == 8) {
        *value = 0x70C0 + (access->flags & UMDEV_WRITE);
        return UMDEV_PENDING;
    }
    return (int)access->index; /* an array whose element n answers result n */
}

static const umdev_register natives[] = {
    {.offset = 0, .count = 1, .width = 4, .on_read = UMDEV_CALL_NATIVE, .on_write = UMDEV_CALL_NATIVE, .native = native},
    {.offset = 4, .count = 1, .width = 4, .cell = 4, .flags = UMDEV_REGISTER_LOCKLESS, .on_read = UMDEV_CALL_NATIVE,
     .on_write = UMDEV_CALL_NATIVE, .native = native},
    {.offset = 8, .count = 1, .width = 4, .cell = 8, .on_read = UMDEV_CALL_NATIVE, .on_write = UMDEV_CALL_NATIVE,
     .native = native},
    {.offset = 0x40, .stride = 4, .count = 8, .width = 4, .cell = 16, .on_read = UMDEV_CALL_NATIVE,
     .on_write = UMDEV_CALL_NATIVE, .native = native}};

static void *complete_soon(void *device)
{
    while (umdev_device_complete(device, 0x70C0, 0xCAFE) == -ENOENT)
        usleep(1000);
    return NULL;
}

static void *end_soon(void *device)
{
    usleep(20000);
    umdev_device_set_gone(device, 1);
    return NULL;
}

static atomic_int completions;
static atomic_int completion_result;

static void completed(void *context, int result)
{
    (void)context;
    atomic_store(&completion_result, result);
    atomic_fetch_add(&completions, 1);
}

static void test_native(void)
{
    struct fixture f = make(natives, 4, 0x1000);
    uint64_t value = 0;
    pthread_t thread;
    int result;
    CHECK(rd(f.device, 0, 4, &result) == 1 && result == UMDEV_OK);
    CHECK(umdev_device_access(f.device, 0, 0, &value, 4, UMDEV_WRITE | UMDEV_POSTED, 0, 0) == UMDEV_OK);
    CHECK(umdev_device_context(f.device) == UMDEV_CONTEXT_NONE);
    CHECK(rd(f.device, 4, 4, NULL) == 15 && rd(f.device, 6, 2, NULL) == 0 && rd(f.device, 4, 1, NULL) == 1);
    for (int n = 2; n < 8; n++) {
        int want = n <= UMDEV_GONE ? n : UMDEV_FAULT;
        uint64_t bytes = want == UMDEV_UNHANDLED ? 0 : ones(4);
        CHECK(rd(f.device, 0x40 + 4 * (uint64_t)n, 4, &result) == bytes && result == want);
        CHECK(wr(f.device, 0x40 + 4 * (uint64_t)n, 1, 4) == want);
    }

    pthread_create(&thread, NULL, complete_soon, f.device);
    CHECK(rd(f.device, 9, 2, &result) == 0xCA && result == UMDEV_OK);
    pthread_join(thread, NULL);
    CHECK(umdev_device_complete(f.device, 0x70C0, 0) == -ENOENT);

    CHECK(umdev_device_start(f.device, 0, 8, &value, 4, 0, 0, 0, completed, NULL) == UMDEV_PENDING && completions == 0);
    uint64_t other = 0;
    CHECK(umdev_device_start(f.device, 0, 8, &other, 4, 0, 0, 0, completed, NULL) == UMDEV_FAULT); /* token in use */
    CHECK(umdev_device_complete(f.device, 0x70C0, 0x1234) == 0 && completions == 1 && completion_result == UMDEV_OK);
    CHECK((uint32_t)value == 0x1234);
    CHECK(umdev_device_start(f.device, 0, 8, &value, 4, 0, 0, 0, completed, NULL) == UMDEV_PENDING);
    umdev_device_abort_pending(f.device);
    CHECK(completions == 2 && completion_result == UMDEV_ABORT && (uint32_t)value == UINT32_MAX);

    pthread_create(&thread, NULL, end_soon, f.device);
    CHECK(rd(f.device, 8, 4, &result) == ones(4) && result == UMDEV_GONE);
    pthread_join(thread, NULL);
    drop(&f);
}

static int intercept(void *context, uint32_t region, uint64_t offset, void *bytes, uint32_t length, uint32_t flags)
{
    (void)region, (void)length;
    if (offset != *(uint64_t *)context)
        return -1;
    if (!(flags & UMDEV_WRITE))
        memset(bytes, 0x42, length);
    return UMDEV_OK;
}

static void test_lock_and_intercept(void)
{
    umdev_register r[] = {declare(RW, 0, 4, 0), declare(RW, 4, 4, 4)};
    r[1].on_write = UMDEV_CALL_VALUE;
    struct fixture f = make(r, 2, 64);
    CHECK(!umdev_device_held(f.device) && umdev_device_lock(f.device) == 0 && umdev_device_held(f.device));
    CHECK(umdev_device_lock(f.device) == -EDEADLK && umdev_device_trylock(f.device) == 0);
    CHECK(wr(f.device, 0, 5, 4) == UMDEV_OK && wr(f.device, 4, 5, 4) == -EDEADLK);
    umdev_device_unlock(f.device);
    CHECK(umdev_device_trylock(f.device) == 1);
    umdev_device_unlock(f.device);

    uint64_t at = 0;
    umdev_device_set_intercept(f.device, intercept, &at);
    CHECK(rd(f.device, 0, 4, NULL) == 0x42424242 && wr(f.device, 0, 9, 4) == UMDEV_OK && rd(f.device, 4, 4, NULL) == 0);
    umdev_device_set_intercept(f.device, NULL, NULL);
    CHECK(rd(f.device, 0, 4, NULL) == 5);
    drop(&f);
}

/* ---- races ---- */

enum { ROUNDS = 20000, THREADS = 4 };

struct race {
    struct fixture *f;
    uint32_t number;
};

/* Thread n counts in byte n of a plain register by split writes, and stores all of another; both under fire. */
static void *hammer(void *context)
{
    const struct race *race = context;
    umdev_device *device = race->f->device;
    for (uint32_t i = 1; i <= ROUNDS; i++) {
        CHECK(wr(device, race->number, i & 0xFF, 1) == UMDEV_OK);
        CHECK(rd(device, race->number, 1, NULL) == (i & 0xFF));
        CHECK(wr(device, 4, i, 4) == UMDEV_OK);
        CHECK(wr(device, 8, UINT64_C(1) << race->number, 4) == UMDEV_OK); /* W1S */
        CHECK(wr(device, 12, i, 4) == UMDEV_OK);                          /* handler, counted under the lock */
    }
    /* Nobody else changes this byte: whatever takes it back shows in the value before the next update. */
    uintptr_t cell = (uintptr_t)&((uint32_t *)race->f->state)[4];
    for (uint32_t i = 1; i <= 50 * ROUNDS; i++) {
        uint64_t before = umdev_cell_update(cell, 4, UINT64_C(0xFF) << 8 * race->number,
                                            (uint64_t)(i & 0xFF) << 8 * race->number);
        CHECK(((before >> 8 * race->number) & 0xFF) == ((i - 1) & 0xFF));
    }
    return NULL;
}

static void *toggle(void *context)
{
    umdev_device *device = context;
    for (int i = 0; i < 200; i++) {
        umdev_counters counters;
        uint64_t lost;
        umdev_device_set_region_enabled(device, 1, i & 1);
        umdev_device_counters(device, &counters);
        umdev_device_unmodelled(device, NULL, 0, &lost);
    }
    return NULL;
}

static void test_race(void)
{
    umdev_register r[] = {declare(RW, 0, 4, 0), declare(RW, 4, 4, 4), declare(W1S, 8, 4, 8), declare(RW, 12, 4, 12),
                          declare(RO, 16, 4, 16)};
    r[3].on_write = UMDEV_CALL_OLD;
    struct fixture f = make(r, 5, 64);
    CHECK(umdev_device_add_region(f.device, 1, 64) == 0);
    pthread_t threads[THREADS + 1];
    struct race races[THREADS];
    for (uint32_t i = 0; i < THREADS; i++) {
        races[i] = (struct race){&f, i};
        pthread_create(&threads[i], NULL, hammer, &races[i]);
    }
    pthread_create(&threads[THREADS], NULL, toggle, f.device);
    for (uint32_t i = 0; i <= THREADS; i++)
        pthread_join(threads[i], NULL);
    CHECK(rd(f.device, 0, 4, NULL) == (ROUNDS & 0xFF) * UINT32_C(0x01010101));
    CHECK(rd(f.device, 16, 4, NULL) == (50 * ROUNDS & 0xFF) * UINT32_C(0x01010101));
    CHECK(rd(f.device, 8, 4, NULL) == 15 && seen.writes == THREADS * ROUNDS);
    umdev_counters counters;
    umdev_device_counters(f.device, &counters);
    CHECK(counters.writes == THREADS * ROUNDS * 4);
    drop(&f);
}

/* ---- trace ---- */

static void *trace_some(void *device)
{
    for (uint64_t i = 0; i < 100; i++)
        wr(device, 0, i, 4);
    return NULL;
}

static void test_trace(void)
{
    umdev_register r = declare(RW, 0, 4, 0);
    struct fixture f = make(&r, 1, 64);
    pthread_t thread;
    int descriptors[8];
    CHECK(umdev_trace_start(0) == -EINVAL && umdev_trace_start(60) == 0 && umdev_trace_start(60) == -EBUSY);
    trace_some(f.device);
    pthread_create(&thread, NULL, trace_some, f.device);
    pthread_join(thread, NULL);
    umdev_trace_stop();
    trace_some(f.device);
    CHECK(umdev_trace_rings(descriptors, 8) == 2 && umdev_trace_dropped() == 0);
    for (int i = 0; i < 2; i++) {
        CHECK(ftruncate(descriptors[i], 0) == -1);
        const umdev_trace_header *header = mmap(NULL, 8192, PROT_READ, MAP_SHARED, descriptors[i], 0);
        CHECK(header != MAP_FAILED && header->capacity == 64 && header->head == 100 && header->lost == 36);
        const umdev_trace_record *records = (const void *)((const uint8_t *)header + header->first);
        for (uint64_t n = 36; n < 100; n++)
            CHECK(records[n & 63].sequence == n + 1 && records[n & 63].value == n && records[n & 63].length == 4);
        munmap((void *)(uintptr_t)header, 8192);
    }
    CHECK(umdev_trace_start(16) == 0 && umdev_trace_rings(descriptors, 8) == 0);
    trace_some(f.device);
    CHECK(umdev_trace_rings(descriptors, 8) == 1);
    umdev_trace_stop();
    umdev_trace_drop();
    CHECK(umdev_trace_rings(descriptors, 8) == 0);
    drop(&f);
}

/* `device_test bench`: ns per access, for people. */
static void bench(void)
{
    umdev_register r[] = {declare(RW, 0, 4, 0), declare(W1C, 4, 4, 4), declare(RW, 8, 4, 8)};
    r[2].flags = UMDEV_REGISTER_MASKED;
    struct fixture f = make(r, 3, 4096);
    static const struct { const char *name; uint64_t offset; uint32_t length; int write; } work[] = {
        {"plain read", 0, 4, 0}, {"plain write", 0, 4, 1}, {"partial write", 0, 1, 1}, {"W1C write", 4, 4, 1},
        {"masked write", 8, 4, 1}, {"unknown read", 2048, 4, 0}};
    for (size_t i = 0; i < sizeof work / sizeof *work; i++) {
        double best = 1e9;
        for (int round = 0; round < 9; round++) {
            struct timespec a, b;
            uint32_t value = 5;
            clock_gettime(CLOCK_MONOTONIC, &a);
            for (int n = 0; n < 200000; n++)
                umdev_device_access(f.device, 0, work[i].offset, &value, work[i].length, work[i].write ? UMDEV_WRITE : 0, 0, 0);
            clock_gettime(CLOCK_MONOTONIC, &b);
            double ns = ((double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec)) / 200000;
            best = ns < best ? ns : best;
        }
        printf("%-14s %6.1f ns\n", work[i].name, best);
    }
    drop(&f);
}

int main(int count, char **arguments)
{
    if (count > 1 && strcmp(arguments[1], "bench") == 0) {
        bench();
        return 0;
    }
    test_kinds();
    test_handlers();
    test_masked_and_commit();
    test_layout();
    test_sizes_bounds_gates();
    test_areas();
    test_context();
    test_unmodelled();
    test_native();
    test_lock_and_intercept();
    test_race();
    test_trace();
    puts("ok");
    return 0;
}
