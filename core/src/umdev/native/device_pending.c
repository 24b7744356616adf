/* Accesses that a handler answers later. */
#include <errno.h>
#include <stdlib.h>

#include "device_internal.h"

bool umdev_pending_add(struct umdev_call *call, uint64_t token, uint64_t visible, uint32_t position, uint32_t first,
                       uint32_t count)
{
    umdev_device *device = call->device;
    struct umdev_pending *place = NULL;
    for (uint32_t i = 0; i < UMDEV_PENDING_LIMIT; i++) {
        struct umdev_pending *entry = &device->pending[i];
        if (!entry->transaction)
            place = place ? place : entry;
        else if (entry->token == token)
            return false;
    }
    if (!place)
        return false;
    *place = (struct umdev_pending){.transaction = call->transaction,
                                    .token = token,
                                    .visible = visible,
                                    .position = position,
                                    .first = first,
                                    .count = count};
    call->transaction->waiting++;
    device->pending_count++;
    return true;
}

/* One register of the transaction has its answer. Returns it when that was the last and a callback is due. */
static struct umdev_transaction *pending_end(umdev_device *device, struct umdev_pending *entry, int result,
                                             uint64_t value)
{
    struct umdev_transaction *transaction = entry->transaction;
    if (result != UMDEV_OK && transaction->result == UMDEV_OK)
        transaction->result = result;
    if (!transaction->write) {
        value = (value & entry->visible) >> (8 * entry->first);
        memcpy(transaction->bytes + entry->position, &value, entry->count);
    }
    entry->transaction = NULL;
    device->pending_count--;
    if (--transaction->waiting)
        return NULL;
    if (transaction->result != UMDEV_OK && !transaction->write)
        memset(transaction->bytes, 0xFF, transaction->length);
    if (transaction->completion)
        return transaction;
    pthread_cond_broadcast(&device->completed);
    return NULL;
}

static void transaction_report(struct umdev_transaction *transaction)
{
    if (!transaction)
        return;
    transaction->completion(transaction->context, transaction->result);
    free(transaction);
}

int umdev_device_complete(umdev_device *device, uint64_t token, uint64_t value)
{
    bool taken = umdev_device_lock(device) == 0; /* a handler may complete another's access */
    struct umdev_transaction *done = NULL;
    int error = -ENOENT;
    for (uint32_t i = 0; i < UMDEV_PENDING_LIMIT && device->pending_count; i++) {
        struct umdev_pending *entry = &device->pending[i];
        if (entry->transaction && entry->token == token) {
            done = pending_end(device, entry, UMDEV_OK, value);
            error = 0;
            break;
        }
    }
    if (taken)
        umdev_device_unlock(device);
    transaction_report(done);
    return error;
}

void umdev_pending_end_all(umdev_device *device, int result)
{
    for (uint32_t i = 0; i < UMDEV_PENDING_LIMIT && device->pending_count; i++) {
        if (device->pending[i].transaction)
            transaction_report(pending_end(device, &device->pending[i], result, 0));
    }
}

void umdev_device_abort_pending(umdev_device *device)
{
    bool taken = umdev_device_lock(device) == 0;
    umdev_pending_end_all(device, UMDEV_ABORT);
    if (taken)
        umdev_device_unlock(device);
}
