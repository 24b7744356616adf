/* device: what its C files share. Not seen by cffi. */
#ifndef UMDEV_DEVICE_INTERNAL_H
#define UMDEV_DEVICE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "umdev.h"
#include "device_decls.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "register bytes are copied, not swapped");

#define UMDEV_LIKELY(x) __builtin_expect(!!(x), 1)
#define UMDEV_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define UMDEV_CACHE_LINE 64
#define UMDEV_PAGE_SIZE 4096

enum { UMDEV_PENDING_LIMIT = 64, UMDEV_UNMODELLED_LIMIT = 4096 };

/* A register with what dispatch wants to know at once. */
struct umdev_slot {
    umdev_register decl;
    uint64_t ones;        /* all bits of the width */
    bool free_load;       /* a read is one atomic load */
    bool free_store;      /* a full-width write is one atomic store */
    bool handled_load;    /* a read is a call of the handler, with no more than the value */
    bool handled_store;   /* a full-width write is one atomic store, then such a call */
    bool lockless;        /* never needs the lock */
};

struct umdev_layout {
    struct umdev_slot *slots;
    uint32_t count;
    uint32_t sizes;
    uint64_t span;           /* first byte after the last register */
    uint32_t page_shift;     /* log2 of the bytes that one page covers */
    uint32_t granule_shift;  /* log2 of the bytes that one entry covers */
    uint32_t *pages;         /* by offset >> page_shift: index of a page; page 0 is empty */
    uint16_t *entries;       /* pages one after another; an entry is a slot index + 1, or 0 */
    uint64_t page_count;
    uint64_t entry_count;
};

/* A part of a region that is not registers: a window (host memory) or an overlay (a handler of bytes). */
struct umdev_area {
    uint64_t offset;
    uint64_t length;
    uint8_t *host; /* NULL: overlay */
    umdev_bytes_handler handler;
    void *context;
    uint32_t flags;
};

struct umdev_region {
    atomic_uint open; /* 1: present, enabled, device not gone, no intercept: the fast path may run */
    atomic_uint enabled;
    const umdev_layout *layout;
    uint8_t *state;
    uint64_t size; /* 0: no such region */
    struct umdev_area *areas; /* by offset, disjoint */
    uint32_t area_count;
    umdev_callbacks callbacks;
    void *context;
};

/* An access that waits for `umdev_device_complete`. While its thread is inside the access it is on that thread's stack
 * and has no completion; one that nobody waits for moves to the heap then. */
struct umdev_transaction {
    uint8_t *bytes;
    uint32_t length;
    uint32_t waiting; /* registers of this access still pending */
    bool write;
    int result;
    umdev_completion completion; /* NULL: on a stack; else on the heap */
    void *context;
};

struct umdev_pending {
    struct umdev_transaction *transaction; /* NULL: entry is free */
    uint64_t token;
    uint64_t visible; /* bits of the register that a read may see */
    uint32_t position; /* first byte of this register's part in the access */
    uint32_t first;    /* first byte of the part in the register */
    uint32_t count;
};

/* What every access looks at stands first, on one page: after an exit of the guest the processor has forgotten where
 * the pages are, and each one that is touched costs. */
struct umdev_device {
    /* Counted by every thread: on a line of their own. */
    struct {
        _Alignas(UMDEV_PAGE_SIZE) atomic_ullong reads;
        atomic_ullong writes, unhandled, aborted, faulted, illegal;
    } counters;

    _Alignas(UMDEV_CACHE_LINE) pthread_mutex_t mutex;
    _Atomic(const void *) owner; /* identity of the holding thread */
    void *user_data;
    atomic_uint gone;
    atomic_uint intercepted; /* intercept is not NULL */
    umdev_memory *memory;
    umdev_irq *irq;
    uint32_t id;
    struct umdev_region regions[UMDEV_REGION_COUNT];

    pthread_mutex_t gates;   /* orders changes of gone, enabled and intercept */
    umdev_intercept intercept; /* under gates, as its context */
    void *intercept_context;

    pthread_cond_t completed;
    struct umdev_pending pending[UMDEV_PENDING_LIMIT]; /* under the lock, as all below */
    uint32_t pending_count;
    uint32_t suspended; /* threads between suspend and resume */
    uint32_t ending;    /* threads that end what is suspended */
    umdev_unmodelled *unmodelled;
    uint32_t unmodelled_count;
    uint64_t unmodelled_lost;
};

/* One access on its way through dispatch. */
struct umdev_call {
    umdev_device *device;
    struct umdev_region *region;
    uint32_t index; /* of the region */
    uint32_t flags;
    uint32_t initiator;
    uint32_t space;
    bool locked;  /* dispatch took the lock */
    bool touched; /* something declared was reached */
    int result;   /* UMDEV_OK, or the first failure */
    struct umdev_transaction *transaction;
};

/* The accesses that the calling thread is inside, innermost first. */
struct umdev_frame {
    const umdev_device *device;
    int context;
    struct umdev_frame *outer;
};
extern _Thread_local struct umdev_frame *umdev_frames;
extern _Thread_local int umdev_faulted;

