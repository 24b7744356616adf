/* The engine's C alone, for the sanitizers: garbage in every number, memory of every kind, threads that end things. */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "softgpu.h"
#include "functions.h"

#include "check.h"

/* ---- a device: one map with pointers, one read-only, one by message, each in its own allocation ---- */

enum { MAPS = 3, SIZE = 64 * 4096 };
static const uint64_t bases[MAPS] = {0x100000, 0x100000 + SIZE, 0x300000};
static uint8_t *maps[MAPS];
static atomic_int readers;
static atomic_int messages;

static umdev_memory *fake_memory(umdev_device *device)
{
    return (umdev_memory *)device;
}

static const umdev_table *fake_enter(umdev_memory *memory, uint32_t *ticket)
{
    *ticket = 7;
    atomic_fetch_add(&readers, 1);
    return (const umdev_table *)memory;
}

static void fake_exit(umdev_memory *memory, uint32_t ticket)
{
    (void)memory;
    CHECK(ticket == 7);
    atomic_fetch_sub(&readers, 1);
}

static int fake_lookup(const umdev_table *table, uint32_t space, uint64_t iova, umdev_span *ret)
{
    (void)table;
    CHECK(space == 0);
    for (unsigned i = 0; i < MAPS; i++)
        if (iova - bases[i] < SIZE) {
            *ret = (umdev_span){.host = i == 2 ? NULL : maps[i] + (iova - bases[i]),
                                .length = SIZE - (iova - bases[i]),
                                .protection = i == 1 ? UMDEV_READABLE : UMDEV_READABLE | UMDEV_WRITABLE};
            return 0;
        }
    return -EFAULT;
}

static int message(uint64_t iova, void *bytes, uint64_t length, int write)
{
    CHECK(iova >= bases[2] && iova - bases[2] < SIZE);
    uint64_t offset = iova - bases[2];
    if (length > SIZE - offset)
        return -EFAULT;
    atomic_fetch_add(&messages, 1);
    if (write)
        memcpy(maps[2] + offset, bytes, length);
    else
        memcpy(bytes, maps[2] + offset, length);
    return 0;
}

static int fake_read(umdev_memory *memory, uint32_t space, uint64_t iova, void *bytes, uint64_t length)
{
    (void)memory, (void)space;
    return message(iova, bytes, length, 0);
}

static int fake_write(umdev_memory *memory, uint32_t space, uint64_t iova, const void *bytes, uint64_t length)
{
    (void)memory, (void)space;
    return message(iova, (void *)(uintptr_t)bytes, length, 1);
}

static const umdev_api fake = {
    .header = {sizeof(umdev_api), UMDEV_ABI_MAJOR, UMDEV_ABI_MINOR},
    .memory = fake_memory,
    .reader_enter = fake_enter,
    .reader_exit = fake_exit,
    .lookup = fake_lookup,
    .dma_read = fake_read,
    .dma_write = fake_write,
};

static uint64_t seed = 0x9E3779B97F4A7C15u;

