/* softgpu: spaces, that is addresses as an engine sees them, and the walk through page tables. */
#include "internal.h"

#include <stdlib.h>

enum {
    SETS = 128,
    WAYS = 2,
    GROUP = 8 /* entries that are looked at together: a cache line of them */
};

/* A page that was found. `generation` tells whether it still counts. */
typedef struct translation {
    uint64_t page; /* of the address, in granules of PAGE */
    uint64_t generation;
    uint64_t base; /* where its first byte, aligned to `shift`, lies */
    uint32_t target;
    uint8_t shift;
    bool writable;
} translation;

/* The table that the last walk ended in: the next page's entry is likely in it too. */
typedef struct last_table {
    uint64_t region; /* the bits of the address above those that the table covers */
    uint64_t generation;
    softgpu_run table;
    uint32_t level;
} last_table;

struct softgpu_space {
    softgpu_port *port;
    bool paged;
    /* Linear. */
    uint32_t target;
    uint64_t base;
    uint64_t last; /* the greatest address */
    /* Paged. */
    softgpu_format format;
    softgpu_decode decode;
    void *context;
    _Atomic uint64_t generation; /* 0 is never current */
    pthread_mutex_t lock;        /* held for a few loads and stores only */
    bool rooted;
    softgpu_run root;
    last_table last_table;
    uint8_t turn[SETS]; /* the way that goes next */
    translation kept[SETS][WAYS];
};

static softgpu_space *space_new(softgpu_port *port)
{
    softgpu_space *space = calloc(1, sizeof(*space));
    if (space) {
        space->port = port;
        atomic_init(&space->generation, 1);
        pthread_mutex_init(&space->lock, NULL);
    }
    return space;
}

softgpu_space *softgpu_space_linear(softgpu_port *port, uint32_t target, uint64_t base, uint64_t size)
{
    if (target >= SOFTGPU_TARGETS || size == 0 || base + (size - 1) < base)
        return NULL;
    softgpu_space *space = space_new(port);
    if (space) {
        space->target = target;
        space->base = base;
        space->last = size - 1;
    }
    return space;
}

static bool format_valid(const softgpu_format *format)
{
    if (format->levels == 0 || format->levels > SOFTGPU_LEVELS_MAX || format->address_bits > 64 ||
        format->address_bits < 12)
        return false;
    for (uint32_t i = 0; i < format->levels; i++) {
        const softgpu_level *level = &format->level[i];
        if (level->shift < 12 || level->shift > 63 || level->bits == 0 || level->bits > 32 ||
            (level->bytes != 4 && level->bytes != 8) || level->stride < level->bytes || level->stride > PAGE)
            return false;
    }
    return true;
}

softgpu_space *softgpu_space_paged(softgpu_port *port, const softgpu_format *format, softgpu_decode decode,
                                   void *context)
{
    if (!format_valid(format) || !decode)
        return NULL;
    softgpu_space *space = space_new(port);
    if (space) {
        space->paged = true;
        space->format = *format;
        space->decode = decode;
        space->context = context;
        space->last = format->address_bits == 64 ? UINT64_MAX : (1ull << format->address_bits) - 1;
    }
    return space;
}

void softgpu_space_free(softgpu_space *space)
{
    if (space) {
        pthread_mutex_destroy(&space->lock);
        free(space);
    }
}

void softgpu_space_set_root(softgpu_space *space, uint32_t target, uint64_t address)
{
    pthread_mutex_lock(&space->lock);
    space->rooted = true;
    space->root = (softgpu_run){.target = target, .address = address};
    atomic_fetch_add(&space->generation, 1);
    pthread_mutex_unlock(&space->lock);
}

void softgpu_space_invalidate(softgpu_space *space)
{
    atomic_fetch_add(&space->generation, 1);
}

softgpu_port *space_port(const softgpu_space *space)
{
    return space->port;
}

uint64_t space_generation(softgpu_space *space)
{
    return atomic_load_explicit(&space->generation, memory_order_acquire);
}

