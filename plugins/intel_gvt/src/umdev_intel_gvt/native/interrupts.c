/* The interrupt tree; interrupt_tree.py says what it does and why. The device lock is held for all of it, and cells of
 * registers change in atomic steps. */
#include <errno.h>
#include <stddef.h>

#include "hot.h"

enum { HALF_BITS = 16, HALF = 0xFFFF, PCU = 30 };
static const uint32_t ENABLE = UINT32_C(1) << 31;

static uint32_t load(const uint32_t *cell)
{
    return __atomic_load_n(cell, __ATOMIC_RELAXED);
}

static uint32_t wanted(const gvt_events *events)
{
    return load(events->iir) & load(events->ier);
}

uint32_t gvt_tree_pending(const gvt_tree *tree)
{
    uint32_t found = wanted(&tree->blocks[GVT_PCU]) ? UINT32_C(1) << PCU : 0;
    for (uint32_t block = 0; block < GVT_GT_BLOCKS; block++) {
        uint32_t bits = wanted(&tree->blocks[block]);
        found |= (uint32_t)((bits & HALF) != 0) << 2 * block | (uint32_t)(bits >> HALF_BITS != 0) << (2 * block + 1);
    }
    return found;
}

/* Sends a message when the tree's output rises: a driver that has not looked yet needs no second one. */
static void evaluate(gvt_tree *tree)
{
    const umdev_api *api = gvt_umdev();
    uint32_t level = (load(tree->master) & ENABLE) && gvt_tree_pending(tree);
    if (level == tree->level)
        return;
    umdev_irq *irq = api->irq(tree->device);
    tree->level = level;
    if (!level) {
        api->set_level(irq, 0, 0);
        return;
    }
    if (api->signal(irq, 0) == -ENODEV) /* no messages: the pin */
        api->set_level(irq, 0, 1);
    tree->messages++;
}

void gvt_engine_raise(gvt_vgpu *vgpu, uint32_t number, uint32_t event)
{
    const gvt_engine *engine = &vgpu->engines[number];
    gvt_events *events = &vgpu->tree.blocks[engine->block];
    uint32_t bit = UINT32_C(1) << (event + engine->shift);
    if (bit & (load(engine->mask) | load(events->imr)))
        return;
    events->queued |= __atomic_fetch_or(events->iir, bit, __ATOMIC_RELAXED) & bit;
    evaluate(&vgpu->tree);
}

void gvt_tree_reset(gvt_tree *tree)
{
    tree->level = 0;
    for (uint32_t block = 0; block < GVT_BLOCKS; block++)
        tree->blocks[block].queued = 0;
}

int gvt_master(void *device, const umdev_access *access, uint64_t *value)
{
    gvt_tree *tree = &gvt_vgpu_of(device)->tree;
    if (access->flags & UMDEV_WRITE) {
        __atomic_store_n(tree->master, (uint32_t)*value & ENABLE, __ATOMIC_RELAXED);
        evaluate(tree);
    } else {
        *value = (*value & ENABLE) | gvt_tree_pending(tree);
    }
    return UMDEV_OK;
}

/* The core has cleared the bits. What came twice comes back, as a new edge; what is left may still be wanted. */
int gvt_identity(void *device, const umdev_access *access, uint64_t *value)
{
    gvt_tree *tree = &gvt_vgpu_of(device)->tree;
    if (!(access->flags & UMDEV_WRITE))
        return UMDEV_OK;
    evaluate(tree);
    for (uint32_t block = 0; block < GVT_BLOCKS; block++) {
        gvt_events *events = &tree->blocks[block];
        uint32_t again = events->offset == access->offset ? events->queued & (uint32_t)*value : 0;
        if (again) {
            events->queued &= ~again;
            __atomic_fetch_or(events->iir, again, __ATOMIC_RELAXED);
            evaluate(tree);
        }
    }
    return UMDEV_OK;
}

/* What was waiting may be wanted now. */
int gvt_enable(void *device, const umdev_access *access, uint64_t *value)
{
    if (access->flags & UMDEV_WRITE)
        evaluate(&gvt_vgpu_of(device)->tree);
    return UMDEV_OK;
}
