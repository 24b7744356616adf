/* Registers that C answers alone, for the sanitizers: a driver and an engine that do anything, under one lock. */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "softgpu.h"

#include "gvt_decls.h"
#include "gvt_test.h"

enum { ROUNDS = 100000, MASTER = 0x44200, GT = 0x44300, PCU = 0x444E0, PORT = 0x230, RINGING = 7 };

/* What would be a device: the cells of its registers, and what it sent. */
typedef struct fake {
    pthread_mutex_t lock;
    gvt_vgpu vgpu;
    uint32_t master, imr[GVT_BLOCKS], iir[GVT_BLOCKS], ier[GVT_BLOCKS];
    uint32_t mask[GVT_ENGINES], mode[GVT_ENGINES], status[GVT_ENGINES], running[GVT_ENGINES];
    uint64_t messages, rings;
    bool messages_enabled;
    int level;
} fake;

static fake one;

static void *user_data(umdev_device *device)
{
    return &((fake *)device)->vgpu;
}

static umdev_irq *irq(umdev_device *device)
{
    return (umdev_irq *)device;
}

static int signal(umdev_irq *interrupts, uint32_t vector)
{
    fake *device = (fake *)interrupts;
    CHECK(vector == 0);
    device->messages++;
    return device->messages_enabled ? 0 : -ENODEV;
}

static void set_level(umdev_irq *interrupts, uint32_t source, int level)
{
    CHECK(source == 0);
    ((fake *)interrupts)->level = level;
}

static void bell_ring(softgpu_bell *bell)
{
    CHECK((uintptr_t)bell == RINGING);
    one.rings++;
}

static const umdev_api umdev = {.user_data = user_data, .irq = irq, .signal = signal, .set_level = set_level};
static const softgpu_api softgpu = {.bell_ring = bell_ring};
static const uint64_t places[GVT_BLOCKS] = {GT, GT + 0x10, GT + 0x20, GT + 0x30, PCU};

static void set_up(void)
{
    memset(&one, 0, sizeof one);
    pthread_mutex_init(&one.lock, NULL);
    one.vgpu.tree.device = &one;
    one.vgpu.tree.master = &one.master;
    for (int i = 0; i < GVT_BLOCKS; i++)
        one.vgpu.tree.blocks[i] = (gvt_events){
            .imr = &one.imr[i], .iir = &one.iir[i], .ier = &one.ier[i], .offset = places[i] + 8};
    for (uint32_t i = 0; i < GVT_ENGINES; i++) {
        one.vgpu.engines[i] = (gvt_engine){.softgpu = &softgpu,
                                           .bell = (void *)(uintptr_t)RINGING,
                                           .port_offset = 0x2000 * (i + 1) + PORT,
                                           .block = i,
                                           .shift = i % 2 * 16,
                                           .mask = &one.mask[i],
                                           .mode = &one.mode[i],
                                           .status = &one.status[i],
                                           .running = &one.running[i]};
    }
    gvt_use(&umdev);
}

/* An access to a register that C answers; the core has stored already. */
static uint64_t touch(umdev_handler handler, uint64_t offset, uint64_t value, bool write)
{
    umdev_access access = {.offset = offset, .flags = write ? UMDEV_WRITE : 0, .width = 4, .byte_mask = 15};
    CHECK(handler(&one, &access, &value) == UMDEV_OK);
    return value;
}

static void check_tree(void)
{
    const gvt_tree *tree = &one.vgpu.tree;
    uint32_t pending = gvt_tree_pending(tree);
    CHECK(tree->level == (uint32_t)(one.master >> 31 && pending));
    CHECK(!(one.master & ~(UINT32_C(1) << 31)));
    if (!one.messages_enabled)
        CHECK(one.level == (int)tree->level);
    CHECK(one.messages == tree->messages);
    for (int i = 0; i < GVT_BLOCKS; i++) {
        CHECK(!(tree->blocks[i].queued & ~one.iir[i])); /* a second place is behind a first one */
        uint32_t bits = one.iir[i] & one.ier[i];
        uint32_t shown = i == GVT_PCU ? pending >> 30 & 1 : (uint32_t)((pending >> 2 * i & 3) != 0);
        CHECK(shown == (bits != 0));
    }
}

static void check_engine(const gvt_engine *engine)
{
    CHECK(engine->count <= 2 && engine->waiting_count <= 2 && engine->noted <= GVT_STATUS_ENTRIES);
    CHECK(engine->port_count < GVT_PORT_WRITES);
    CHECK(*engine->running == (engine->count ? (uint32_t)(engine->elements[0] >> 32) : 0));
    CHECK((*engine->status & 0x4001) == (engine->count ? 0x4001u : 0));
}