void softgpu_decode_masks(void *context, uint32_t level, uint64_t entry, softgpu_entry *ret)
{
    const softgpu_masks *masks = (const softgpu_masks *)context + level;
    if (!(entry & masks->present))
        return;
    ret->target = masks->target;
    if (masks->leaf == UINT64_MAX || (entry & masks->leaf)) {
        ret->kind = SOFTGPU_PAGE;
        ret->address = entry & masks->page;
        ret->shift = masks->page_shift;
        ret->writable = (entry & masks->writable) == masks->writable;
    } else {
        ret->kind = SOFTGPU_TABLE;
        ret->address = entry & masks->table;
        ret->level = masks->next;
    }
}

softgpu_decode softgpu_masks_decoder(void)
{
    return softgpu_decode_masks;
}

static translation *set_of(softgpu_space *space, uint64_t page)
{
    /* Images lie at round addresses: let higher bits spread source and target over the sets. */
    return space->kept[(page ^ (page >> 7) ^ (page >> 14)) % SETS];
}

static uint64_t region_of(const softgpu_space *space, uint64_t address, uint32_t level)
{
    uint32_t bits = space->format.level[level].shift + space->format.level[level].bits;
    return bits < 64 ? address >> bits : 0;
}

/* Where a walk may begin. */
typedef struct beginning {
    softgpu_run root;
    last_table last;
    bool rooted;
} beginning;

/* What is remembered of a page; else where the walk begins. */
static bool recall(softgpu_space *space, uint64_t page, translation *ret, beginning *begin)
{
    translation *set = set_of(space, page);
    bool found = false;
    pthread_mutex_lock(&space->lock);
    ret->generation = space_generation(space);
    for (unsigned way = 0; way < WAYS && !found; way++) {
        if (set[way].page == page && set[way].generation == ret->generation) {
            *ret = set[way];
            found = true;
        }
    }
    if (!found)
        *begin = (beginning){.root = space->root, .last = space->last_table, .rooted = space->rooted};
    pthread_mutex_unlock(&space->lock);
    return found;
}

/* `generation` is that of the walk's beginning: what was invalidated meanwhile is never found. */
static void remember(softgpu_space *space, const translation *entries, unsigned count, const last_table *last)
{
    pthread_mutex_lock(&space->lock);
    for (unsigned i = 0; i < count; i++) {
        translation *set = set_of(space, entries[i].page);
        uint8_t *turn = &space->turn[(size_t)(set - space->kept[0]) / WAYS];
        unsigned way = 0;
        while (way < WAYS && set[way].page != entries[i].page)
            way++; /* one that is outdated makes room for its successor */
        if (way == WAYS) {
            way = *turn;
            *turn = (uint8_t)((way + 1) % WAYS);
        }
        set[way] = entries[i];
    }
    space->last_table = *last;
    pthread_mutex_unlock(&space->lock);
}

static int entry_read(softgpu_space *space, section *s, const softgpu_run *at, uint32_t bytes, uint64_t *value)
{
    uint8_t *host;
    uint64_t length;
    if (!s)
        return port_transfer(space->port, at, value, bytes, false, &length);
    int result = section_reach(s, at, READ, &host, &length);
    if (result)
        return result;
    if (length < bytes)
        return BY_MESSAGE; /* an entry in two maps: the slow way copes */
    if (((uintptr_t)host & (bytes - 1)) == 0)
        *value = bytes == 8 ? __atomic_load_n((const uint64_t *)(const void *)host, __ATOMIC_ACQUIRE)
                            : __atomic_load_n((const uint32_t *)(const void *)host, __ATOMIC_ACQUIRE);
    else
        memcpy(value, host, bytes);
    return SOFTGPU_OK;
}

