/* The interrupts of one function. What may go out, and when; msix.c has the table, irq_eventfd.c the way out,
 * irq_watch.c the unmask eventfds. */
#include <errno.h>
#include <string.h>

#include "irq_private.h"

static void irq_lock(umdev_irq *irq)
{
    pthread_mutex_lock(&irq->mutex);
}

static void send_signal(umdev_irq *irq, const umdev_irq_vector *vector)
{
    irq->counters.sent++;
    umdev_eventfd_signal(vector->fd);
}

static bool heard(const umdev_irq *irq, const umdev_irq_vector *message)
{
    return irq->message_listener || message->fd >= 0;
}

/* Nothing masks it, and somebody hears it. */
static void send_out(umdev_irq *irq, uint32_t index, uint32_t vector)
{
    if (!irq->message_listener) {
        send_signal(irq, &irq->index[index].vectors[vector]);
        return;
    }
    const umdev_msix_entry none = {0}, *entry = index == UMDEV_IRQ_MSIX ? &irq->table[vector] : &none;
    irq->counters.sent++;
    irq->message_listener(irq->message_context, index, vector, (uint64_t)entry->address_high << 32 | entry->address_low,
                          entry->data);
}

/* The VFIO index on which an interrupt would go out; -1 when none can. Enabling MSI or MSI-X forbids the INTx pin
 * (PCI Local Bus 3.0, 6.8.1.3 and 6.8.2.3). */
static int active_index(const umdev_irq *irq)
{
    bool client = irq->policy == UMDEV_IRQ_POLICY_CLIENT;

    if (client ? irq->index[UMDEV_IRQ_MSIX].reach != 0 : (irq->state & UMDEV_IRQ_MSIX_ENABLED) != 0)
        return UMDEV_IRQ_MSIX;
    if (client ? irq->index[UMDEV_IRQ_MSI].reach != 0 : (irq->state & UMDEV_IRQ_MSI_ENABLED) != 0)
        return UMDEV_IRQ_MSI;
    return irq->index[UMDEV_IRQ_INTX].count ? UMDEV_IRQ_INTX : -1;
}

/* The INTx pin as the bus sees it. */
static bool asserted(const umdev_irq *irq)
{
    return irq->sources_high && !(irq->state & UMDEV_IRQ_INTX_DISABLED) && active_index(irq) == UMDEV_IRQ_INTX;
}

static void irq_unlock(umdev_irq *irq)
{
    if (irq->listener && irq->pin != asserted(irq)) {
        irq->pin = !irq->pin;
        irq->listener(irq->listener_context, irq->pin);
    }
    pthread_mutex_unlock(&irq->mutex);
}

/* Signal INTx if it is asserted, nothing holds it and somebody listens; each signal masks until the next unmask. */
static void flush_intx(umdev_irq *irq)
{
    umdev_irq_index_state *intx = &irq->index[UMDEV_IRQ_INTX];

    if (!asserted(irq))
        return;
    umdev_irq_vector *line = &intx->vectors[0];
    if (line->masked || line->fd < 0)
        return;
    line->masked = true;
    send_signal(irq, line);
}

static bool message_masked(const umdev_irq *irq, uint32_t index, uint32_t vector)
{
    if (irq->index[index].vectors[vector].masked)
        return true;
    if (irq->policy == UMDEV_IRQ_POLICY_CLIENT)
        return false;
    if (index == UMDEV_IRQ_MSIX)
        return (irq->state & UMDEV_IRQ_MSIX_MASKED) || (irq->table[vector].control & 1);
    return irq->msi_mask >> vector & 1;
}

void umdev_irq_flush_vector(umdev_irq *irq, uint32_t index, uint32_t vector)
{
    umdev_irq_vector *message = &irq->index[index].vectors[vector];

    if (!message->pending || !heard(irq, message) || !(irq->state & UMDEV_IRQ_BUS_MASTER) ||
        active_index(irq) != (int)index || message_masked(irq, index, vector))
        return;
    message->pending = false;
    send_out(irq, index, vector);
}

