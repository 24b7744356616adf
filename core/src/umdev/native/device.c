/* The device object: its lock, its parts, its gates. */
#include <errno.h>
#include <stdlib.h>

#include "device_internal.h"
#include "memory_decls.h"

_Thread_local struct umdev_frame *umdev_frames;
_Thread_local int umdev_faulted;

static atomic_uint device_ids;

/* The address of a thread-local variable names the thread: no system call, and TSan knows it. */
static const void *self(void)
{
    static _Thread_local char identity;
    return &identity;
}

umdev_device *umdev_device_new(void)
{
    /* aligned_alloc wants a multiple of the alignment; sizeof is one, by the alignment of the counters. */
    umdev_device *device = aligned_alloc(_Alignof(umdev_device), sizeof *device);
    if (!device)
        return NULL;
    memset(device, 0, sizeof *device);
    device->id = atomic_fetch_add(&device_ids, 1) + 1;
    pthread_mutex_init(&device->mutex, NULL);
    pthread_mutex_init(&device->gates, NULL);
    pthread_cond_init(&device->completed, NULL);
    return device;
}

void umdev_device_free(umdev_device *device)
{
    if (!device)
        return;
    for (uint32_t i = 0; i < UMDEV_REGION_COUNT; i++)
        free(device->regions[i].areas);
    free(device->unmodelled);
    pthread_cond_destroy(&device->completed);
    pthread_mutex_destroy(&device->gates);
    pthread_mutex_destroy(&device->mutex);
    free(device);
}

void umdev_device_set_parts(umdev_device *device, umdev_memory *memory, umdev_irq *irq, void *user_data)
{
    device->memory = memory;
    device->irq = irq;
    device->user_data = user_data;
}

void umdev_device_set_user_data(umdev_device *device, void *user_data)
{
    device->user_data = user_data;
}

uint32_t umdev_device_id(const umdev_device *device)
{
    return device->id;
}

umdev_memory *umdev_device_memory(umdev_device *device)
{
    return device->memory;
}

umdev_irq *umdev_device_irq(umdev_device *device)
{
    return device->irq;
}

void *umdev_device_user_data(umdev_device *device)
{
    return device->user_data;
}

/* ---- the lock ---- */

int umdev_device_held(umdev_device *device)
{
    /* Only this thread ever stores its own identity, so a relaxed load can't be wrong about it. */
    return atomic_load_explicit(&device->owner, memory_order_relaxed) == self();
}

int umdev_device_lock(umdev_device *device)
{
    if (umdev_device_held(device))
        return -EDEADLK;
    pthread_mutex_lock(&device->mutex);
    atomic_store_explicit(&device->owner, self(), memory_order_relaxed);
    return 0;
}

int umdev_device_trylock(umdev_device *device)
{
    if (pthread_mutex_trylock(&device->mutex) != 0)
        return 0;
    atomic_store_explicit(&device->owner, self(), memory_order_relaxed);
    return 1;
}

void umdev_device_unlock(umdev_device *device)
{
    atomic_store_explicit(&device->owner, NULL, memory_order_relaxed);
    pthread_mutex_unlock(&device->mutex);
}

void umdev_device_wait(umdev_device *device)
{
    atomic_store_explicit(&device->owner, NULL, memory_order_relaxed);
    pthread_cond_wait(&device->completed, &device->mutex);
    atomic_store_explicit(&device->owner, self(), memory_order_relaxed);
}

int umdev_device_suspend(umdev_device *device)
{
    if (!umdev_device_held(device))
        return 0;
    if (device->ending)
        return -ECANCELED;
    device->suspended++;
    umdev_device_unlock(device);
    return 1;
}

void umdev_device_resume(umdev_device *device)
{
    umdev_device_lock(device);
    if (--device->suspended == 0)
        pthread_cond_broadcast(&device->completed);
}

