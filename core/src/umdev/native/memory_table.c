/* memory: an immutable table of DMA maps. */
#include "memory_internal.h"

#include <errno.h>
#include <stdlib.h>

/* Whether `next` may stand after `entry` (NULL: at the front). */
static bool in_order(const umdev_map_entry *entry, const umdev_map_entry *next)
{
    if (next->size == 0 || next->iova + (next->size - 1) < next->iova)
        return false;
    if (!entry || entry->space < next->space)
        return true;
    return entry->space == next->space && entry->iova < next->iova && next->iova - entry->iova >= entry->size;
}

int umdev_table_new(const umdev_map_entry *entries, uint32_t count, umdev_table **ret)
{
    if (count > UMDEV_MEMORY_MAPS_MAX)
        return -ENOSPC;
    uint32_t spaces = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (!in_order(i ? &entries[i - 1] : NULL, &entries[i]))
            return -EINVAL;
        spaces += i == 0 || entries[i].space != entries[i - 1].space;
    }
    size_t entry_bytes = sizeof(umdev_table) + (count + 1) * sizeof(umdev_map_entry);
    umdev_table *table = malloc(entry_bytes + count * sizeof(uint64_t) + spaces * sizeof(struct umdev_table_space));
    if (!table)
        return -ENOMEM;
    table->count = count;
    table->spaces = spaces;
    table->starts = (uint64_t *)((uint8_t *)table + entry_bytes);
    table->space = (struct umdev_table_space *)(table->starts + count);
    atomic_init(&table->hint, 0);
    if (count)
        memcpy(table->entries, entries, count * sizeof(umdev_map_entry));
    table->entries[count] = (umdev_map_entry){.guard = -1};
    struct umdev_table_space *space = table->space - 1;
    for (uint32_t i = 0; i < count; i++) {
        table->starts[i] = entries[i].iova;
        if (i == 0 || entries[i].space != entries[i - 1].space)
            *++space = (struct umdev_table_space){.space = entries[i].space, .first = i};
        space->count++;
    }
    *ret = table;
    return 0;
}

const umdev_map_entry *umdev_table_search(const umdev_table *table, uint32_t space, uint64_t iova)
{
    const struct umdev_table_space *run = table->space;
    for (uint32_t left = table->spaces;; left--, run++) {
        if (left == 0)
            return NULL;
        if (run->space == space)
            break;
    }
    /* The last start that is not above iova; without a branch that depends on the data. */
    const uint64_t *base = table->starts + run->first;
    for (uint32_t left = run->count; left > 1;) {
        uint32_t half = left / 2;
        base = base[half] <= iova ? base + half : base;
        left -= half;
    }
    uint32_t index = (uint32_t)(base - table->starts);
    const umdev_map_entry *entry = &table->entries[index];
    if (iova - entry->iova >= entry->size)
        return NULL;
    /* The hint is no part of what is published: losing a race costs a search. */
    atomic_store_explicit(&((umdev_table *)(uintptr_t)table)->hint, index, memory_order_relaxed);
    return entry;
}
