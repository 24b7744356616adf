/* Registers: the map from offset to register, and what a read or write of one does.
 *
 * Every access kind is a combination of five masks, so no kind has code of its own. Cells change by atomic steps only:
 * a lock-free store to a plain register is never lost to a read-modify-write of a neighbour's bits under the lock.
 */
#include <errno.h>
#include <stdlib.h>

#include "device_internal.h"

enum { PAGE_SHIFT_MIN = 10, PAGES_LIMIT = 1 << 16, SLOTS_LIMIT = UINT16_MAX };

/* ---- the map ---- */

static uint64_t decl_end(const umdev_register *decl)
{
    return decl->offset + (decl->count - 1) * (decl->count > 1 ? decl->stride : 0) + decl->width;
}

static bool decl_valid(const umdev_register *decl)
{
    if (decl->width != 1 && decl->width != 2 && decl->width != 4 && decl->width != 8)
        return false;
    if (decl->count == 0 || decl->offset % decl->width || decl->cell % decl->width)
        return false;
    if (decl->count > 1 && (decl->stride < decl->width || decl->stride % decl->width))
        return false;
    if (decl->count > 1 && decl->stride > (INT64_MAX - decl->offset) / decl->count)
        return false;
    bool commits = decl->flags & (UMDEV_REGISTER_COMMIT_LOW | UMDEV_REGISTER_COMMIT_HIGH);
    if (commits && (decl->width != 8 || decl->latch % 8))
        return false;
    if ((decl->flags & UMDEV_REGISTER_DOORBELL) && (commits || (decl->flags & UMDEV_REGISTER_MASKED)))
        return false;
    bool native = decl->on_read == UMDEV_CALL_NATIVE || decl->on_write == UMDEV_CALL_NATIVE;
    return decl->offset <= INT64_MAX - 8 && (!native || decl->native);
}

static void slot_init(struct umdev_slot *slot, const umdev_register *decl)
{
    bool commits = decl->flags & (UMDEV_REGISTER_COMMIT_LOW | UMDEV_REGISTER_COMMIT_HIGH);
    slot->decl = *decl;
    slot->ones = umdev_ones(decl->width);
    slot->free_load = decl->on_read == UMDEV_CALL_NONE && decl->rc == 0;
    bool stores = decl->rw == slot->ones && decl->w1c == 0 && decl->w1s == 0 && !commits &&
                  !(decl->flags & (UMDEV_REGISTER_MASKED | UMDEV_REGISTER_DOORBELL));
    slot->free_store = decl->on_write == UMDEV_CALL_NONE && stores;
    slot->handled_load = (decl->on_read == UMDEV_CALL_NATIVE || decl->on_read == UMDEV_CALL_VALUE) && decl->rc == 0;
    slot->handled_store = (decl->on_write == UMDEV_CALL_NATIVE || decl->on_write == UMDEV_CALL_VALUE) && stores;
    slot->lockless = (decl->flags & UMDEV_REGISTER_LOCKLESS) && !commits && decl->on_read <= UMDEV_CALL_NATIVE &&
                     decl->on_write <= UMDEV_CALL_NATIVE;
}

static int by_offset(const void *left, const void *right)
{
    uint64_t a = (*(const struct umdev_slot *const *)left)->decl.offset;
    uint64_t b = (*(const struct umdev_slot *const *)right)->decl.offset;
    return a < b ? -1 : a > b;
}

/* Enters the part of one register (array) that lies in the page from `start`. */
static int page_fill(const umdev_layout *layout, uint16_t *page, uint64_t start, const struct umdev_slot *slot)
{
    const umdev_register *decl = &slot->decl;
    uint64_t size = UINT64_C(1) << layout->page_shift;
    uint64_t element = 0;
    if (start > decl->offset && decl->count > 1) /* no element straddles a page: both are aligned to the width */
        element = (start - decl->offset + decl->stride - 1) / decl->stride;
    for (; element < decl->count; element++) {
        uint64_t offset = decl->offset + element * (decl->count > 1 ? decl->stride : 0);
        if (offset >= start + size)
            break;
        uint64_t first = (offset - start) >> layout->granule_shift;
        uint64_t last = (offset - start + decl->width - 1) >> layout->granule_shift;
        for (uint64_t i = first; i <= last; i++) {
            if (page[i])
                return -EEXIST;
            page[i] = (uint16_t)(slot - layout->slots + 1);
        }
    }
    return 0;
}