static void flush_index(umdev_irq *irq, uint32_t index)
{
    for (uint32_t vector = 0; vector < irq->index[index].count; vector++)
        umdev_irq_flush_vector(irq, index, vector);
}

static void flush_all(umdev_irq *irq)
{
    flush_intx(irq);
    flush_index(irq, UMDEV_IRQ_MSI);
    flush_index(irq, UMDEV_IRQ_MSIX);
}

static void forget_pending(umdev_irq *irq, uint32_t index)
{
    for (uint32_t vector = 0; vector < irq->index[index].count; vector++)
        irq->index[index].vectors[vector].pending = false;
}

uint32_t umdev_irq_vectors(const umdev_irq *irq, uint32_t index)
{
    return index < UMDEV_IRQ_COUNT ? irq->index[index].count : 0;
}

void umdev_irq_set_policy(umdev_irq *irq, int policy)
{
    irq_lock(irq);
    irq->policy = policy;
    flush_all(irq);
    irq_unlock(irq);
}

int umdev_irq_connect(umdev_irq *irq, uint32_t index, uint32_t vector, int fd)
{
    if (vector >= umdev_irq_vectors(irq, index))
        return -EINVAL;
    int copy = fd < 0 ? -1 : umdev_eventfd_dup(fd);
    if (fd >= 0 && copy < 0)
        return copy;
    irq_lock(irq);
    umdev_irq_index_state *state = &irq->index[index];
    umdev_irq_close_vector(&state->vectors[vector]);
    state->vectors[vector].fd = copy;
    if (state->reach <= vector)
        state->reach = vector + 1;
    /* In either policy, what waited for a listener goes out; a mask that the client set stays. */
    if (index == UMDEV_IRQ_INTX)
        flush_intx(irq);
    else if (index == UMDEV_IRQ_MSI || index == UMDEV_IRQ_MSIX)
        umdev_irq_flush_vector(irq, index, vector);
    irq_unlock(irq);
    return 0;
}

int umdev_irq_connect_unmask(umdev_irq *irq, uint32_t index, uint32_t vector, int fd)
{
    if (index != UMDEV_IRQ_INTX || vector >= umdev_irq_vectors(irq, index))
        return -EINVAL;
    int copy = fd < 0 ? -1 : umdev_eventfd_dup(fd);
    if (fd >= 0 && copy < 0)
        return copy;
    return umdev_irq_watch(irq, copy);
}

int umdev_irq_mask(umdev_irq *irq, uint32_t index, uint32_t vector)
{
    if (vector >= umdev_irq_vectors(irq, index))
        return -EINVAL;
    irq_lock(irq);
    irq->index[index].vectors[vector].masked = true;
    irq_unlock(irq);
    return 0;
}

int umdev_irq_unmask(umdev_irq *irq, uint32_t index, uint32_t vector)
{
    if (vector >= umdev_irq_vectors(irq, index))
        return -EINVAL;
    irq_lock(irq);
    irq->index[index].vectors[vector].masked = false;
    if (index == UMDEV_IRQ_INTX)
        flush_intx(irq);
    else
        umdev_irq_flush_vector(irq, index, vector);
    irq_unlock(irq);
    return 0;
}

/* The client's side of an index goes: descriptors and masks. What pends goes with it if the client owns it, or says
 * so. */
static void let_go(umdev_irq *irq, uint32_t index, bool forget)
{
    if (index == UMDEV_IRQ_INTX)
        umdev_irq_watch(irq, -1);
    irq_lock(irq);
    umdev_irq_index_state *state = &irq->index[index];
    for (uint32_t vector = 0; vector < state->count; vector++) {
        umdev_irq_close_vector(&state->vectors[vector]);
        state->vectors[vector].masked = false;
    }
    state->reach = 0;
    if (forget || irq->policy == UMDEV_IRQ_POLICY_CLIENT)
        forget_pending(irq, index);
    flush_all(irq); /* under policy CLIENT another index may be active now */
    irq_unlock(irq);
}