static inline void umdev_count(atomic_ullong *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

static inline uint64_t umdev_ones(uint32_t bytes)
{
    return bytes >= 8 ? ~UINT64_C(0) : (UINT64_C(1) << (8 * bytes)) - 1;
}

static inline uint64_t umdev_cell_load(const void *cell, uint32_t width)
{
    switch (width) {
    case 1:
        return __atomic_load_n((const uint8_t *)cell, __ATOMIC_RELAXED);
    case 2:
        return __atomic_load_n((const uint16_t *)cell, __ATOMIC_RELAXED);
    case 4:
        return __atomic_load_n((const uint32_t *)cell, __ATOMIC_RELAXED);
    default:
        return __atomic_load_n((const uint64_t *)cell, __ATOMIC_RELAXED);
    }
}

static inline void umdev_cell_store(void *cell, uint32_t width, uint64_t value)
{
    switch (width) {
    case 1:
        __atomic_store_n((uint8_t *)cell, (uint8_t)value, __ATOMIC_RELAXED);
        break;
    case 2:
        __atomic_store_n((uint16_t *)cell, (uint16_t)value, __ATOMIC_RELAXED);
        break;
    case 4:
        __atomic_store_n((uint32_t *)cell, (uint32_t)value, __ATOMIC_RELAXED);
        break;
    default:
        __atomic_store_n((uint64_t *)cell, value, __ATOMIC_RELAXED);
        break;
    }
}

/* A scalar of 1, 2, 4 or 8 bytes that need not be aligned. */
static inline uint64_t umdev_bytes_load(const void *bytes, uint32_t length)
{
    uint64_t value = 0;
    switch (length) {
    case 1:
        memcpy(&value, bytes, 1);
        break;
    case 2:
        memcpy(&value, bytes, 2);
        break;
    case 4:
        memcpy(&value, bytes, 4);
        break;
    default:
        memcpy(&value, bytes, 8);
    }
    return value;
}

static inline void umdev_bytes_store(void *bytes, uint32_t length, uint64_t value)
{
    switch (length) {
    case 1:
        memcpy(bytes, &value, 1);
        break;
    case 2:
        memcpy(bytes, &value, 2);
        break;
    case 4:
        memcpy(bytes, &value, 4);
        break;
    default:
        memcpy(bytes, &value, 8);
    }
}

/* The slot at `offset`, or NULL; *element and *first say which element and which byte of it. */
static inline const struct umdev_slot *umdev_layout_slot(const umdev_layout *layout, uint64_t offset,
                                                         uint32_t *element, uint32_t *first)
{
    if (offset >= layout->span)
        return NULL;
    uint64_t page = layout->pages[offset >> layout->page_shift];
    uint64_t within = offset & ((UINT64_C(1) << layout->page_shift) - 1);
    uint32_t entry =
        layout->entries[(page << (layout->page_shift - layout->granule_shift)) + (within >> layout->granule_shift)];
    if (entry == 0)
        return NULL;
    const struct umdev_slot *slot = &layout->slots[entry - 1];
    uint64_t distance = offset - slot->decl.offset;
    *element = 0;
    if (slot->decl.count > 1) {
        *element = (uint32_t)(distance / slot->decl.stride);
        distance -= *element * slot->decl.stride;
    }
    *first = (uint32_t)distance;
    return slot;
}

/* What a handler is told of `count` bytes from byte `first` of a register. */
static inline umdev_access umdev_describe(const struct umdev_slot *slot, uint32_t region, uint32_t element,
                                          uint32_t first, uint32_t count, uint32_t flags, uint32_t initiator,
                                          uint32_t space)
{
    const umdev_register *decl = &slot->decl;
    return (umdev_access){
        .header = {.size = sizeof(umdev_access), .major = UMDEV_ABI_MAJOR, .minor = UMDEV_ABI_MINOR},
        .region = region,
        .flags = flags,
        .offset = decl->offset + element * (decl->count > 1 ? decl->stride : 0),
        .width = decl->width,
        .byte_mask = ((UINT32_C(1) << count) - 1) << first,
        .index = element,
        .initiator = initiator,
        .space = space,
    };
}

/* Takes the lock for a call unless it has it. False: the calling thread held it before; call->result says so. */
bool umdev_call_lock(struct umdev_call *call);
/* Notes a handler's result; UMDEV_OK changes nothing. */
void umdev_call_result(struct umdev_call *call, int result);

/* registers.c: `count` bytes from byte `first` of one register. */
void umdev_register_read(struct umdev_call *call, const struct umdev_slot *slot, uint32_t element, uint32_t first,
                         uint32_t count, uint8_t *bytes, uint32_t position);
void umdev_register_write(struct umdev_call *call, const struct umdev_slot *slot, uint32_t element, uint32_t first,
                          uint32_t count, const uint8_t *bytes, uint32_t position);

/* Calls the Python handler of a value: UMDEV_OK or UMDEV_FAULT. */
int umdev_register_call(const struct umdev_region *region, const struct umdev_slot *slot, bool write, uint64_t *value);
/* Settles what a C handler returned, for bytes as above. True: `value` counts. */
bool umdev_register_settle(struct umdev_call *call, const struct umdev_slot *slot, int result, uint64_t value,
                           const umdev_access *access, uint32_t first, uint32_t count, uint32_t position);

/* windows.c */
const struct umdev_area *umdev_area_at(const struct umdev_region *region, uint64_t offset, uint64_t *gap);
void umdev_area_access(struct umdev_call *call, const struct umdev_area *area, uint64_t offset, uint8_t *bytes,
                       uint32_t length);

/* device_pending.c, with the lock held. False: the table is full or the token is in use. */
bool umdev_pending_add(struct umdev_call *call, uint64_t token, uint64_t visible, uint32_t position, uint32_t first,
                       uint32_t count);
void umdev_pending_end_all(umdev_device *device, int result);
/* Sleep until something completes: releases the lock meanwhile. */
void umdev_device_wait(umdev_device *device);

/* device_unmodelled.c, with the lock held. */
void umdev_unmodelled_note(umdev_device *device, uint32_t region, uint64_t offset, const uint8_t *bytes,
                           uint32_t length, bool write);

#endif