/* Levels only grow, so this ends however the guest links its tables. */
static int descend(softgpu_space *space, section *s, uint64_t address, softgpu_run table, uint32_t level,
                   translation *ret, last_table *last, softgpu_fault *fault)
{
    const softgpu_level *shape = &space->format.level[level];
    const uint64_t first = table.address;
    uint64_t index = (address >> shape->shift) & ((1ull << shape->bits) - 1);
    table.address += index * shape->stride;
    table.length = shape->bytes;
    uint64_t value = 0;
    int result = entry_read(space, s, &table, shape->bytes, &value);
    if (UNLIKELY(result)) {
        bool told_as_is = result == BY_MESSAGE || result == SOFTGPU_CLOSED || result == SOFTGPU_WOULD_DEADLOCK;
        return fault_set(fault, told_as_is ? result : SOFTGPU_BAD_TABLE, address, READ, level, table.address);
    }
    softgpu_entry entries[2] = {{.kind = SOFTGPU_NONE}, {.kind = SOFTGPU_NONE}};
    space->decode(space->context, level, value, entries);
    result = fault_set(fault, SOFTGPU_NOT_PRESENT, address, READ, level, table.address);
    for (unsigned i = 0; i < 2 && result == SOFTGPU_NOT_PRESENT; i++) {
        const softgpu_entry *entry = &entries[i];
        if (entry->kind == SOFTGPU_NONE)
            continue;
        if (entry->kind == SOFTGPU_PAGE && entry->target < SOFTGPU_TARGETS && entry->shift >= 12 &&
            entry->shift <= shape->shift) {
            ret->base = entry->address & ~((1ull << entry->shift) - 1);
            ret->target = entry->target;
            ret->shift = (uint8_t)entry->shift;
            ret->writable = entry->writable != 0;
            *last = (last_table){.region = region_of(space, address, level), .generation = ret->generation,
                                 .table = {.target = table.target, .address = first}, .level = level};
            return SOFTGPU_OK;
        }
        if (entry->kind == SOFTGPU_TABLE && entry->level > level && entry->level < space->format.levels &&
            entry->target < SOFTGPU_TARGETS) {
            result = descend(space, s, address,
                             (softgpu_run){.target = entry->target, .address = entry->address}, entry->level, ret,
                             last, fault);
            if (i && entries[0].kind != SOFTGPU_NONE)
                last->generation = 0; /* the other table, which goes first, may have the next page */
        } else {
            result = fault_set(fault, SOFTGPU_BAD_TABLE, address, READ, level, table.address);
        }
    }
    return result;
}

/* The pages beside one that was found, where their entries lie beside its own and say as simply what they are: whoever
 * asked for it is likely to ask for them. entries[0] is the page itself; returns how many there are. */
static unsigned look_around(softgpu_space *space, section *s, uint64_t address, const last_table *last,
                            translation entries[GROUP])
{
    const softgpu_level *shape = &space->format.level[last->level];
    uint64_t index = (address >> shape->shift) & ((1ull << shape->bits) - 1);
    uint64_t start = index & ~(uint64_t)(GROUP - 1);
    unsigned count = 1;
    uint8_t *host;
    uint64_t length;
    softgpu_run group = last->table;
    group.address += start * shape->stride;
    group.length = GROUP * 8;
    if (!s || last->generation == 0 || shape->stride != 8 || shape->bytes != 8 || shape->shift != 12 ||
        entries[0].shift != 12 || ((1ull << shape->bits) - start) < GROUP ||
        section_reach(s, &group, READ, &host, &length) || length < group.length || (uintptr_t)host % 8)
        return count;
    for (unsigned i = 0; i < GROUP; i++) {
        softgpu_entry decoded[2] = {{.kind = SOFTGPU_NONE}, {.kind = SOFTGPU_NONE}};
        if (start + i == index)
            continue;
        space->decode(space->context, last->level,
                      __atomic_load_n((const uint64_t *)(const void *)host + i, __ATOMIC_ACQUIRE), decoded);
        if (decoded[0].kind != SOFTGPU_PAGE || decoded[1].kind != SOFTGPU_NONE || decoded[0].shift != 12 ||
            decoded[0].target >= SOFTGPU_TARGETS)
            continue;
        entries[count++] = (translation){.page = entries[0].page - index + start + i,
                                         .generation = entries[0].generation,
                                         .base = decoded[0].address & ~(uint64_t)(PAGE - 1),
                                         .target = decoded[0].target, .shift = 12,
                                         .writable = decoded[0].writable != 0};
    }
    return count;
}

