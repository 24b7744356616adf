/* Parts of a region that are not registers: windows of host memory, and overlays that a handler of bytes serves. */
#include <errno.h>
#include <stdlib.h>

#include "device_internal.h"

/* The area that holds `offset`, else NULL and in *gap the bytes up to the next area (or to the end of the region). */
const struct umdev_area *umdev_area_at(const struct umdev_region *region, uint64_t offset, uint64_t *gap)
{
    *gap = region->size - offset;
    for (uint32_t i = 0; i < region->area_count; i++) {
        const struct umdev_area *area = &region->areas[i];
        if (offset < area->offset) {
            *gap = area->offset - offset;
            return NULL;
        }
        if (offset - area->offset < area->length)
            return area;
    }
    return NULL;
}

static bool meets_register(const struct umdev_region *region, uint64_t offset, uint64_t length)
{
    const umdev_layout *layout = region->layout;
    if (!layout)
        return false;
    uint32_t element, first;
    uint64_t granule = UINT64_C(1) << layout->granule_shift, page = UINT64_C(1) << layout->page_shift;
    for (uint64_t at = offset; at < offset + length && at < layout->span;) {
        bool empty = layout->pages[at >> layout->page_shift] == 0; /* a large window skips what holds no register */
        if (!empty && umdev_layout_slot(layout, at, &element, &first))
            return true;
        at += empty ? page - at % page : granule - at % granule;
    }
    return false;
}

static int area_add(umdev_device *device, uint32_t index, const struct umdev_area *area)
{
    if (index >= UMDEV_REGION_COUNT)
        return -EINVAL;
    struct umdev_region *region = &device->regions[index];
    if (area->length == 0 || area->offset >= region->size || area->length > region->size - area->offset)
        return -EINVAL;
    if (meets_register(region, area->offset, area->length))
        return -EEXIST;
    uint32_t place = 0;
    while (place < region->area_count && region->areas[place].offset < area->offset)
        place++;
    if (place > 0 && region->areas[place - 1].offset + region->areas[place - 1].length > area->offset)
        return -EEXIST;
    if (place < region->area_count && area->offset + area->length > region->areas[place].offset)
        return -EEXIST;
    struct umdev_area *grown = realloc(region->areas, (region->area_count + 1) * sizeof *grown);
    if (!grown)
        return -ENOMEM;
    memmove(grown + place + 1, grown + place, (region->area_count - place) * sizeof *grown);
    grown[place] = *area;
    region->areas = grown;
    region->area_count++;
    return 0;
}

int umdev_device_add_window(umdev_device *device, uint32_t region, uint64_t offset, uint64_t length, uint8_t *host,
                            uint32_t flags)
{
    if (!host)
        return -EINVAL;
    return area_add(device, region,
                    &(struct umdev_area){.offset = offset, .length = length, .host = host, .flags = flags});
}

int umdev_device_add_overlay(umdev_device *device, uint32_t region, uint64_t offset, uint64_t length,
                             umdev_bytes_handler handler, void *context, uint32_t flags)
{
    if (!handler)
        return -EINVAL;
    return area_add(
        device, region,
        &(struct umdev_area){
            .offset = offset, .length = length, .handler = handler, .context = context, .flags = flags});
}

/* Memory that the driver reaches: a natural access is one load or store, as on hardware; longer ones are copied. */
static void window_copy(uint8_t *host, uint8_t *bytes, uint32_t length, bool write)
{
    bool natural = length <= 8 && (length & (length - 1)) == 0 && (uintptr_t)host % length == 0;
    uint64_t value = 0;
    if (natural && write) {
        memcpy(&value, bytes, length);
        umdev_cell_store(host, length, value);
    } else if (natural) {
        value = umdev_cell_load(host, length);
        memcpy(bytes, &value, length);
    } else if (write) {
        memcpy(host, bytes, length);
    } else {
        memcpy(bytes, host, length);
    }
}

void umdev_area_access(struct umdev_call *call, const struct umdev_area *area, uint64_t offset, uint8_t *bytes,
                       uint32_t length)
{
    bool write = call->flags & UMDEV_WRITE;
    call->touched = true;
    if (area->host) {
        if (!write || !(area->flags & UMDEV_AREA_READONLY))
            window_copy(area->host + (offset - area->offset), bytes, length, write);
        return;
    }
    if (!(area->flags & UMDEV_AREA_LOCKLESS) && !umdev_call_lock(call))
        return;
    int result = area->handler(area->context, offset - area->offset, bytes, length, call->flags);
    if (umdev_faulted) {
        umdev_faulted = 0;
        result = UMDEV_FAULT;
    }
    if (result != UMDEV_OK) /* bytes have no token: what can't be answered now is a failure */
        umdev_call_result(call, result == UMDEV_ABORT || result == UMDEV_GONE ? result : UMDEV_FAULT);
}
