/* The submission port of an engine: what the driver submits, noted until the scheduler's thread looks. Nothing is
 * executed here and no memory of the guest is read, so the processor goes on at once. The device lock is held for all
 * of it. */
#include <stddef.h>
#include <string.h>

#include "softgpu.h"

#include "hot.h"

/* Intel Graphics PRM, Kaby Lake, volume 7: descriptor, context switch status; volume 2c: EXECLIST_STATUS, GFX_MODE. */
enum {
    VALID = 1 << 0,
    ACTIVE = 1 << 0,
    SLOT0_ACTIVE = 1 << 14,
    RUN_LIST = 1 << 15,
    IDLE_TO_ACTIVE = 1 << 0,
    PREEMPTED = 1 << 1,
    LITE_RESTORE = 1 << 15
};

static uint32_t identity(uint64_t descriptor)
{
    return (uint32_t)(descriptor >> 32);
}

/* What a driver reads to find out who hangs. */
static void show_running(gvt_engine *engine)
{
    uint32_t bits = engine->count ? ACTIVE | SLOT0_ACTIVE : 0;
    __atomic_store_n(engine->running, engine->count ? identity(engine->elements[0]) : 0, __ATOMIC_RELAXED);
    __atomic_fetch_and(engine->status, ~(uint32_t)(ACTIVE | SLOT0_ACTIVE), __ATOMIC_RELAXED);
    __atomic_fetch_or(engine->status, bits, __ATOMIC_RELAXED);
}

/* An event for the status buffer. It has so many entries: of more events, only the last ones would be left in it. */
static void note(gvt_engine *engine, uint32_t status, uint32_t context)
{
    if (engine->noted == GVT_STATUS_ENTRIES) {
        engine->first = (engine->first + 1) % GVT_STATUS_ENTRIES;
        engine->noted--;
        engine->skipped++;
    }
    engine->events[(engine->first + engine->noted++) % GVT_STATUS_ENTRIES] =
        (gvt_event){.status = status, .context = context};
}

int gvt_engine_noted(gvt_engine *engine, gvt_event *ret)
{
    if (!engine->noted)
        return 0;
    *ret = engine->events[engine->first];
    ret->skipped = engine->skipped;
    engine->skipped = 0;
    engine->first = (engine->first + 1) % GVT_STATUS_ENTRIES;
    engine->noted--;
    return 1;
}

static void start(gvt_engine *engine, const uint64_t *elements, uint32_t count)
{
    memcpy(engine->elements, elements, count * sizeof *elements);
    engine->count = count;
    show_running(engine);
    note(engine, IDLE_TO_ACTIVE, 0);
}

static void submit(gvt_engine *engine, const uint64_t *elements, uint32_t count)
{
    if (!engine->count) {
        start(engine, elements, count);
        engine->fresh = 1;
        ((const softgpu_api *)engine->softgpu)->bell_ring(engine->bell);
    } else if (identity(elements[0]) == identity(engine->elements[0])) {
        /* The running context again, maybe with more in its ring, and another one after it. */
        engine->count = count;
        if (count > 1)
            engine->elements[1] = elements[1];
        engine->again = 1;
        note(engine, PREEMPTED | LITE_RESTORE, identity(elements[0]));
    } else { /* a driver in vGPU mode does not preempt: it is told when what runs is through */
        memcpy(engine->waiting, elements, count * sizeof *elements);
        engine->waiting_count = count;
    }
}

/* The fourth of four writes submits: element 1 high, low, element 0 high, low. */
static void port_write(const gvt_vgpu *vgpu, gvt_engine *engine, uint32_t value)
{
    engine->port[engine->port_count++] = value;
    if (engine->port_count < GVT_PORT_WRITES)
        return;
    engine->port_count = 0;
    if (!vgpu->handshake) {
        engine->refused_strangers++;
        return;
    }
    if (!(__atomic_load_n(engine->mode, __ATOMIC_RELAXED) & RUN_LIST)) {
        engine->refused_disabled++;
        return;
    }
    const uint32_t *port = engine->port;
    const uint64_t given[2] = {(uint64_t)port[2] << 32 | port[3], (uint64_t)port[0] << 32 | port[1]};
    uint64_t valid[2];
    uint32_t count = 0;
    for (int i = 0; i < 2; i++) {
        if (given[i] & VALID)
            valid[count++] = given[i];
    }
    engine->submissions++;
    if (count)
        submit(engine, valid, count);
}

int gvt_submit_port(void *device, const umdev_access *access, uint64_t *value)
{
    gvt_vgpu *vgpu = gvt_vgpu_of(device);
    if (!(access->flags & UMDEV_WRITE))
        return UMDEV_OK;
    for (uint32_t number = 0; number < GVT_ENGINES; number++) {
        if (vgpu->engines[number].port_offset == access->offset)
            port_write(vgpu, &vgpu->engines[number], (uint32_t)*value);
    }
    return UMDEV_OK;
}

uint32_t gvt_engine_next(gvt_engine *engine)
{
    uint32_t through = identity(engine->elements[0]);
    if (engine->count) {
        engine->elements[0] = engine->elements[1];
        engine->count--;
    }
    show_running(engine);
    return through;
}

int gvt_engine_start_waiting(gvt_engine *engine)
{
    uint32_t count = engine->waiting_count;
    if (!count)
        return 0;
    engine->waiting_count = 0;
    start(engine, engine->waiting, count);
    return 1;
}

void gvt_engine_reset(gvt_engine *engine)
{
    engine->port_count = engine->count = engine->waiting_count = 0;
    engine->fresh = engine->again = engine->noted = engine->skipped = 0;
    show_running(engine);
}
