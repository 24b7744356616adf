/* memory: the address space that a device's DMA sees. */
#include "memory_internal.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

struct umdev_memory {
    _Atomic(umdev_table *) table;
    _Atomic uint32_t bus_master;
    umdev_device *device;
    pthread_mutex_t publishing; /* one publisher at a time */
    pthread_rwlock_t messages;  /* held shared while the carrier runs */
    _Atomic uint32_t carried;   /* transfers that the carrier has */
    umdev_message_transfer transfer;
    umdev_message_cancel cancel;
    void *context;
    _Atomic(umdev_memory_filler) filler; /* under `messages`, too; NULL for nearly all buses */
    void *filler_context;
};

enum { FILLS_MAX = 8 }; /* times that a map is asked for where one was made */

static umdev_table *empty_table;
static pthread_once_t empty_once = PTHREAD_ONCE_INIT;

static void empty_start(void)
{
    if (umdev_table_new(NULL, 0, &empty_table))
        empty_table = NULL;
}

umdev_memory *umdev_memory_new(void)
{
    pthread_once(&empty_once, empty_start);
    umdev_memory *memory = calloc(1, sizeof(*memory));
    if (!memory || !empty_table) {
        free(memory);
        return NULL;
    }
    atomic_init(&memory->table, empty_table);
    atomic_init(&memory->bus_master, 1);
    pthread_mutex_init(&memory->publishing, NULL);
    pthread_rwlock_init(&memory->messages, NULL);
    return memory;
}

void umdev_memory_free(umdev_memory *memory)
{
    if (!memory)
        return;
    umdev_table *table = atomic_load(&memory->table);
    if (table != empty_table)
        free(table);
    pthread_rwlock_destroy(&memory->messages);
    pthread_mutex_destroy(&memory->publishing);
    free(memory);
}

/* Who changes the table waits for readers, with `publishing` held: a reader must not even wait for that. */
static bool in_section(void)
{
    return umdev_reader_own && umdev_reader_own->depth;
}

/* With `publishing` held. Takes `table`. */
static void swap_table(umdev_memory *memory, umdev_table *table)
{
    umdev_table *old = atomic_exchange(&memory->table, table);
    umdev_reader_synchronize();
    if (old != empty_table)
        free(old);
}

int umdev_memory_publish(umdev_memory *memory, const umdev_map_entry *entries, uint32_t count)
{
    umdev_table *table;
    if (in_section())
        return -EDEADLK;
    int result = umdev_table_new(entries, count, &table);
    if (result)
        return result;
    pthread_mutex_lock(&memory->publishing);
    swap_table(memory, table);
    pthread_mutex_unlock(&memory->publishing);
    return 0;
}

static bool entry_before(const umdev_map_entry *left, uint32_t space, uint64_t iova)
{
    return left->space < space || (left->space == space && left->iova < iova);
}

int umdev_memory_insert(umdev_memory *memory, const umdev_map_entry *entry)
{
    if (in_section())
        return -EDEADLK;
    pthread_mutex_lock(&memory->publishing);
    const umdev_table *old = atomic_load(&memory->table);
    umdev_map_entry *entries = malloc((old->count + 1) * sizeof(*entries));
    int result = -ENOMEM;
    if (entries) {
        uint32_t at = 0;
        while (at < old->count && entry_before(&old->entries[at], entry->space, entry->iova))
            at++;
        memcpy(entries, old->entries, at * sizeof(*entries));
        entries[at] = *entry;
        memcpy(entries + at + 1, old->entries + at, (old->count - at) * sizeof(*entries));
        umdev_table *table;
        result = umdev_table_new(entries, old->count + 1, &table);
        free(entries);
        if (!result)
            swap_table(memory, table);
    }
    pthread_mutex_unlock(&memory->publishing);
    return result;
}

int umdev_memory_remove(umdev_memory *memory, uint32_t space, uint64_t first, uint64_t last)
{
    if (in_section())
        return -EDEADLK;
    pthread_mutex_lock(&memory->publishing);
    const umdev_table *old = atomic_load(&memory->table);
    umdev_map_entry *entries = malloc((old->count + 1) * sizeof(*entries));
    int result = -ENOMEM;
    if (entries) {
        uint32_t kept = 0;
        for (uint32_t i = 0; i < old->count; i++) {
            const umdev_map_entry *entry = &old->entries[i];
            bool inside =
                entry->space == space && entry->iova >= first && entry->iova + (entry->size - 1) <= last;
            if (!inside)
                entries[kept++] = *entry;
        }
        uint32_t dropped = old->count - kept;
        umdev_table *table;
        result = dropped ? umdev_table_new(entries, kept, &table) : 0;
        free(entries);
        if (!result && dropped)
            swap_table(memory, table);
        if (!result)
            result = (int)dropped;
    }
    pthread_mutex_unlock(&memory->publishing);
    return result;
}

