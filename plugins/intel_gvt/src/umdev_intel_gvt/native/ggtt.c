/* The global graphics translation table as its driver sees it: 64-bit entries, of which a vGPU has two slices. */
#include <stdbool.h>
#include <string.h>

#include "umdev.h"

#include "gvt_decls.h"

static bool owned(const gvt_ggtt *ggtt, uint32_t index)
{
    for (int i = 0; i < 2; i++) {
        if (index >= ggtt->slices[i].first && index < ggtt->slices[i].end)
            return true;
    }
    return false;
}

int gvt_ggtt_access(void *context, uint64_t offset, void *bytes, uint32_t length, uint32_t flags)
{
    gvt_ggtt *ggtt = context;
    bool write = flags & UMDEV_WRITE;
    uint64_t index = offset / 8;
    bool takes = (length == 4 || length == 8) && offset % length == 0;
    if (!takes || index >= ggtt->count || !owned(ggtt, (uint32_t)index)) {
        if (write)
            ggtt->refused++;
        else
            memset(bytes, 0, length);
        return UMDEV_OK;
    }
    /* The engine's walker reads entries without the lock: each half is one store, so it never sees a torn one. */
    uint64_t *entry = &ggtt->entries[index];
    uint32_t *half = (uint32_t *)entry + offset % 8 / 4;
    if (write) {
        uint64_t value = 0;
        memcpy(&value, bytes, length);
        if (length == 8)
            __atomic_store_n(entry, value, __ATOMIC_RELEASE);
        else
            __atomic_store_n(half, (uint32_t)value, __ATOMIC_RELEASE);
        ggtt->updates++;
    } else {
        uint64_t value =
            length == 8 ? __atomic_load_n(entry, __ATOMIC_RELAXED) : __atomic_load_n(half, __ATOMIC_RELAXED);
        memcpy(bytes, &value, length);
    }
    return UMDEV_OK;
}