static int walk_paged(softgpu_space *space, section *s, uint64_t address, uint32_t needed, softgpu_run *ret,
                      softgpu_fault *fault)
{
    translation around[GROUP];
    translation *const found = around;
    beginning begin;
    uint64_t page = address / PAGE;
    if (!recall(space, page, found, &begin)) {
        if (UNLIKELY(!begin.rooted))
            return fault_set(fault, SOFTGPU_NOT_PRESENT, address, needed, 0, 0);
        found->page = page;
        int result = SOFTGPU_NOT_PRESENT;
        if (begin.last.generation == found->generation &&
            begin.last.region == region_of(space, address, begin.last.level))
            result = descend(space, s, address, begin.last.table, begin.last.level, found, &begin.last, NULL);
        if (result) /* from the root: only there another table may lead on, and a fault is told in full */
            result = descend(space, s, address, begin.root, 0, found, &begin.last, fault);
        if (UNLIKELY(result)) {
            if (fault)
                fault->write = (needed & WRITE) != 0;
            return result;
        }
        remember(space, around, look_around(space, s, address, &begin.last, around), &begin.last);
    }
    uint64_t offset = address & ((1ull << found->shift) - 1);
    if (UNLIKELY((needed & WRITE) && !found->writable))
        return fault_set(fault, SOFTGPU_NOT_PERMITTED, address, needed, 0, found->base + offset);
    *ret = (softgpu_run){.address = found->base + offset, .length = (1ull << found->shift) - offset,
                         .target = found->target, .writable = found->writable};
    return SOFTGPU_OK;
}

int space_walk(softgpu_space *space, section *s, uint64_t address, uint32_t needed, softgpu_run *ret,
               softgpu_fault *fault)
{
    if (UNLIKELY(address > space->last))
        return fault_set(fault, SOFTGPU_OUT_OF_RANGE, address, needed, 0, address);
    if (space->paged)
        return walk_paged(space, s, address, needed, ret, fault);
    uint64_t left = space->last - address;
    *ret = (softgpu_run){.address = space->base + address, .length = left == UINT64_MAX ? left : left + 1,
                         .target = space->target, .writable = 1};
    return SOFTGPU_OK;
}

int softgpu_space_translate(softgpu_space *space, uint64_t address, int write, softgpu_run *ret,
                            softgpu_fault *fault)
{
    return space_walk(space, NULL, address, write ? WRITE : READ, ret, fault);
}

static int transfer(softgpu_space *space, uint64_t address, uint8_t *bytes, uint64_t length, bool write,
                    softgpu_fault *fault)
{
    uint32_t needed = write ? WRITE : READ;
    while (length) {
        softgpu_run run;
        int result = space_walk(space, NULL, address, needed, &run, fault);
        if (UNLIKELY(result))
            return result;
        uint64_t part = run.length < length ? run.length : length;
        uint64_t moved;
        result = port_transfer(space->port, &run, bytes, part, write, &moved);
        if (UNLIKELY(result))
            return fault_set(fault, result, address + moved, needed, 0, run.address + moved);
        address += part;
        bytes += part;
        length -= part;
        if (UNLIKELY(length && address == 0)) /* past the end of 64 bits */
            return fault_set(fault, SOFTGPU_OUT_OF_RANGE, UINT64_MAX, needed, 0, 0);
    }
    return SOFTGPU_OK;
}

int softgpu_space_read(softgpu_space *space, uint64_t address, void *bytes, uint64_t length, softgpu_fault *fault)
{
    return transfer(space, address, bytes, length, false, fault);
}

int softgpu_space_write(softgpu_space *space, uint64_t address, const void *bytes, uint64_t length,
                        softgpu_fault *fault)
{
    return transfer(space, address, (uint8_t *)(uintptr_t)bytes, length, true, fault);
}
