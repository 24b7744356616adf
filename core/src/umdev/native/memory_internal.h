/* memory: what its C files share; not for cffi. */
#ifndef UMDEV_MEMORY_INTERNAL_H
#define UMDEV_MEMORY_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "umdev.h"
#include "device_decls.h"
#include "memory_decls.h"

#define UMDEV_LIKELY(x) __builtin_expect(!!(x), 1)
#define UMDEV_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define UMDEV_HIDDEN __attribute__((visibility("hidden")))

/* Readers. A thread in a section shows the epoch in which it entered; a publisher starts a new epoch and waits until
 * nobody shows an older one. One list for the whole process, so a thread pays one line of memory however many
 * address spaces it reads. Lines are never freed: a thread that ends leaves its line to the next one. */
typedef struct umdev_reader {
    _Atomic uint64_t epoch;   /* 0: outside of any section */
    uint32_t depth;           /* of nested sections; the owner's alone */
    _Atomic uint32_t claimed; /* by a living thread */
    struct umdev_reader *next;
} __attribute__((aligned(64))) umdev_reader;

/* One pointer in the static TLS block: a lookup without a call, small enough for a library loaded late. */
extern UMDEV_HIDDEN _Thread_local umdev_reader *umdev_reader_own __attribute__((tls_model("initial-exec")));
extern UMDEV_HIDDEN _Atomic uint64_t umdev_reader_epoch;
extern UMDEV_HIDDEN bool umdev_reader_fences; /* no membarrier(2): readers pay for the ordering */

UMDEV_HIDDEN umdev_reader *umdev_reader_register(void);
/* Wait until every section that was entered before the call has ended. -EDEADLK inside a section. */
UMDEV_HIDDEN int umdev_reader_synchronize(void);

static inline void umdev_reader_begin(void)
{
    umdev_reader *own = umdev_reader_own;
    if (UMDEV_UNLIKELY(!own))
        own = umdev_reader_register();
    if (own->depth++)
        return;
    uint64_t epoch = atomic_load_explicit(&umdev_reader_epoch, memory_order_relaxed);
    if (UMDEV_UNLIKELY(umdev_reader_fences))
        atomic_store_explicit(&own->epoch, epoch, memory_order_seq_cst);
    else
        atomic_store_explicit(&own->epoch, epoch, memory_order_release);
    /* Otherwise the publisher's membarrier(2) orders this store before the loads that follow. */
    atomic_signal_fence(memory_order_seq_cst);
}

static inline void umdev_reader_end(void)
{
    umdev_reader *own = umdev_reader_own;
    if (--own->depth == 0)
        atomic_store_explicit(&own->epoch, 0, memory_order_release);
}

/* Tables. Immutable but for the hint. `starts` repeats each entry's iova so that a search touches few lines. */
struct umdev_table {
    _Atomic uint32_t hint; /* the entry hit last */
    uint32_t count;
    uint32_t spaces;                 /* runs of equal `space` */
    struct umdev_table_space *space; /* of `spaces` */
    uint64_t *starts;
    umdev_map_entry entries[]; /* count, then one of size 0 so that a hint is always valid */
};

struct umdev_table_space {
    uint32_t space;
    uint32_t first;
    uint32_t count;
};

UMDEV_HIDDEN int umdev_table_new(const umdev_map_entry *entries, uint32_t count, umdev_table **ret);
UMDEV_HIDDEN const umdev_map_entry *umdev_table_search(const umdev_table *table, uint32_t space, uint64_t iova);

static inline const umdev_map_entry *umdev_table_find(const umdev_table *table, uint32_t space, uint64_t iova)
{
    const umdev_map_entry *entry = &table->entries[atomic_load_explicit(&table->hint, memory_order_relaxed)];
    if (UMDEV_LIKELY(iova - entry->iova < entry->size && entry->space == space))
        return entry;
    return umdev_table_search(table, space, iova);
}

#define UMDEV_GUARD_BLOCK 1024u
#define UMDEV_GUARD_BLOCKS 1024u

struct umdev_guard_slot {
    _Atomic uintptr_t address; /* 0: free. Stored last, cleared first */
    _Atomic uint64_t length;
    _Atomic uint32_t protection;
    _Atomic uint32_t poisoned;
};

/* Anonymous zeros in place of a mapping, under readers and in signal handlers. 0 or a negative errno. */
UMDEV_HIDDEN int umdev_guard_replace(uintptr_t address, uint64_t length, uint32_t protection);

extern UMDEV_HIDDEN struct umdev_guard_slot *_Atomic umdev_guard_blocks[UMDEV_GUARD_BLOCKS];

static inline bool umdev_guard_slot_poisoned(int32_t slot)
{
    if (slot < 0)
        return false;
    uint32_t index = (uint32_t)slot;
    struct umdev_guard_slot *block =
        atomic_load_explicit(&umdev_guard_blocks[index / UMDEV_GUARD_BLOCK], memory_order_acquire);
    return atomic_load_explicit(&block[index % UMDEV_GUARD_BLOCK].poisoned, memory_order_acquire) != 0;
}

/* One copy for both directions. Ring indexes and ownership bits rely on aligned scalars that are never torn. */
static inline void umdev_copy(void *to, const void *from, uint64_t length, const void *shared)
{
    if (((uintptr_t)shared & (length - 1)) == 0) {
        uint64_t whole8;
        uint32_t whole4;
        uint16_t whole2;
        switch (length) {
        case 8:
            if (shared == to) {
                memcpy(&whole8, from, 8);
                __atomic_store_n((uint64_t *)to, whole8, __ATOMIC_RELEASE);
            } else {
                whole8 = __atomic_load_n((const uint64_t *)from, __ATOMIC_ACQUIRE);
                memcpy(to, &whole8, 8);
            }
            return;
        case 4:
            if (shared == to) {
                memcpy(&whole4, from, 4);
                __atomic_store_n((uint32_t *)to, whole4, __ATOMIC_RELEASE);
            } else {
                whole4 = __atomic_load_n((const uint32_t *)from, __ATOMIC_ACQUIRE);
                memcpy(to, &whole4, 4);
            }
            return;
        case 2:
            if (shared == to) {
                memcpy(&whole2, from, 2);
                __atomic_store_n((uint16_t *)to, whole2, __ATOMIC_RELEASE);
            } else {
                whole2 = __atomic_load_n((const uint16_t *)from, __ATOMIC_ACQUIRE);
                memcpy(to, &whole2, 2);
            }
            return;
        case 1:
            if (shared == to)
                __atomic_store_n((uint8_t *)to, *(const uint8_t *)from, __ATOMIC_RELEASE);
            else
                *(uint8_t *)to = __atomic_load_n((const uint8_t *)from, __ATOMIC_ACQUIRE);
            return;
        default:
            break;
        }
    }
    memcpy(to, from, length);
}

#endif