/* Adds `page` unless it equals the one added before, as the pages inside a long array do. */
static int page_add(umdev_layout *layout, uint64_t number, const uint16_t *page)
{
    uint64_t entries = UINT64_C(1) << (layout->page_shift - layout->granule_shift);
    uint64_t last = layout->entry_count / entries - 1;
    if (last > 0 && memcmp(layout->entries + last * entries, page, entries * sizeof *page) == 0) {
        layout->pages[number] = (uint32_t)last;
        return 0;
    }
    uint16_t *grown = realloc(layout->entries, (layout->entry_count + entries) * sizeof *grown);
    if (!grown)
        return -ENOMEM;
    memcpy(grown + layout->entry_count, page, entries * sizeof *grown);
    layout->entries = grown;
    layout->entry_count += entries;
    layout->pages[number] = (uint32_t)(last + 1);
    return 0;
}

/* Walks the pages in ascending order with the registers that reach into each. `order` is scratch for all slots. */
static int pages_build(umdev_layout *layout, const struct umdev_slot **order, uint16_t *page)
{
    uint64_t size = UINT64_C(1) << layout->page_shift;
    uint64_t entries = size >> layout->granule_shift;
    uint32_t next = 0, active = 0; /* order[0..active) reach into this page; order[next..] begin later */
    for (uint64_t number = 0; number < layout->page_count; number++) {
        uint64_t start = number << layout->page_shift;
        while (next < layout->count && order[next]->decl.offset < start + size)
            order[active++] = order[next++];
        if (active == 0)
            continue;
        memset(page, 0, entries * sizeof *page);
        uint32_t kept = 0;
        for (uint32_t i = 0; i < active; i++) {
            int error = page_fill(layout, page, start, order[i]);
            if (error)
                return error;
            if (decl_end(&order[i]->decl) > start + size)
                order[kept++] = order[i];
        }
        active = kept;
        int error = page_add(layout, number, page);
        if (error)
            return error;
    }
    return 0;
}

static int layout_build(umdev_layout *layout)
{
    uint64_t steps = 8;
    for (uint32_t i = 0; i < layout->count; i++) {
        const umdev_register *decl = &layout->slots[i].decl;
        steps |= decl->offset | decl->width | (decl->count > 1 ? decl->stride : 0);
        if (decl_end(decl) > layout->span)
            layout->span = decl_end(decl);
    }
    layout->granule_shift = (uint32_t)__builtin_ctzll(steps);
    layout->page_shift = PAGE_SHIFT_MIN;
    while (layout->span >> layout->page_shift >= PAGES_LIMIT)
        layout->page_shift++;
    uint64_t size = UINT64_C(1) << layout->page_shift;
    uint64_t entries = size >> layout->granule_shift;
    layout->page_count = (layout->span + size - 1) >> layout->page_shift;
    layout->pages = calloc(layout->page_count + 1, sizeof *layout->pages);
    layout->entries = calloc(entries, sizeof *layout->entries);
    layout->entry_count = entries;
    const struct umdev_slot **order = calloc(layout->count + 1, sizeof *order);
    uint16_t *page = calloc(entries, sizeof *page);
    int error = -ENOMEM;
    if (layout->pages && layout->entries && order && page) {
        for (uint32_t i = 0; i < layout->count; i++)
            order[i] = &layout->slots[i];
        qsort(order, layout->count, sizeof *order, by_offset);
        error = pages_build(layout, order, page);
    }
    free(page);
    free(order);
    return error;
}

