/* How the interrupts of one function come and go. */
#include <stdlib.h>
#include <unistd.h>

#include "irq_private.h"

void umdev_irq_close_vector(umdev_irq_vector *vector)
{
    if (vector->fd >= 0)
        close(vector->fd);
    vector->fd = -1;
}

umdev_irq *umdev_irq_new(int has_intx, uint32_t msi_vectors, uint32_t msix_vectors)
{
    const uint32_t counts[UMDEV_IRQ_COUNT] = {has_intx ? 1 : 0, msi_vectors, msix_vectors, 1, 1};

    if (msi_vectors > UMDEV_MSI_MAX || msix_vectors > UMDEV_MSIX_MAX)
        return NULL;
    umdev_irq *irq = calloc(1, sizeof *irq);
    if (!irq)
        return NULL;
    pthread_mutex_init(&irq->mutex, NULL);
    atomic_init(&irq->references, 1);
    irq->msi_allocated = 1;
    irq->source_count = msix_vectors > UMDEV_INTX_SOURCES ? msix_vectors : UMDEV_INTX_SOURCES;
    irq->sources = calloc(irq->source_count, sizeof *irq->sources);
    irq->table = calloc(msix_vectors ? msix_vectors : 1, sizeof *irq->table);
    bool complete = irq->sources && irq->table;
    for (uint32_t index = 0; index < UMDEV_IRQ_COUNT; index++) {
        umdev_irq_index_state *state = &irq->index[index];
        state->vectors = calloc(counts[index] ? counts[index] : 1, sizeof *state->vectors);
        if (!state->vectors) {
            complete = false;
            continue;
        }
        state->count = counts[index];
        for (uint32_t vector = 0; vector < state->count; vector++)
            state->vectors[vector].fd = -1;
    }
    if (!complete) {
        umdev_irq_unref(irq);
        return NULL;
    }
    umdev_msix_reset(irq);
    return irq;
}

void umdev_irq_unref(umdev_irq *irq)
{
    if (atomic_fetch_sub_explicit(&irq->references, 1, memory_order_acq_rel) != 1)
        return;
    for (uint32_t index = 0; index < UMDEV_IRQ_COUNT; index++) {
        for (uint32_t vector = 0; vector < irq->index[index].count; vector++)
            umdev_irq_close_vector(&irq->index[index].vectors[vector]);
        free(irq->index[index].vectors);
    }
    free(irq->table);
    free(irq->sources);
    pthread_mutex_destroy(&irq->mutex);
    free(irq);
}

void umdev_irq_free(umdev_irq *irq)
{
    if (!irq)
        return;
    umdev_irq_disconnect_all(irq);
    umdev_irq_unref(irq);
}