static uint64_t random64(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

/* Small, near a border, or anything. */
static uint64_t number(void)
{
    switch (random64() % 6) {
    case 0:
        return random64() % 64;
    case 1:
        return random64() % 8192;
    case 2:
        return bases[random64() % MAPS] + random64() % (SIZE + 64) - 32;
    case 3:
        return (uint64_t)0 - random64() % 8192;
    case 4:
        return 1ull << (random64() % 64);
    default:
        return random64();
    }
}

/* ---- the same blit over memory with pointers and over memory by message ---- */

static void run(softgpu_blit *blit, int64_t units)
{
    softgpu_fault fault;
    int result;
    CHECK(softgpu_blit_begin(blit) == SOFTGPU_OK);
    do {
        softgpu_budget budget = {.units = units};
        result = softgpu_blit_step(blit, &budget, &fault);
    } while (result == SOFTGPU_MORE);
    CHECK(result == SOFTGPU_OK);
    CHECK(atomic_load(&readers) == 0);
}

static void test_by_message(void)
{
    softgpu_port *port = softgpu_port_new(&fake, (umdev_device *)1);
    softgpu_space *space = softgpu_space_linear(port, SOFTGPU_SYSTEM, 0, UINT64_MAX);
    for (unsigned turn = 0; turn < 200; turn++) {
        for (unsigned i = 0; i < SIZE; i++)
            maps[0][i] = maps[2][i] = (uint8_t)random64();
        uint64_t pitch = 512 * (1 + random64() % 3);
        int64_t x = (int64_t)(random64() % 200), y = (int64_t)(random64() % 40);
        int64_t source_x = (int64_t)(random64() % 200), source_y = (int64_t)(random64() % 40);
        softgpu_blit blit = {
            .x = x, .y = y, .source_x = source_x, .source_y = source_y,
            .width = random64() % 100, .height = random64() % 20,
            .pixel_bytes = 1u << random64() % 2, .rop = (uint32_t)(random64() & 0xFF),
            .flags = random64() & (SOFTGPU_BRUSH | SOFTGPU_MASKED),
        };
        uint32_t tiling = (uint32_t)(random64() % 4);
        for (unsigned i = 0; i < sizeof(blit.brush); i++)
            blit.brush[i] = (uint8_t)random64();
        memcpy(blit.color, blit.brush, 16);
        memcpy(blit.write_mask, blit.brush + 16, 16);
        for (unsigned kind = 0; kind <= 2; kind += 2) {
            softgpu_surface surface = {
                .space = space, .address = bases[kind], .pitch = (int64_t)pitch, .tiling = tiling};
            blit.target = blit.source = surface;
            run(&blit, turn % 2 ? 300 : 1 << 30);
        }
        CHECK(memcmp(maps[0], maps[2], SIZE) == 0);
    }
    CHECK(atomic_load(&messages));
    softgpu_space_free(space);
    softgpu_port_free(port);
}

/* ---- garbage ---- */

static void test_garbage(void)
{
    softgpu_masks masks[3];
    for (unsigned i = 0; i < 3; i++)
        masks[i] = (softgpu_masks){.present = 1, .writable = 2, .leaf = i == 2 ? UINT64_MAX : 0x80,
                                   .table = 0x3FF000, .page = 0x3FF000, .page_shift = 12 + 4 * (2 - i), .next = i + 1};
    softgpu_format format = {.address_bits = 24, .levels = 3,
                             .level = {{20, 4, 8, 8}, {16, 4, 8, 8}, {12, 4, 8, 8}}};
    uint8_t *local = malloc(5000);
    CHECK(local);
    memset(local, 0x5A, 5000);
    softgpu_port *port = softgpu_port_new(&fake, (umdev_device *)1);
    CHECK(softgpu_port_set_memory(port, SOFTGPU_LOCAL, local, 5000, 1) == SOFTGPU_OK);
    CHECK(softgpu_port_set_memory(port, SOFTGPU_SYSTEM, local, 5000, 1) == SOFTGPU_INVALID);
    CHECK(softgpu_port_set_memory(port, SOFTGPU_TARGETS, local, 5000, 1) == SOFTGPU_INVALID);
    CHECK(!softgpu_space_linear(port, SOFTGPU_TARGETS, 0, 1));
    CHECK(!softgpu_space_linear(port, SOFTGPU_LOCAL, 0, 0));
    CHECK(!softgpu_space_linear(port, SOFTGPU_LOCAL, UINT64_MAX, 2));
    softgpu_space *spaces[] = {
        softgpu_space_linear(port, SOFTGPU_SYSTEM, 0, UINT64_MAX),
        softgpu_space_linear(port, SOFTGPU_LOCAL, 0, 1 << 20),
        softgpu_space_linear(port, SOFTGPU_LOCAL, 17, 1 << 20),
        softgpu_space_paged(port, &format, softgpu_decode_masks, masks),
        softgpu_space_paged(port, &format, softgpu_decode_masks, masks),
    };
    softgpu_space_set_root(spaces[4], SOFTGPU_SYSTEM, bases[2]); /* tables by message */
    unsigned drawn = 0;
    for (unsigned turn = 0; turn < 30000; turn++) {
        if (turn % 64 == 0) {
            softgpu_space_set_root(spaces[3], (uint32_t)(random64() % 5), number());
            for (unsigned i = 0; i < 64; i++) {
                uint64_t entry = (number() & ~0xFFFull) | (random64() & 0x83);
                memcpy(maps[random64() % 2 * 2] + random64() % 512 * 8, &entry, 8);
            }
        }
        softgpu_blit blit;
        for (unsigned i = 0; i < sizeof(blit) / 8; i++)
            ((uint64_t *)(void *)&blit)[i] = number();
        for (unsigned i = 0; i < 2; i++) {
            softgpu_surface *surface = i ? &blit.source : &blit.target;
            surface->space = spaces[random64() % 5];
            surface->tiling = (uint32_t)(random64() % 5);
            surface->block_rows = (uint16_t)(random64() % 7);
            surface->block_layers = (uint16_t)(random64() % 7);
            if (random64() % 4) {
                surface->pitch = (int64_t)(512 * (random64() % 4));
                surface->address &= ~0xFFFull;
            }
        }
        blit.pixel_bytes = (uint32_t)(random64() % 18);
        blit.rop = (uint32_t)(random64() % 257);
        blit.flags = (uint32_t)(random64() % 9);
        if (random64() % 4) { /* else garbage all through, which is mostly refused */
            blit.width %= 300;
            blit.height %= 300;
            int64_t *places[] = {&blit.x, &blit.y, &blit.source_x, &blit.source_y, &blit.clip_x, &blit.clip_y,
                                 &blit.clip_x2, &blit.clip_y2, &blit.brush_x, &blit.brush_y};
            for (unsigned i = 0; i < sizeof(places) / sizeof(*places); i++)
                *places[i] = (int64_t)(random64() % 400) - 50;
        }
        softgpu_fault fault = {.reason = 0};
        uint8_t row[300];
        uint64_t length = random64() % sizeof(row);
        int moved = turn % 2 ? softgpu_surface_read(&blit.source, blit.x, blit.y, row, length, &fault)
                             : softgpu_surface_write(&blit.source, blit.x, blit.y, row, length, &fault);
        CHECK(moved == SOFTGPU_OK || fault.reason == (uint32_t)moved);
        int result = softgpu_blit_begin(&blit);
        CHECK(result == SOFTGPU_OK || result == SOFTGPU_INVALID);
        for (unsigned steps = 0; steps < 4; steps++) {
            softgpu_budget budget = {.units = (int64_t)(random64() % 20000)};
            int step = softgpu_blit_step(&blit, &budget, &fault);
            CHECK(result == SOFTGPU_OK || step == SOFTGPU_INVALID);
            CHECK(step <= SOFTGPU_WOULD_DEADLOCK && atomic_load(&readers) == 0);
            CHECK(step <= SOFTGPU_MORE || fault.reason == (uint32_t)step);
            drawn += step == SOFTGPU_OK;
            if (step != SOFTGPU_MORE)
                break;
        }
        uint8_t bytes[300];
        softgpu_space *space = spaces[random64() % 5];
        uint64_t address = number();
        softgpu_space_read(space, address, bytes, random64() % sizeof(bytes), &fault);
        softgpu_space_write(space, address, bytes, random64() % sizeof(bytes), NULL);
    }
    CHECK(drawn > 1000);
    for (unsigned i = 0; i < 5; i++)
        softgpu_space_free(spaces[i]);
    softgpu_port_close(port);
    softgpu_port_free(port);
    free(local);
}

/* ---- a decoder that makes mistakes ---- */

static void wild(void *context, uint32_t level, uint64_t entry, softgpu_entry *ret)
{
    (void)level, (void)entry;
    *(uint64_t *)context = *(uint64_t *)context * 6364136223846793005u + 1442695040888963407u;
    uint64_t bits = *(uint64_t *)context >> 20;
    for (unsigned i = 0; i < 2; i++, bits >>= 16)
        ret[i] = (softgpu_entry){.kind = bits & 3, .target = bits >> 2 & 7, .address = bases[0] + (bits & 0xF000),
                                 .level = bits >> 5 & 7, .shift = bits >> 8 & 63, .writable = bits >> 14 & 1};
}

static void test_wild_decoder(void)
{
    uint64_t context = 1;
    softgpu_format format = {.address_bits = 64, .levels = 6,
                             .level = {{58, 6, 8, 8}, {48, 9, 8, 8}, {39, 9, 8, 8}, {30, 9, 8, 8}, {21, 9, 8, 8},
                                       {12, 9, 8, 8}}};
    softgpu_port *port = softgpu_port_new(&fake, (umdev_device *)1);
    softgpu_space *space = softgpu_space_paged(port, &format, wild, &context);
    softgpu_space_set_root(space, SOFTGPU_SYSTEM, bases[0]);
    for (unsigned turn = 0; turn < 50000; turn++) {
        softgpu_run found;
        int result = softgpu_space_translate(space, random64(), (int)(turn & 1), &found, NULL);
        CHECK(result != SOFTGPU_OK || (found.target < SOFTGPU_TARGETS && found.length));
        softgpu_space_invalidate(space);
    }
    softgpu_space_free(space);
    softgpu_port_free(port);
}

/* ---- a second table behind the same entry (GF100's small and large pages) ---- */

static void two_tables(void *context, uint32_t level, uint64_t entry, softgpu_entry *ret)
{
    (void)context;
    if (level == 0) {
        ret[0] = (softgpu_entry){.kind = SOFTGPU_TABLE, .address = bases[0] + 4096, .level = 1};
        ret[1] = (softgpu_entry){.kind = SOFTGPU_TABLE, .address = bases[0] + 8192, .level = 2};
    } else if (entry & 1) {
        ret[0] = (softgpu_entry){.kind = SOFTGPU_PAGE, .address = entry & ~0xFFFull, .shift = level == 1 ? 12 : 17};
    }
}

static void test_two_tables(void)
{
    softgpu_format format = {.address_bits = 40, .levels = 3,
                             .level = {{27, 13, 8, 8}, {12, 15, 8, 8}, {17, 10, 8, 8}}};
    softgpu_port *port = softgpu_port_new(&fake, (umdev_device *)1);
    softgpu_space *space = softgpu_space_paged(port, &format, two_tables, NULL);
    uint64_t small = bases[0] | 1, large = 0x40000 | 1;
    softgpu_run found;
    softgpu_fault fault;
    memset(maps[0], 0, SIZE);
    memcpy(maps[0] + 4096 + 8 * 3, &small, 8);
    memcpy(maps[0] + 8192 + 8 * 1, &large, 8);
    softgpu_space_set_root(space, SOFTGPU_SYSTEM, bases[0]);
    CHECK(softgpu_space_translate(space, 0x3010, 0, &found, &fault) == SOFTGPU_OK);
    CHECK(found.address == bases[0] + 0x10 && found.length == 4096 - 0x10);
    CHECK(softgpu_space_translate(space, 0x21234, 0, &found, &fault) == SOFTGPU_OK);
    CHECK(found.address == 0x41234 && found.length == 0x20000 - 0x1234);
    CHECK(softgpu_space_translate(space, 0x21234, 1, &found, &fault) == SOFTGPU_NOT_PERMITTED);
    memcpy(maps[0] + 4096 + 8 * 0x22, &small, 8); /* beside the large page, and inside of it: the first table counts */
    CHECK(softgpu_space_translate(space, 0x22000, 0, &found, &fault) == SOFTGPU_OK && found.address == bases[0]);
    CHECK(softgpu_space_translate(space, 0x23000, 0, &found, &fault) == SOFTGPU_OK && found.address == 0x43000);
    CHECK(softgpu_space_translate(space, 0x4000, 0, &found, &fault) == SOFTGPU_NOT_PRESENT);
    CHECK(fault.level == 2);
    softgpu_space_free(space);
    softgpu_port_free(port);
}

/* ---- threads ---- */

typedef struct shared {
    softgpu_space *space;
    softgpu_port *port;
    uint8_t *local;
    atomic_int stop;
    atomic_int started;
} shared;

static void *draw_on(void *context)
{
    shared *s = context;
    softgpu_fault fault;
    int result = SOFTGPU_OK;
    while (result != SOFTGPU_CLOSED) {
        softgpu_blit blit = {
            .target = {.space = s->space, .pitch = 100}, .width = 10, .height = 10, .pixel_bytes = 4, .rop = 0xF0};
        softgpu_budget budget = {.units = 1 << 20};
        CHECK(softgpu_blit_begin(&blit) == SOFTGPU_OK);
        result = softgpu_blit_step(&blit, &budget, &fault);
        CHECK(result == SOFTGPU_OK || result == SOFTGPU_NOT_PRESENT || result == SOFTGPU_CLOSED);
        atomic_fetch_add(&s->started, 1);
    }
    return NULL;
}

static void *invalidate(void *context)
{
    shared *s = context;
    while (!atomic_load(&s->stop)) {
        softgpu_space_invalidate(s->space);
        softgpu_space_set_root(s->space, SOFTGPU_TABLES, 0);
    }
    return NULL;
}

/* After the port is closed its memory is freed at once: a late store is a use after free. */
static void test_close_under_threads(void)
{
    softgpu_masks masks = {.present = 1, .leaf = UINT64_MAX, .page = 0xF000, .page_shift = 12, .target = SOFTGPU_LOCAL};
    softgpu_format format = {.address_bits = 16, .levels = 1, .level = {{12, 4, 8, 8}}};
    for (unsigned turn = 0; turn < 20; turn++) {
        shared s = {.port = softgpu_port_new(&fake, (umdev_device *)1), .local = malloc(4096)};
        static uint64_t table[16] = {1};
        softgpu_port_set_memory(s.port, SOFTGPU_LOCAL, s.local, 4096, 1);
        softgpu_port_set_memory(s.port, SOFTGPU_TABLES, (uint8_t *)table, sizeof(table), 0);
        s.space = softgpu_space_paged(s.port, &format, softgpu_decode_masks, &masks);
        pthread_t threads[2];
        /* One that draws: two would race for the same pixels, as two engines may. */
        CHECK(!pthread_create(&threads[0], NULL, draw_on, &s));
        CHECK(!pthread_create(&threads[1], NULL, invalidate, &s));
        while (atomic_load(&s.started) < 5)
            ;
        softgpu_port_close(s.port);
        free(s.local);
        atomic_store(&s.stop, 1);
        for (unsigned i = 0; i < 2; i++)
            pthread_join(threads[i], NULL);
        softgpu_space_free(s.space);
        softgpu_port_free(s.port);
    }
}

static void test_budgets(void)
{
    softgpu_budget budget = {.units = 1};
    CHECK(softgpu_budget_left(&budget));
    budget.deadline_ns = UINT64_MAX;
    CHECK(softgpu_budget_left(&budget));
    softgpu_budget_expire(&budget);
    CHECK(!softgpu_budget_left(&budget));
    budget.deadline_ns = 0;
    softgpu_budget_stop(&budget);
    CHECK(!softgpu_budget_left(&budget));
    budget = (softgpu_budget){.units = -3};
    CHECK(!softgpu_budget_left(&budget));
    CHECK(softgpu_api_fits(softgpu_get_api()));
}

int main(void)
{
    for (unsigned i = 0; i < MAPS; i++) {
        maps[i] = malloc(SIZE);
        CHECK(maps[i]);
        memset(maps[i], 0, SIZE);
    }
    test_budgets();
    test_bells();
    test_two_tables();
    test_wild_decoder();
    test_by_message();
    test_garbage();
    test_close_under_threads();
    for (unsigned i = 0; i < MAPS; i++)
        free(maps[i]);
    puts("ok");
    return 0;
}