/* Puts the parts one behind the other, on pages of their own: a lookup goes through all of them. */
static umdev_layout *layout_pack(const umdev_layout *loose)
{
    size_t pages = loose->page_count * sizeof *loose->pages, entries = loose->entry_count * sizeof *loose->entries;
    size_t slots_at = (sizeof *loose + pages + entries + 63) / 64 * 64, slots = loose->count * sizeof *loose->slots;
    size_t size = (slots_at + slots + UMDEV_PAGE_SIZE - 1) / UMDEV_PAGE_SIZE * UMDEV_PAGE_SIZE;
    umdev_layout *layout = aligned_alloc(UMDEV_PAGE_SIZE, size);
    if (!layout)
        return NULL;
    *layout = *loose;
    layout->pages = (void *)(layout + 1);
    layout->entries = (void *)((char *)layout->pages + pages);
    layout->slots = (void *)((char *)layout + slots_at);
    memcpy(layout->pages, loose->pages, pages);
    memcpy(layout->entries, loose->entries, entries);
    memcpy(layout->slots, loose->slots, slots);
    return layout;
}

umdev_layout *umdev_layout_new(const umdev_register *registers, uint32_t count, uint32_t sizes, int *error)
{
    *error = count > SLOTS_LIMIT ? -E2BIG : sizes == 0 || sizes > 15 ? -EINVAL : 0;
    for (uint32_t i = 0; i < count && !*error; i++)
        *error = decl_valid(&registers[i]) ? 0 : -EINVAL;
    if (*error)
        return NULL;
    umdev_layout *layout = calloc(1, sizeof *layout);
    *error = -ENOMEM;
    if (!layout)
        return NULL;
    layout->sizes = sizes;
    layout->count = count;
    layout->slots = calloc(count + 1, sizeof *layout->slots);
    if (layout->slots) {
        for (uint32_t i = 0; i < count; i++)
            slot_init(&layout->slots[i], &registers[i]);
        *error = layout_build(layout);
    }
    umdev_layout *packed = *error ? NULL : layout_pack(layout);
    if (!packed && !*error)
        *error = -ENOMEM;
    free(layout->entries);
    free(layout->pages);
    free(layout->slots);
    free(layout);
    return packed;
}

void umdev_layout_free(umdev_layout *layout)
{
    free(layout);
}

int64_t umdev_layout_find(const umdev_layout *layout, uint64_t offset, uint32_t *element)
{
    uint32_t first;
    const struct umdev_slot *slot = umdev_layout_slot(layout, offset, element, &first);
    return slot ? slot - layout->slots : -1;
}

uint64_t umdev_layout_bytes(const umdev_layout *layout)
{
    return sizeof *layout + layout->count * sizeof *layout->slots + layout->page_count * sizeof *layout->pages +
           layout->entry_count * sizeof *layout->entries;
}

/* ---- cells ---- */