static void write_register(uint32_t which, uint32_t value)
{
    uint32_t block = which / 8 % GVT_BLOCKS, number = which / 8 % GVT_ENGINES;
    switch (which % 8) {
    case 0:
        CHECK((touch(gvt_master, MASTER, one.master, false) & ~(UINT64_C(1) << 31)) ==
              gvt_tree_pending(&one.vgpu.tree));
        break;
    case 1:
        touch(gvt_master, MASTER, value, true);
        break;
    case 2:
        one.iir[block] &= ~value;
        touch(gvt_identity, places[block] + 8, value, true);
        break;
    case 3:
        one.ier[block] = value;
        touch(gvt_enable, places[block] + 12, value, true);
        break;
    case 4:
        touch(gvt_identity, places[block] + 8, one.iir[block], false);
        touch(gvt_identity, 0x44408, value, true); /* a block that no event comes to */
        break;
    default: {
        uint64_t port = 0x2000 * (number + 1) + PORT;
        if (chance() % 4 == 0) /* a few contexts that meet again */
            value = (value & 3) << 12 | 1;
        touch(gvt_submit_port, port, value & (chance() % 2 ? 3 : UINT32_MAX), true);
        CHECK(touch(gvt_submit_port, port, 0, false) == 0);
    }
    }
}

static void engine_turn(uint32_t number)
{
    gvt_engine *engine = &one.vgpu.engines[number];
    gvt_event event;
    switch (chance() % 6) {
    case 0:
        gvt_engine_raise(&one.vgpu, number, (uint32_t)(chance() % 16));
        break;
    case 1: {
        uint32_t before = engine->count, identity = (uint32_t)(engine->elements[0] >> 32);
        uint32_t through = gvt_engine_next(engine);
        CHECK(!before || (through == identity && engine->count == before - 1));
        break;
    }
    case 2:
        CHECK(!gvt_engine_noted(engine, &event) || event.skipped == 0 || engine->noted == GVT_STATUS_ENTRIES - 1);
        break;
    case 3:
        if (!engine->count)
            gvt_engine_start_waiting(engine);
        break;
    case 4:
        if (chance() % 64 == 0)
            gvt_engine_reset(engine);
        break;
    default:
        engine->fresh = engine->again = 0;
    }
    check_engine(engine);
}

static void test_anything(void)
{
    set_up();
    for (int round = 0; round < ROUNDS; round++) {
        one.messages_enabled = round < ROUNDS / 2;
        one.vgpu.handshake = round % 1000 > 10;
        for (int i = 0; i < GVT_ENGINES; i++)
            one.mode[i] = round % 100 ? 1 << 15 : 0;
        one.imr[chance() % GVT_BLOCKS] = (uint32_t)(chance() & chance());
        one.mask[chance() % GVT_ENGINES] = (uint32_t)(chance() & chance());
        write_register((uint32_t)(chance() % 4096), (uint32_t)chance());
        engine_turn((uint32_t)(chance() % GVT_ENGINES));
        if (one.messages_enabled)
            check_tree();
    }
    CHECK(one.rings && one.messages && one.vgpu.engines[0].refused_strangers && one.vgpu.engines[0].refused_disabled);
    memset(one.iir, 0, sizeof one.iir);
    gvt_tree_reset(&one.vgpu.tree);
    CHECK(one.vgpu.tree.level == 0 && one.vgpu.tree.blocks[0].queued == 0);
}

/* Of more events than the status buffer holds, the last ones are left, and how many came before is known. */
static void test_noted(void)
{
    set_up();
    gvt_engine *engine = &one.vgpu.engines[0];
    one.vgpu.handshake = 1;
    one.mode[0] = 1 << 15;
    for (uint32_t times = 0; times < 10; times++)
        for (int i = 0; i < 4; i++)
            touch(gvt_submit_port, engine->port_offset, i == 2 ? 5 : i == 3 ? 1 : 0, true);
    gvt_event event;
    uint32_t events = 0, skipped = 0;
    while (gvt_engine_noted(engine, &event)) {
        CHECK(event.status == 0x8002 && event.context == 5);
        events++, skipped += event.skipped;
    }
    CHECK(events == GVT_STATUS_ENTRIES && skipped == 10 - GVT_STATUS_ENTRIES && engine->submissions == 10);
    CHECK(one.rings == 1 && engine->again && engine->fresh);
}

static void *engine_thread(void *argument)
{
    (void)argument;
    for (int round = 0; round < ROUNDS / 4; round++) {
        pthread_mutex_lock(&one.lock);
        gvt_engine_raise(&one.vgpu, 1, 8);
        pthread_mutex_unlock(&one.lock);
    }
    return NULL;
}

/* The core stores to plain registers (IMR, the engine's mask) without the lock. */
static void test_threads(void)
{
    set_up();
    one.messages_enabled = true;
    one.ier[1] = UINT32_MAX;
    pthread_t thread;
    CHECK(!pthread_create(&thread, NULL, engine_thread, NULL));
    for (int round = 0; round < ROUNDS / 4; round++) {
        __atomic_store_n(&one.imr[1], round % 2 ? UINT32_MAX : 0, __ATOMIC_RELAXED);
        __atomic_store_n(&one.mask[1], round % 3 ? 0 : UINT32_MAX, __ATOMIC_RELAXED);
        pthread_mutex_lock(&one.lock);
        touch(gvt_master, MASTER, UINT64_C(1) << 31, true);
        __atomic_fetch_and(&one.iir[1], 0, __ATOMIC_RELAXED);
        touch(gvt_identity, places[1] + 8, UINT32_MAX, true);
        pthread_mutex_unlock(&one.lock);
    }
    pthread_join(thread, NULL);
    check_tree();
}

void test_hot(void)
{
    test_anything();
    test_noted();
    test_threads();
}