int umdev_irq_disable(umdev_irq *irq, uint32_t index)
{
    if (index >= UMDEV_IRQ_COUNT)
        return -EINVAL;
    let_go(irq, index, true);
    return 0;
}

void umdev_irq_disconnect_all(umdev_irq *irq)
{
    /* Listeners first: who goes does not hear what its masks have held back. */
    umdev_irq_on_level(irq, NULL, NULL);
    umdev_irq_on_message(irq, NULL, NULL);
    for (uint32_t index = 0; index < UMDEV_IRQ_COUNT; index++)
        let_go(irq, index, false);
}

void umdev_irq_on_level(umdev_irq *irq, umdev_level_listener listener, void *context)
{
    irq_lock(irq);
    irq->listener = listener;
    irq->listener_context = context;
    irq->pin = false;
    irq_unlock(irq);
}

void umdev_irq_on_message(umdev_irq *irq, umdev_message_listener listener, void *context)
{
    irq_lock(irq);
    irq->message_listener = listener;
    irq->message_context = context;
    flush_all(irq);
    irq_unlock(irq);
}

int umdev_irq_trigger(umdev_irq *irq, uint32_t index, uint32_t vector)
{
    if (vector >= umdev_irq_vectors(irq, index))
        return -EINVAL;
    irq_lock(irq);
    const umdev_irq_vector *target = &irq->index[index].vectors[vector];
    int result = target->fd < 0 ? -ENOTCONN : 0;
    if (!result)
        send_signal(irq, target);
    irq_unlock(irq);
    return result;
}

/* The message that MSI `vector` goes out as: with fewer messages than the function asked for, vectors share them
 * (PCI Local Bus 3.0, 6.8.3.4). A client that owns the vectors has as many as it connected. */
static uint32_t msi_message(const umdev_irq *irq, uint32_t vector)
{
    uint32_t messages = irq->policy == UMDEV_IRQ_POLICY_CLIENT ? irq->index[UMDEV_IRQ_MSI].reach : irq->msi_allocated;

    return messages && vector >= messages ? vector % messages : vector;
}

/* A masked message pends (PCI Local Bus 3.0, 6.8.2.10), and so does one that nobody listens to: a VMM connects a vector
 * when the guest first uses it. */
static int send_message(umdev_irq *irq, uint32_t index, uint32_t vector)
{
    if (index == UMDEV_IRQ_MSI)
        vector = msi_message(irq, vector);
    if (vector >= irq->index[index].count)
        return -EINVAL;
    if (!(irq->state & UMDEV_IRQ_BUS_MASTER)) {
        irq->counters.dropped++;
        return -EPERM;
    }
    umdev_irq_vector *message = &irq->index[index].vectors[vector];
    if (!heard(irq, message) || message_masked(irq, index, vector)) {
        message->pending = true;
        irq->counters.pended++;
        return 0;
    }
    send_out(irq, index, vector);
    return 0;
}

static void set_source(umdev_irq *irq, uint32_t source, bool level)
{
    if (irq->sources[source] == level)
        return;
    irq->sources[source] = level;
    irq->sources_high += level ? 1 : -1U;
    flush_intx(irq);
}

int umdev_irq_signal(umdev_irq *irq, uint32_t vector)
{
    irq_lock(irq);
    int index = active_index(irq);
    int result = -ENODEV;
    if (index == UMDEV_IRQ_MSI || index == UMDEV_IRQ_MSIX)
        result = send_message(irq, (uint32_t)index, vector);
    irq_unlock(irq);
    return result;
}

void umdev_irq_set_level(umdev_irq *irq, uint32_t source, int level)
{
    if (source >= irq->source_count)
        return;
    irq_lock(irq);
    set_source(irq, source, level != 0);
    irq_unlock(irq);
}

int umdev_irq_raise(umdev_irq *irq, uint32_t vector)
{
    int result = 0;

    irq_lock(irq);
    int index = active_index(irq);
    if (index == UMDEV_IRQ_MSI || index == UMDEV_IRQ_MSIX)
        result = send_message(irq, (uint32_t)index, vector);
    else if (index < 0)
        result = -ENODEV;
    else if (vector >= irq->source_count)
        result = -EINVAL;
    else
        set_source(irq, vector, true);
    irq_unlock(irq);
    return result;
}