static bool cell_exchange(void *cell, uint32_t width, uint64_t *old, uint64_t now)
{
    bool done;
    switch (width) {
    case 1: {
        uint8_t expected = (uint8_t)*old;
        done = __atomic_compare_exchange_n((uint8_t *)cell, &expected, (uint8_t)now, false, __ATOMIC_RELAXED,
                                           __ATOMIC_RELAXED);
        *old = expected;
        return done;
    }
    case 2: {
        uint16_t expected = (uint16_t)*old;
        done = __atomic_compare_exchange_n((uint16_t *)cell, &expected, (uint16_t)now, false, __ATOMIC_RELAXED,
                                           __ATOMIC_RELAXED);
        *old = expected;
        return done;
    }
    case 4: {
        uint32_t expected = (uint32_t)*old;
        done = __atomic_compare_exchange_n((uint32_t *)cell, &expected, (uint32_t)now, false, __ATOMIC_RELAXED,
                                           __ATOMIC_RELAXED);
        *old = expected;
        return done;
    }
    default:
        return __atomic_compare_exchange_n((uint64_t *)cell, old, now, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
}

uint64_t umdev_cell_update(uintptr_t cell, uint32_t width, uint64_t clear, uint64_t set)
{
    void *at = (void *)cell;
    uint64_t old = umdev_cell_load(at, width);
    while (!cell_exchange(at, width, &old, (old & ~clear) | set)) {
    }
    return old;
}

/* ---- handlers ---- */

static bool take_fault(void)
{
    bool faulted = umdev_faulted;
    umdev_faulted = 0; /* a nested access must not leave its fault to the outer one */
    return faulted;
}

int umdev_register_call(const struct umdev_region *region, const struct umdev_slot *slot, bool write, uint64_t *value)
{
    uint32_t number = (uint32_t)(slot - region->layout->slots);
    if (write)
        region->callbacks.write(region->context, number, *value);
    else
        *value = region->callbacks.read(region->context, number);
    return take_fault() ? UMDEV_FAULT : UMDEV_OK;
}

bool umdev_register_settle(struct umdev_call *call, const struct umdev_slot *slot, int result, uint64_t value,
                           const umdev_access *access, uint32_t first, uint32_t count, uint32_t position)
{
    switch (result) {
    case UMDEV_OK:
        return true;
    case UMDEV_PENDING:
        /* Without the lock a completion could come before the entry is there. */
        if (!call->locked ||
            !umdev_pending_add(call, value, ~slot->decl.hide & slot->ones, position, first, count))
            umdev_call_result(call, UMDEV_FAULT);
        return false;
    case UMDEV_UNHANDLED:
        if (!(call->flags & UMDEV_WRITE))
            value = 0;
        if (umdev_call_lock(call))
            umdev_unmodelled_note(call->device, call->index, access->offset + first, (const uint8_t *)&value + first,
                                  count, call->flags & UMDEV_WRITE);
        return false;
    case UMDEV_ABORT:
    case UMDEV_GONE:
        umdev_call_result(call, result);
        return false;
    default:
        umdev_call_result(call, UMDEV_FAULT);
        return false;
    }
}

/* ---- one register ---- */

void umdev_register_read(struct umdev_call *call, const struct umdev_slot *slot, uint32_t element, uint32_t first,
                         uint32_t count, uint8_t *bytes, uint32_t position)
{
    const umdev_register *decl = &slot->decl;
    struct umdev_region *region = call->region;
    uint8_t *cell = region->state + decl->cell + (size_t)element * decl->width;
    uint32_t number = (uint32_t)(slot - region->layout->slots);
    uint64_t touched = umdev_ones(count) << (8 * first);
    uint64_t value = umdev_cell_load(cell, decl->width);
    bool answered = true;

    switch (decl->on_read) {
    case UMDEV_CALL_NATIVE: {
        umdev_access access = umdev_describe(slot, call->index, element, first, count, call->flags, call->initiator,
                                             call->space);
        int result = decl->native(call->device, &access, &value);
        answered = umdev_register_settle(call, slot, result, value, &access, first, count, position);
        call->touched |= result != UMDEV_UNHANDLED;
        break;
    }
    case UMDEV_CALL_VALUE:
        value = region->callbacks.read(region->context, number);
        break;
    case UMDEV_CALL_ELEMENT:
        value = region->callbacks.read_element(region->context, number, element);
        break;
    default:
        break;
    }
    call->touched |= decl->on_read != UMDEV_CALL_NATIVE;
    if (decl->on_read > UMDEV_CALL_NATIVE && take_fault()) {
        umdev_call_result(call, UMDEV_FAULT);
        answered = false;
    }
    if (answered && (decl->rc & touched)) {
        uint64_t old = umdev_cell_update((uintptr_t)cell, decl->width, decl->rc & touched, 0);
        if (decl->on_read == UMDEV_CALL_NONE)
            value = old; /* a bit set since the load is cleared only if the driver sees it */
    }
    value = answered ? (value & ~decl->hide) >> (8 * first) : 0;
    memcpy(bytes, &value, count);
}

/* The halves of a 64-bit register with a commit rule. False: the access only filled the latch. */
static bool commit(struct umdev_region *region, const umdev_register *decl, uint32_t element, uint64_t *touched,
                   uint64_t *value)
{
    bool low = decl->flags & UMDEV_REGISTER_COMMIT_LOW;
    uint64_t committing = low ? UINT64_C(0xFFFFFFFF) : UINT64_C(0xFFFFFFFF) << 32;
    uint32_t shift = low ? 32 : 0;
    uint8_t *cell = region->state + decl->latch + (size_t)element * 8;
    uint64_t latch = umdev_cell_load(cell, 8); /* the waiting bits, and above them which of them wait */
    uint64_t waiting = (*touched & ~committing) >> shift;

    latch = (latch & ~waiting) | ((*value & ~committing) >> shift) | waiting << 32;
    if (!(*touched & committing)) {
        umdev_cell_store(cell, 8, latch);
        return false;
    }
    umdev_cell_store(cell, 8, 0);
    *touched = (*touched & committing) | (latch >> 32) << shift;
    *value = (*value & committing) | (latch & UINT32_MAX) << shift;
    return true;
}

void umdev_register_write(struct umdev_call *call, const struct umdev_slot *slot, uint32_t element, uint32_t first,
                          uint32_t count, const uint8_t *bytes, uint32_t position)
{
    const umdev_register *decl = &slot->decl;
    struct umdev_region *region = call->region;
    uint8_t *cell = region->state + decl->cell + (size_t)element * decl->width;
    uint32_t number = (uint32_t)(slot - region->layout->slots);
    uint64_t touched = umdev_ones(count) << (8 * first);
    uint64_t value = 0;
    memcpy(&value, bytes, count);
    value <<= 8 * first;

    if (decl->flags & UMDEV_REGISTER_DOORBELL) { /* the same as an access and as an event, which has no value */
        touched = slot->ones;
        value = 0;
    }
    if ((decl->flags & (UMDEV_REGISTER_COMMIT_LOW | UMDEV_REGISTER_COMMIT_HIGH)) &&
        !commit(region, decl, element, &touched, &value)) {
        call->touched = true;
        return;
    }
    if (decl->flags & UMDEV_REGISTER_MASKED) {
        touched &= (value >> (4 * decl->width)) & umdev_ones(decl->width / 2);
        value &= touched;
    }
    uint64_t old = umdev_cell_load(cell, decl->width), now;
    do {
        now = (old & ~(decl->rw & touched)) | (value & decl->rw & touched);
        now &= ~(value & decl->w1c);
        now |= value & decl->w1s;
    } while (!cell_exchange(cell, decl->width, &old, now));
    /* What the handler sees as written: untouched bytes are as they were, but never trigger a W1C or W1S bit. */
    uint64_t written = (old & ~touched & ~(decl->w1c | decl->w1s)) | value;

    call->touched |= decl->on_write != UMDEV_CALL_NATIVE;
    switch (decl->on_write) {
    case UMDEV_CALL_NATIVE: {
        umdev_access access = umdev_describe(slot, call->index, element, first, count, call->flags, call->initiator,
                                             call->space);
        int result = decl->native(call->device, &access, &written);
        umdev_register_settle(call, slot, result, written, &access, first, count, position);
        call->touched |= result != UMDEV_UNHANDLED;
        break;
    }
    case UMDEV_CALL_VALUE:
        region->callbacks.write(region->context, number, written);
        break;
    case UMDEV_CALL_OLD:
        region->callbacks.write_old(region->context, number, written, old);
        break;
    case UMDEV_CALL_ELEMENT:
        region->callbacks.write_element(region->context, number, element, written);
        break;
    default:
        break;
    }
    if (decl->on_write > UMDEV_CALL_NATIVE && take_fault())
        umdev_call_result(call, UMDEV_FAULT);
}
