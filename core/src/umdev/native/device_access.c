/* Dispatch: from the driver's access to registers, windows and overlays. */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "device_internal.h"
#include "trace_decls.h"
#include "trace_internal.h"

bool umdev_call_lock(struct umdev_call *call)
{
    if (call->locked)
        return true;
    if (umdev_device_lock(call->device) != 0) {
        call->result = -EDEADLK;
        return false;
    }
    if (atomic_load(&call->device->gone)) { /* since the gate was passed: no handler runs any more */
        umdev_device_unlock(call->device);
        call->result = UMDEV_GONE;
        return false;
    }
    call->locked = true;
    return true;
}

static bool call_over(const struct umdev_call *call)
{
    return call->result < 0 || call->result == UMDEV_GONE;
}

void umdev_call_result(struct umdev_call *call, int result)
{
    if (result == UMDEV_FAULT)
        umdev_count(&call->device->counters.faulted);
    if (call->result == UMDEV_OK)
        call->result = result;
}

/* The register that the access is all of, or NULL: the common case, in which nothing has to be put together. */
static inline const struct umdev_slot *access_whole(const struct umdev_region *region, uint64_t offset, uint32_t length,
                                                    uint32_t *element)
{
    const umdev_layout *layout = region->layout;
    if (length > 8 || !(layout->sizes & length) || (length & (length - 1)))
        return NULL;
    uint32_t first;
    const struct umdev_slot *slot = umdev_layout_slot(layout, offset, element, &first);
    return slot && slot->decl.width == length && first == 0 ? slot : NULL;
}

/* All of a register that needs neither a handler nor the lock. False: nothing was done. */
static inline bool access_plain(const struct umdev_region *region, const struct umdev_slot *slot, uint32_t element,
                                void *bytes, uint32_t length, bool write)
{
    if (!(write ? slot->free_store : slot->free_load))
        return false;
    uint8_t *cell = region->state + slot->decl.cell + (size_t)element * length;
    if (write)
        umdev_cell_store(cell, length, umdev_bytes_load(bytes, length));
    else
        umdev_bytes_store(bytes, length, umdev_cell_load(cell, length) & ~slot->decl.hide);
    return true;
}

/* `count` bytes from byte `first` of one register. */
static void access_register(struct umdev_call *call, const struct umdev_slot *slot, uint32_t element, uint32_t first,
                            uint32_t count, uint8_t *bytes, uint32_t position)
{
    bool write = call->flags & UMDEV_WRITE;
    bool plain = write ? slot->free_store && count == slot->decl.width : slot->free_load;
    if (!plain && !slot->lockless && !umdev_call_lock(call))
        return;
    if (write)
        umdev_register_write(call, slot, element, first, count, bytes, position);
    else
        umdev_register_read(call, slot, element, first, count, bytes, position);
}

/* Bytes of registers or of nothing, with no area among them. */
static void access_registers(struct umdev_call *call, uint64_t offset, uint8_t *bytes, uint32_t length,
                             uint32_t position)
{
    bool write = call->flags & UMDEV_WRITE;
    const umdev_layout *layout = call->region->layout;
    uint32_t element = 0, first = 0;
    while (length && !call_over(call)) {
        const struct umdev_slot *slot = layout ? umdev_layout_slot(layout, offset, &element, &first) : NULL;
        uint32_t count = 0;
        if (slot) {
            count = slot->decl.width - first < length ? slot->decl.width - first : length;
            access_register(call, slot, element, first, count, bytes, position);
        } else {
            count = layout ? 1 : length;
            while (count < length && !umdev_layout_slot(layout, offset + count, &element, &first))
                count++;
            if (!umdev_call_lock(call))
                return;
            umdev_unmodelled_note(call->device, call->index, offset, bytes, count, write);
            if (!write)
                memset(bytes, 0, count);
        }
        bytes += count;
        offset += count;
        position += count;
        length -= count;
    }
}