void umdev_device_settle(umdev_device *device, int cancel)
{
    if (!device->suspended && !cancel)
        return;
    device->ending += cancel != 0;
    if (cancel && device->memory)
        umdev_memory_cancel_messages(device->memory, 1);
    /* Who resumes keeps the lock to the end of what it does, since `ending` forbids it to suspend again. */
    while (device->suspended)
        umdev_device_wait(device);
    if (cancel && device->memory) /* those of threads without the lock, which engines have */
        umdev_memory_drain_messages(device->memory);
    device->ending -= cancel != 0;
    if (cancel && device->memory && !device->ending)
        umdev_memory_cancel_messages(device->memory, 0);
}

int umdev_device_context(const umdev_device *device)
{
    for (const struct umdev_frame *frame = umdev_frames; frame; frame = frame->outer) {
        if (frame->device == device)
            return frame->context;
    }
    return UMDEV_CONTEXT_NONE;
}

void umdev_device_fault(void)
{
    umdev_faulted = 1;
}

/* ---- gates ---- */

/* With `gates` held: folds what forbids the fast path into one flag per region. */
static void gates_apply(umdev_device *device)
{
    bool passes = !atomic_load(&device->gone) && !atomic_load(&device->intercepted);
    for (uint32_t i = 0; i < UMDEV_REGION_COUNT; i++) {
        struct umdev_region *region = &device->regions[i];
        atomic_store(&region->open, passes && region->layout && atomic_load(&region->enabled));
    }
}

void umdev_device_set_gone(umdev_device *device, int gone)
{
    pthread_mutex_lock(&device->gates);
    atomic_store(&device->gone, gone != 0);
    gates_apply(device);
    pthread_mutex_unlock(&device->gates);
    if (!gone)
        return;
    bool taken = umdev_device_lock(device) == 0; /* waits for a handler under way */
    umdev_device_settle(device, 1);
    umdev_pending_end_all(device, UMDEV_GONE);
    if (taken)
        umdev_device_unlock(device);
}

int umdev_device_set_region_enabled(umdev_device *device, uint32_t region, int enabled)
{
    if (region >= UMDEV_REGION_COUNT || device->regions[region].size == 0)
        return -EINVAL;
    pthread_mutex_lock(&device->gates);
    atomic_store(&device->regions[region].enabled, enabled || region == UMDEV_REGION_CONFIG);
    gates_apply(device);
    pthread_mutex_unlock(&device->gates);
    return 0;
}

void umdev_device_set_intercept(umdev_device *device, umdev_intercept intercept, void *context)
{
    pthread_mutex_lock(&device->gates);
    device->intercept = intercept;
    device->intercept_context = context;
    atomic_store(&device->intercepted, intercept != NULL);
    gates_apply(device);
    pthread_mutex_unlock(&device->gates);
}

int umdev_device_add_region(umdev_device *device, uint32_t index, uint64_t size)
{
    if (index >= UMDEV_REGION_COUNT || size == 0 || size > INT64_MAX || device->regions[index].size)
        return -EINVAL;
    device->regions[index].size = size;
    atomic_store(&device->regions[index].enabled, 1);
    return 0;
}

int umdev_device_set_layout(umdev_device *device, uint32_t index, const umdev_layout *layout, uint8_t *state,
                            const umdev_callbacks *callbacks, void *context)
{
    if (index >= UMDEV_REGION_COUNT || (uintptr_t)state % 8)
        return -EINVAL;
    struct umdev_region *region = &device->regions[index];
    if (region->layout || layout->span > region->size || region->area_count)
        return -EINVAL;
    region->state = state;
    region->callbacks = *callbacks;
    region->context = context;
    pthread_mutex_lock(&device->gates);
    region->layout = layout;
    gates_apply(device);
    pthread_mutex_unlock(&device->gates);
    return 0;
}

void umdev_device_counters(umdev_device *device, umdev_counters *ret)
{
    ret->reads = atomic_load_explicit(&device->counters.reads, memory_order_relaxed);
    ret->writes = atomic_load_explicit(&device->counters.writes, memory_order_relaxed);
    ret->unhandled = atomic_load_explicit(&device->counters.unhandled, memory_order_relaxed);
    ret->aborted = atomic_load_explicit(&device->counters.aborted, memory_order_relaxed);
    ret->faulted = atomic_load_explicit(&device->counters.faulted, memory_order_relaxed);
    ret->illegal = atomic_load_explicit(&device->counters.illegal, memory_order_relaxed);
}
