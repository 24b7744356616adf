/* Dispatch without Python: every access kind x width x split, handlers, the register map, gates, areas. */
#include <stdbool.h>
#include <time.h>

#include "device_fixture.h"

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
            umdev_register two[] = {declare((enum kind)kind, 16, width, 0),
                                    declare((enum kind)kind, 16 + width, width, 8)};
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
                        uint8_t want =
                            touched ? byte_written((enum kind)kind, before[i], value[16 + i - at]) : before[i];
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

    CHECK(umdev_device_set_region_enabled(device, 0, 0) == 0 &&
          umdev_device_set_region_enabled(device, 5, 0) == -EINVAL);
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

static int answers; /* what the C handler below returns */
static uint64_t told[8]; /* what it was told; no padding, which nobody sets */

static int native_handler(void *device, const umdev_access *access, uint64_t *value)
{
    (void)device;
    uint64_t members[] = {access->region, access->flags, access->offset, access->width,
                          access->byte_mask, access->index, access->initiator, access->space};
    memcpy(told, members, sizeof told);
    seen.old = *value;
    *value ^= UINT64_C(0xA5A5A5A5A5A5A5A5);
    return answers;
}

static int let_pass(void *context, uint32_t region, uint64_t offset, void *bytes, uint32_t length, uint32_t flags)
{
    (void)context, (void)region, (void)offset, (void)bytes, (void)length, (void)flags;
    return -1;
}

struct outcome {
    uint64_t result, bytes, cells[4], value, old, told[8], unmodelled;
    umdev_counters counters;
};

static struct outcome one_access(const umdev_register *r, bool write, bool long_way)
{
    struct fixture f = make(r, 1, 0x100);
    struct outcome seen_here = {.bytes = UINT64_C(0x1122334455667788)};
    uint64_t lost, offset = r->offset + (r->count - 1) * r->stride;
    memset(told, 0, sizeof told);
    for (int i = 0; i < 4; i++)
        f.state[i] = UINT64_C(0x0F1E2D3C4B5A6978);
    seen.answer = UINT64_C(0xCAFEF00DDEADBEEF);
    seen.fail = answers == UMDEV_FAULT;
    umdev_device_set_intercept(f.device, long_way ? let_pass : NULL, NULL);
    seen_here.result = (uint64_t)umdev_device_access(f.device, 0, offset, &seen_here.bytes, r->width,
                                                     write ? UMDEV_WRITE : 0, 5, 6);
    memcpy(seen_here.cells, f.state, sizeof seen_here.cells);
    seen_here.value = seen.value;
    seen_here.old = seen.old;
    memcpy(seen_here.told, told, sizeof told);
    umdev_device_counters(f.device, &seen_here.counters);
    seen_here.unmodelled = umdev_device_unmodelled(f.device, NULL, 0, &lost);
    CHECK(umdev_device_trylock(f.device) == 1); /* it was given back */
    umdev_device_unlock(f.device);
    drop(&f);
    return seen_here;
}

/* An access to all of a register with a handler goes a short way, unless an intercept looks at it: with the same
 * end. */
static void test_both_ways(void)
{
    static const int results[] = {UMDEV_OK, UMDEV_UNHANDLED, UMDEV_ABORT, UMDEV_FAULT, UMDEV_GONE};
    for (int which = 0; which < 4 * 2 * 2 * 2 * 2 * KINDS; which++) {
        bool native = which & 1, write = which & 2, lockless = which & 4, many = which & 8;
        uint32_t width = 1u << (which >> 4 & 3);
        umdev_register r = declare((enum kind)(which >> 6), 0x10, width, 8);
        r.count = many ? 3 : 1;
        r.stride = many ? 16 : 0;
        r.flags = native && lockless ? UMDEV_REGISTER_LOCKLESS : 0;
        r.on_read = r.on_write = native ? UMDEV_CALL_NATIVE : UMDEV_CALL_VALUE;
        r.native = native_handler;
        for (size_t i = 0; i < sizeof results / sizeof *results; i++) {
            answers = results[i];
            struct outcome quick = one_access(&r, write, false), slow = one_access(&r, write, true);
            CHECK(memcmp(&quick, &slow, sizeof quick) == 0);
            CHECK(!native || (quick.told[5] == r.count - 1 && quick.told[6] == 5 && quick.told[7] == 6));
            CHECK(!native || quick.result == (uint64_t)answers);
        }
    }
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
                umdev_device_access(f.device, 0, work[i].offset, &value, work[i].length,
                                    work[i].write ? UMDEV_WRITE : 0, 0, 0);
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
    test_both_ways();
    puts("ok");
    return 0;
}