/* Areas and registers in ascending order. */
static void access_parts(struct umdev_call *call, uint64_t offset, uint8_t *bytes, uint32_t length)
{
    const umdev_layout *layout = call->region->layout;
    bool legal = !layout || (length <= 8 && (layout->sizes & length) && !(length & (length - 1)));
    uint32_t position = 0;
    while (position < length && !call_over(call)) {
        uint64_t gap;
        const struct umdev_area *area = umdev_area_at(call->region, offset + position, &gap);
        uint64_t room = area ? area->length - (offset + position - area->offset) : gap;
        uint32_t count = room < length - position ? (uint32_t)room : length - position;
        if (area) {
            umdev_area_access(call, area, offset + position, bytes + position, count);
        } else if (legal) {
            access_registers(call, offset + position, bytes + position, count, position);
        } else {
            umdev_count(&call->device->counters.illegal);
            umdev_call_result(call, UMDEV_ABORT);
            return;
        }
        position += count;
    }
}

/* What forbids the access before it reaches the model; UMDEV_OK: nothing. */
static int access_refused(const struct umdev_call *call, uint64_t offset, uint32_t length)
{
    umdev_device *device = call->device;
    if (atomic_load(&device->gone))
        return UMDEV_GONE;
    if (call->index >= UMDEV_REGION_COUNT || offset >= call->region->size || length > call->region->size - offset ||
        !atomic_load(&call->region->enabled)) {
        umdev_count(&device->counters.aborted);
        return UMDEV_ABORT;
    }
    return UMDEV_OK;
}

/* The thread is inside the access until it takes this off again. */
static inline struct umdev_frame access_frame(const umdev_device *device, uint32_t index, uint32_t flags)
{
    /* PCI posts no configuration write */
    bool posted = (flags & UMDEV_WRITE) && (flags & UMDEV_POSTED) && index != UMDEV_REGION_CONFIG;
    return (struct umdev_frame){.device = device,
                                .context = posted ? UMDEV_CONTEXT_POSTED : UMDEV_CONTEXT_WAITING,
                                .outer = umdev_frames};
}

/* Waits for what is pending, or hands it over to the completion. The lock is held. */
static int access_pending(struct umdev_call *call, umdev_completion completion, void *context)
{
    umdev_device *device = call->device;
    struct umdev_transaction *transaction = call->transaction;
    if (atomic_load(&device->gone)) /* who set it may have ended all pending accesses already: end this one here */
        umdev_pending_end_all(device, UMDEV_GONE);
    if (!completion || !transaction->waiting) {
        while (transaction->waiting)
            umdev_device_wait(device);
        return transaction->result;
    }
    struct umdev_transaction *kept = malloc(sizeof *kept);
    if (kept) {
        *kept = *transaction;
        kept->completion = completion;
        kept->context = context;
    }
    for (uint32_t i = 0; i < UMDEV_PENDING_LIMIT; i++) {
        if (device->pending[i].transaction != transaction)
            continue;
        device->pending[i].transaction = kept;
        if (!kept)
            device->pending_count--;
    }
    return kept ? UMDEV_PENDING : UMDEV_FAULT;
}

/* What the intercept makes of the access; -1: it passes. */
static int access_intercepted(umdev_device *device, uint32_t index, uint64_t offset, void *bytes, uint32_t length,
                              uint32_t flags)
{
    if (!atomic_load(&device->intercepted))
        return -1;
    pthread_mutex_lock(&device->gates); /* function and context belong together */
    umdev_intercept intercept = device->intercept;
    void *context = device->intercept_context;
    pthread_mutex_unlock(&device->gates);
    return intercept ? intercept(context, index, offset, bytes, length, flags) : -1;
}

/* The handlers have run: what comes of it, and the end of the lock. */
static int access_end(struct umdev_call *call, umdev_completion completion, void *context)
{
    struct umdev_transaction *transaction = call->transaction;
    int result = call->result;
    if (result == UMDEV_OK && !call->touched) {
        umdev_count(&call->device->counters.unhandled);
        result = UMDEV_UNHANDLED;
    }
    if (result == UMDEV_OK) /* a part that was pending may have ended badly before the rest was through */
        result = transaction->result;
    if (transaction->waiting) {
        transaction->result = result;
        result = access_pending(call, completion, context);
    }
    if (call->locked)
        umdev_device_unlock(call->device);
    return result;
}

