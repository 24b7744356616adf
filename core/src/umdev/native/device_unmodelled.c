/* The burn-down list: offsets that the driver uses and the model does not declare. */
#include <stdlib.h>

#include "device_internal.h"

enum { TABLE_SIZE = 2 * UMDEV_UNMODELLED_LIMIT }; /* half full at most, so probing stays short */

static umdev_unmodelled *entry_for(umdev_device *device, uint32_t region, uint64_t offset)
{
    uint64_t hash = (offset * UINT64_C(0x9E3779B97F4A7C15) + region) >> 40;
    for (uint64_t i = hash;; i++) {
        umdev_unmodelled *entry = &device->unmodelled[i % TABLE_SIZE];
        if (entry->length == 0 || (entry->region == region && entry->offset == offset))
            return entry;
    }
}

void umdev_unmodelled_note(umdev_device *device, uint32_t region, uint64_t offset, const uint8_t *bytes,
                           uint32_t length, bool write)
{
    if (!device->unmodelled)
        device->unmodelled = calloc(TABLE_SIZE, sizeof *device->unmodelled);
    umdev_unmodelled *entry = device->unmodelled ? entry_for(device, region, offset) : NULL;
    if (!entry || (entry->length == 0 && device->unmodelled_count == UMDEV_UNMODELLED_LIMIT)) {
        device->unmodelled_lost++;
        return;
    }
    if (entry->length == 0)
        device->unmodelled_count++;
    entry->region = region;
    entry->offset = offset;
    entry->length = length;
    if (write) {
        entry->value = 0;
        memcpy(&entry->value, bytes, length < 8 ? length : 8);
        entry->writes++;
    } else {
        entry->reads++;
    }
}

uint32_t umdev_device_unmodelled(umdev_device *device, umdev_unmodelled *entries, uint32_t capacity, uint64_t *lost)
{
    bool taken = umdev_device_lock(device) == 0;
    uint32_t count = device->unmodelled_count, copied = 0;
    *lost = device->unmodelled_lost;
    for (uint32_t i = 0; i < TABLE_SIZE && copied < count && copied < capacity; i++) {
        if (device->unmodelled[i].length)
            entries[copied++] = device->unmodelled[i];
    }
    if (taken)
        umdev_device_unlock(device);
    return count;
}

void umdev_device_forget_unmodelled(umdev_device *device)
{
    bool taken = umdev_device_lock(device) == 0;
    free(device->unmodelled);
    device->unmodelled = NULL;
    device->unmodelled_count = 0;
    device->unmodelled_lost = 0;
    if (taken)
        umdev_device_unlock(device);
}