int umdev_irq_notify(umdev_irq *irq, uint32_t index)
{
    if (index != UMDEV_IRQ_ERR && index != UMDEV_IRQ_REQ)
        return -EINVAL;
    return umdev_irq_trigger(irq, index, 0);
}

void umdev_irq_set_state(umdev_irq *irq, uint32_t flags)
{
    irq_lock(irq);
    uint32_t gone = irq->state & ~flags;
    irq->state = flags;
    /* A message of a kind that is off cannot be sent later: the driver that turned it off expects none. */
    if (irq->policy == UMDEV_IRQ_POLICY_CORE && (gone & UMDEV_IRQ_MSI_ENABLED))
        forget_pending(irq, UMDEV_IRQ_MSI);
    if (irq->policy == UMDEV_IRQ_POLICY_CORE && (gone & UMDEV_IRQ_MSIX_ENABLED))
        forget_pending(irq, UMDEV_IRQ_MSIX);
    flush_all(irq);
    irq_unlock(irq);
}

void umdev_irq_set_msi(umdev_irq *irq, uint32_t allocated, uint32_t mask)
{
    irq_lock(irq);
    irq->msi_allocated = allocated;
    irq->msi_mask = mask;
    flush_index(irq, UMDEV_IRQ_MSI);
    irq_unlock(irq);
}

uint32_t umdev_irq_msi_pending(umdev_irq *irq)
{
    uint32_t bits = 0;

    irq_lock(irq);
    for (uint32_t vector = 0; vector < irq->index[UMDEV_IRQ_MSI].count; vector++)
        bits |= (uint32_t)irq->index[UMDEV_IRQ_MSI].vectors[vector].pending << vector;
    irq_unlock(irq);
    return bits;
}

int umdev_irq_level(umdev_irq *irq)
{
    irq_lock(irq);
    int level = irq->sources_high != 0;
    irq_unlock(irq);
    return level;
}

int umdev_irq_mode(umdev_irq *irq)
{
    irq_lock(irq);
    int index = active_index(irq);
    irq_unlock(irq);
    return index;
}

void umdev_irq_reset(umdev_irq *irq)
{
    irq_lock(irq);
    memset(irq->sources, 0, irq->source_count * sizeof *irq->sources);
    irq->sources_high = 0;
    forget_pending(irq, UMDEV_IRQ_MSI);
    forget_pending(irq, UMDEV_IRQ_MSIX);
    umdev_msix_reset(irq);
    irq_unlock(irq);
}

int umdev_irq_pending(umdev_irq *irq, uint32_t index, uint32_t vector)
{
    if (vector >= umdev_irq_vectors(irq, index))
        return 0;
    irq_lock(irq);
    int pending = irq->index[index].vectors[vector].pending;
    irq_unlock(irq);
    return pending;
}

void umdev_irq_set_pending(umdev_irq *irq, uint32_t index, uint32_t vector, int pending)
{
    if ((index != UMDEV_IRQ_MSI && index != UMDEV_IRQ_MSIX) || vector >= umdev_irq_vectors(irq, index))
        return;
    irq_lock(irq);
    irq->index[index].vectors[vector].pending = pending != 0;
    umdev_irq_flush_vector(irq, index, vector);
    irq_unlock(irq);
}

uint32_t umdev_irq_sources(const umdev_irq *irq)
{
    return irq->source_count;
}

int umdev_irq_source(umdev_irq *irq, uint32_t source)
{
    if (source >= irq->source_count)
        return 0;
    irq_lock(irq);
    int level = irq->sources[source];
    irq_unlock(irq);
    return level;
}

void umdev_irq_read_counters(umdev_irq *irq, umdev_irq_counters *ret)
{
    irq_lock(irq);
    *ret = irq->counters;
    irq_unlock(irq);
}