/* Out of line: who gets here has more to do than to find the way. */
static __attribute__((noinline)) int access_slow(umdev_device *device, uint32_t index, uint64_t offset, void *bytes,
                                                 uint32_t length, uint32_t flags, uint32_t initiator, uint32_t space,
                                                 umdev_completion completion, void *context)
{
    bool write = flags & UMDEV_WRITE;
    struct umdev_transaction transaction = {.bytes = bytes, .length = length, .write = write};
    struct umdev_call call = {.device = device,
                              .region = &device->regions[index < UMDEV_REGION_COUNT ? index : 0],
                              .index = index,
                              .flags = flags,
                              .initiator = initiator,
                              .space = space,
                              .transaction = &transaction};
    int result = access_intercepted(device, index, offset, bytes, length, flags);
    if (result >= 0) {
        if (result >= UMDEV_ABORT && !write)
            memset(bytes, 0xFF, length);
        return result;
    }
    result = access_refused(&call, offset, length);
    if (result == UMDEV_OK && length) {
        struct umdev_frame frame = access_frame(device, index, flags);
        umdev_frames = &frame;
        access_parts(&call, offset, bytes, length);
        umdev_frames = frame.outer;
        result = access_end(&call, completion, context);
    }
    if (!write && result != UMDEV_OK && result != UMDEV_UNHANDLED && result != UMDEV_PENDING)
        memset(bytes, 0xFF, length);
    return result;
}

/* The handler of an access to all of a register has not just said UMDEV_OK. */
static __attribute__((noinline)) int access_settle(umdev_device *device, const struct umdev_slot *slot,
                                                   const umdev_access *access, int result, uint64_t value, void *bytes,
                                                   bool locked, umdev_completion completion, void *context)
{
    bool write = access->flags & UMDEV_WRITE;
    uint32_t length = access->width;
    struct umdev_transaction transaction = {.bytes = bytes, .length = length, .write = write};
    struct umdev_call call = {.device = device,
                              .region = &device->regions[access->region],
                              .index = access->region,
                              .flags = access->flags,
                              .initiator = access->initiator,
                              .space = access->space,
                              .locked = locked,
                              .touched = result != UMDEV_UNHANDLED,
                              .transaction = &transaction};
    if (!write)
        memset(bytes, 0, length);
    umdev_register_settle(&call, slot, result, value, access, 0, length, 0);
    result = access_end(&call, completion, context);
    if (!write && result != UMDEV_OK && result != UMDEV_UNHANDLED && result != UMDEV_PENDING)
        memset(bytes, 0xFF, length);
    return result;
}

/* An access to all of a register with a handler and no rules: what access_slow does, in few lines of code. During an
 * exit of the guest the processor forgets them, and each costs. */
static int access_handled(umdev_device *device, uint32_t index, uint64_t offset, const struct umdev_slot *slot,
                         uint32_t element, void *bytes, uint32_t length, uint32_t flags, uint32_t initiator,
                         uint32_t space, umdev_completion completion, void *context)
{
    bool write = flags & UMDEV_WRITE, locked = !slot->lockless;
    if (locked) {
        if (UMDEV_UNLIKELY(umdev_device_lock(device) != 0))
            return access_slow(device, index, offset, bytes, length, flags, initiator, space, completion, context);
        if (UMDEV_UNLIKELY(atomic_load(&device->gone))) {
            umdev_device_unlock(device);
            return access_slow(device, index, offset, bytes, length, flags, initiator, space, completion, context);
        }
    }
    const struct umdev_region *region = &device->regions[index];
    void *cell = region->state + slot->decl.cell + (size_t)element * length;
    uint64_t value = write ? umdev_bytes_load(bytes, length) : umdev_cell_load(cell, length);
    if (write)
        umdev_cell_store(cell, length, value);
    struct umdev_frame frame = access_frame(device, index, flags);
    umdev_frames = &frame;
    int result;
    if ((write ? slot->decl.on_write : slot->decl.on_read) == UMDEV_CALL_NATIVE) {
        umdev_access access = umdev_describe(slot, index, element, 0, length, flags, initiator, space);
        result = slot->decl.native(device, &access, &value);
    } else {
        result = umdev_register_call(region, slot, write, &value);
    }
    umdev_frames = frame.outer;
    if (UMDEV_UNLIKELY(result != UMDEV_OK)) {
        umdev_access access = umdev_describe(slot, index, element, 0, length, flags, initiator, space);
        return access_settle(device, slot, &access, result, value, bytes, locked, completion, context);
    }
    if (!write)
        umdev_bytes_store(bytes, length, value & ~slot->decl.hide);
    if (locked)
        umdev_device_unlock(device);
    return UMDEV_OK;
}