uint32_t umdev_memory_count(umdev_memory *memory)
{
    umdev_reader_begin();
    uint32_t count = atomic_load(&memory->table)->count;
    umdev_reader_end();
    return count;
}

int umdev_memory_set_bus_master(umdev_memory *memory, int enabled)
{
    uint32_t old = atomic_exchange(&memory->bus_master, enabled ? 1 : 0);
    return old && !enabled ? umdev_reader_synchronize() : 0;
}

int umdev_memory_bus_master(umdev_memory *memory)
{
    return (int)atomic_load(&memory->bus_master);
}

int umdev_memory_drain(umdev_memory *memory)
{
    (void)memory; /* readers of all address spaces share one list */
    return umdev_reader_synchronize();
}

void umdev_memory_set_messages(umdev_memory *memory, umdev_message_transfer transfer, umdev_message_cancel cancel,
                               void *context)
{
    pthread_rwlock_wrlock(&memory->messages);
    memory->transfer = transfer;
    memory->cancel = cancel;
    memory->context = context;
    pthread_rwlock_unlock(&memory->messages);
}

void umdev_memory_set_filler(umdev_memory *memory, umdev_memory_filler filler, void *context)
{
    pthread_rwlock_wrlock(&memory->messages);
    memory->filler_context = context;
    atomic_store(&memory->filler, filler);
    pthread_rwlock_unlock(&memory->messages);
}

/* Whether an address that no map covered is covered now. */
static bool fill(umdev_memory *memory, uint32_t space, uint64_t iova, uint64_t length, int write)
{
    if (!atomic_load_explicit(&memory->filler, memory_order_relaxed) || umdev_reader_own->depth)
        return false;
    pthread_rwlock_rdlock(&memory->messages);
    umdev_memory_filler filler = atomic_load(&memory->filler);
    bool filled = filler && filler(memory->filler_context, space, iova, length, write) == 1;
    pthread_rwlock_unlock(&memory->messages);
    return filled;
}

void umdev_memory_cancel_messages(umdev_memory *memory, int cancelled)
{
    pthread_rwlock_rdlock(&memory->messages);
    if (memory->cancel)
        memory->cancel(memory->context, cancelled);
    pthread_rwlock_unlock(&memory->messages);
}

void umdev_memory_drain_messages(umdev_memory *memory)
{
    pthread_rwlock_rdlock(&memory->messages);
    for (unsigned tries = 0; memory->cancel && atomic_load(&memory->carried); tries++) {
        if (tries < 64) {
            sched_yield();
        } else {
            struct timespec pause = {.tv_nsec = 50000};
            nanosleep(&pause, NULL);
        }
    }
    pthread_rwlock_unlock(&memory->messages);
}

void umdev_memory_set_device(umdev_memory *memory, umdev_device *device)
{
    memory->device = device;
}

const umdev_table *umdev_memory_reader_enter(umdev_memory *memory, uint32_t *ticket)
{
    umdev_reader_begin();
    *ticket = umdev_reader_own->depth;
    /* Without bus mastering there is nothing to find. */
    return atomic_load(&memory->bus_master) ? atomic_load(&memory->table) : empty_table;
}

void umdev_memory_reader_exit(umdev_memory *memory, uint32_t ticket)
{
    (void)memory;
    (void)ticket;
    umdev_reader_end();
}

int umdev_memory_lookup(const umdev_table *table, uint32_t space, uint64_t iova, umdev_span *ret)
{
    const umdev_map_entry *entry = umdev_table_find(table, space, iova);
    if (UMDEV_UNLIKELY(!entry))
        return -EFAULT;
    uint64_t offset = iova - entry->iova;
    ret->host = entry->host ? entry->host + offset : NULL;
    ret->length = entry->size - offset;
    ret->protection = entry->protection;
    ret->reserved = 0;
    return 0;
}

/* The common case of a transfer: within one map, in memory of this process. False: not, for whatever reason. */
static inline __attribute__((always_inline)) bool transfer_mapped(umdev_memory *memory, uint32_t space, uint64_t iova,
                                                                  void *bytes, uint64_t length, bool write)
{
    bool done = false;
    umdev_reader_begin();
    const umdev_map_entry *entry = umdev_table_find(atomic_load(&memory->table), space, iova);
    if (UMDEV_LIKELY(entry)) {
        uint64_t offset = iova - entry->iova;
        uint8_t *host = entry->host + offset;
        if (UMDEV_LIKELY(entry->host && (entry->protection & (write ? UMDEV_WRITABLE : UMDEV_READABLE)) &&
                         length <= entry->size - offset && atomic_load(&memory->bus_master))) {
            umdev_copy(write ? host : bytes, write ? bytes : host, length, host);
            done = !umdev_guard_slot_poisoned(entry->guard);
        }
    }
    umdev_reader_end();
    return done;
}

