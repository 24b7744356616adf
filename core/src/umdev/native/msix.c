/* The MSI-X table and pending bit array as bytes of a BAR; PCI Local Bus 3.0, 6.8.2. */
#include <string.h>

#include "irq_private.h"

void umdev_msix_reset(umdev_irq *irq)
{
    for (uint32_t vector = 0; vector < irq->index[UMDEV_IRQ_MSIX].count; vector++)
        irq->table[vector] = (umdev_msix_entry){.control = 1};
}

/* Accesses past the end are nobody's: reads give zeros, writes are dropped. */
static uint32_t clip(uint64_t offset, uint32_t length, uint64_t size)
{
    if (offset >= size)
        return 0;
    return size - offset < length ? (uint32_t)(size - offset) : length;
}

/* The table is kept in host order; its bytes are little-endian. Drivers use aligned 4 or 8 bytes (6.8.2), so going byte
 * by byte costs nothing that matters and serves every other length as well. */
static uint8_t entry_byte(const umdev_msix_entry *entry, uint32_t at)
{
    const uint32_t words[4] = {entry->address_low, entry->address_high, entry->data, entry->control};

    return (uint8_t)(words[at / 4] >> (8 * (at % 4)));
}

static void entry_set_byte(umdev_msix_entry *entry, uint32_t at, uint8_t byte)
{
    uint32_t *const words[4] = {&entry->address_low, &entry->address_high, &entry->data, &entry->control};
    /* Address bits 1:0 may be read-only zeros (6.8.2.7); of Vector Control only the mask bit exists (6.8.2.9). */
    static const uint32_t writable[4] = {0xfffffffcU, 0xffffffffU, 0xffffffffU, 1U};
    uint32_t lane = 0xffU << (8 * (at % 4)) & writable[at / 4];
    uint32_t *word = words[at / 4];

    *word = (*word & ~lane) | ((uint32_t)byte << (8 * (at % 4)) & lane);
}

int umdev_irq_msix_table(void *context, uint64_t offset, void *bytes, uint32_t length, uint32_t flags)
{
    umdev_irq *irq = context;
    uint8_t *byte = bytes;
    const uint32_t stride = sizeof(umdev_msix_entry);

    pthread_mutex_lock(&irq->mutex);
    uint32_t inside = clip(offset, length, (uint64_t)irq->index[UMDEV_IRQ_MSIX].count * stride);
    if (flags & UMDEV_WRITE) {
        for (uint32_t i = 0; i < inside; i++)
            entry_set_byte(&irq->table[(offset + i) / stride], (uint32_t)((offset + i) % stride), byte[i]);
        if (inside) {
            uint32_t last = (uint32_t)((offset + inside - 1) / stride);
            for (uint32_t vector = (uint32_t)(offset / stride); vector <= last; vector++)
                umdev_irq_flush_vector(irq, UMDEV_IRQ_MSIX, vector);
        }
    } else {
        for (uint32_t i = 0; i < inside; i++)
            byte[i] = entry_byte(&irq->table[(offset + i) / stride], (uint32_t)((offset + i) % stride));
        memset(byte + inside, 0, length - inside);
    }
    pthread_mutex_unlock(&irq->mutex);
    return UMDEV_OK;
}

int umdev_irq_msix_pba(void *context, uint64_t offset, void *bytes, uint32_t length, uint32_t flags)
{
    umdev_irq *irq = context;
    uint8_t *byte = bytes;

    if (flags & UMDEV_WRITE)
        return UMDEV_OK; /* "software should never write": results are undefined, so nothing happens (6.8.2.10) */
    pthread_mutex_lock(&irq->mutex);
    const umdev_irq_index_state *msix = &irq->index[UMDEV_IRQ_MSIX];
    memset(byte, 0, length);
    for (uint32_t i = 0; i < clip(offset, length, ((uint64_t)msix->count + 7) / 8); i++)
        for (uint32_t bit = 0; bit < 8; bit++) {
            uint64_t vector = (offset + i) * 8 + bit;
            if (vector < msix->count && msix->vectors[vector].pending)
                byte[i] |= (uint8_t)(1U << bit);
        }
    pthread_mutex_unlock(&irq->mutex);
    return UMDEV_OK;
}