/* The access itself, traced or not. */
static inline int access_run(umdev_device *device, uint32_t region, uint64_t offset, void *bytes, uint32_t length,
                             uint32_t flags, uint32_t initiator, uint32_t space, umdev_completion completion,
                             void *context)
{
    bool write = flags & UMDEV_WRITE;
    umdev_count(write ? &device->counters.writes : &device->counters.reads);
    if (UMDEV_LIKELY(region < UMDEV_REGION_COUNT) &&
        atomic_load_explicit(&device->regions[region].open, memory_order_acquire)) {
        uint32_t element;
        const struct umdev_slot *slot = access_whole(&device->regions[region], offset, length, &element);
        if (slot && access_plain(&device->regions[region], slot, element, bytes, length, write))
            return UMDEV_OK;
        if (slot && (write ? slot->handled_store : slot->handled_load))
            return access_handled(device, region, offset, slot, element, bytes, length, flags, initiator, space,
                                 completion, context);
    }
    return access_slow(device, region, offset, bytes, length, flags, initiator, space, completion, context);
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* Out of line: a traced access pays for it, others don't. */
static __attribute__((noinline)) int access_traced(umdev_device *device, uint32_t region, uint64_t offset, void *bytes,
                                                   uint32_t length, uint32_t flags, uint32_t initiator, uint32_t space,
                                                   umdev_completion completion, void *context)
{
    umdev_trace_record record = {.time = now(),
                                 .offset = offset,
                                 .device = device->id,
                                 .length = length,
                                 .initiator = initiator,
                                 .space = space,
                                 .region = (uint16_t)region,
                                 .flags = (uint16_t)flags};
    uint32_t kept = length < sizeof record.value ? length : (uint32_t)sizeof record.value;
    if (flags & UMDEV_WRITE)
        memcpy(&record.value, bytes, kept);
    record.result = access_run(device, region, offset, bytes, length, flags, initiator, space, completion, context);
    if (!(flags & UMDEV_WRITE) && record.result != UMDEV_PENDING) /* pending: another thread may be writing there */
        memcpy(&record.value, bytes, kept);
    record.duration = now() - record.time;
    umdev_trace_add(&record);
    return record.result;
}

int umdev_device_start(umdev_device *device, uint32_t region, uint64_t offset, void *bytes, uint32_t length,
                       uint32_t flags, uint32_t initiator, uint32_t space, umdev_completion completion, void *context)
{
    if (UMDEV_UNLIKELY(atomic_load_explicit(&umdev_trace_on, memory_order_relaxed)))
        return access_traced(device, region, offset, bytes, length, flags, initiator, space, completion, context);
    return access_run(device, region, offset, bytes, length, flags, initiator, space, completion, context);
}

int umdev_device_access(umdev_device *device, uint32_t region, uint64_t offset, void *bytes, uint32_t length,
                        uint32_t flags, uint32_t initiator, uint32_t space)
{
    return umdev_device_start(device, region, offset, bytes, length, flags, initiator, space, NULL, NULL);
}