int umdev_memory_copy(umdev_memory *memory, uint32_t space, uint64_t iova, void *bytes, uint64_t length, int write)
{
    return write ? transfer_mapped(memory, space, iova, bytes, length, true)
                 : transfer_mapped(memory, space, iova, bytes, length, false);
}

static int transfer_message(umdev_memory *memory, uint64_t iova, void *bytes, uint64_t length, int write)
{
    /* The client waits for this very handler and so can't answer; or, if the access was posted, for the next one. */
    if (memory->device && umdev_device_context(memory->device) != UMDEV_CONTEXT_NONE)
        return -EDEADLK;
    /* It may also answer only when an access of its own has been answered, so nobody may wait for us meanwhile. */
    int suspended = memory->device ? umdev_device_suspend(memory->device) : 0;
    if (suspended < 0)
        return suspended;
    pthread_rwlock_rdlock(&memory->messages);
    atomic_fetch_add(&memory->carried, 1);
    int result = memory->transfer ? memory->transfer(memory->context, iova, bytes, length, write) : -ENOTCONN;
    atomic_fetch_sub(&memory->carried, 1);
    pthread_rwlock_unlock(&memory->messages);
    if (suspended)
        umdev_device_resume(memory->device);
    return result;
}

int umdev_memory_transfer(umdev_memory *memory, uint32_t space, uint64_t iova, void *bytes, uint64_t length, int write,
                          uint64_t *failed)
{
    const uint32_t needed = write ? UMDEV_WRITABLE : UMDEV_READABLE;
    uint8_t *cursor = bytes;
    uint64_t filled = 0; /* bytes that were left when a map was asked for */
    unsigned fills = 0;  /* of that place: what was mapped may be gone again before it is used, but not for ever */
    int result = 0;
    while (length && !result) {
        uint64_t budget = UMDEV_MEMORY_SECTION_MAX;
        uint64_t by_message = 0;
        bool missing = false;
        umdev_reader_begin();
        const umdev_table *table = atomic_load(&memory->table);
        if (UMDEV_UNLIKELY(!atomic_load(&memory->bus_master)))
            result = -EPERM;
        while (length && budget && !result) {
            const umdev_map_entry *entry = umdev_table_find(table, space, iova);
            if (UMDEV_UNLIKELY(!entry)) {
                result = -EFAULT;
                missing = true;
                break;
            }
            if (UMDEV_UNLIKELY(!(entry->protection & needed))) {
                result = -EACCES;
                break;
            }
            uint64_t offset = iova - entry->iova;
            uint64_t size = entry->size - offset;
            size = size < length ? size : length;
            size = size < budget ? size : budget;
            if (UMDEV_UNLIKELY(!entry->host)) {
                /* The maps may change while it is under way: look again before the next. */
                by_message = size < UMDEV_MESSAGE_TRANSFER_MAX ? size : UMDEV_MESSAGE_TRANSFER_MAX;
                break;
            }
            if (write)
                umdev_copy(entry->host + offset, cursor, size, entry->host + offset);
            else
                umdev_copy(cursor, entry->host + offset, size, entry->host + offset);
            if (UMDEV_UNLIKELY(umdev_guard_slot_poisoned(entry->guard))) {
                result = -UMDEV_MEMORY_POISONED;
                break;
            }
            iova += size;
            cursor += size;
            budget -= size;
            length -= size;
            if (length && iova == 0)
                result = -EFAULT; /* past the end of the space */
        }
        umdev_reader_end();
        if (UMDEV_UNLIKELY(missing)) {
            fills = filled == length ? fills + 1 : 1;
            filled = length;
            if (fills <= FILLS_MAX && fill(memory, space, iova, length, write))
                result = 0;
        }
        if (by_message) {
            result = transfer_message(memory, iova, cursor, by_message, write);
            if (!result) {
                iova += by_message;
                cursor += by_message;
                length -= by_message;
                if (length && iova == 0)
                    result = -EFAULT;
            }
        }
    }
    if (result && failed)
        *failed = iova;
    return result;
}

int umdev_memory_read(umdev_memory *memory, uint32_t space, uint64_t iova, void *bytes, uint64_t length)
{
    if (UMDEV_LIKELY(length <= UMDEV_MEMORY_SECTION_MAX && transfer_mapped(memory, space, iova, bytes, length, false)))
        return 0;
    return umdev_memory_transfer(memory, space, iova, bytes, length, 0, NULL);
}

int umdev_memory_write(umdev_memory *memory, uint32_t space, uint64_t iova, const void *bytes, uint64_t length)
{
    void *source = (void *)(uintptr_t)bytes;
    if (UMDEV_LIKELY(length <= UMDEV_MEMORY_SECTION_MAX && transfer_mapped(memory, space, iova, source, length, true)))
        return 0;
    return umdev_memory_transfer(memory, space, iova, source, length, 1, NULL);
}
