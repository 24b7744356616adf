/* protect: what was stored to since the last look. */
#define _GNU_SOURCE
#include "protect_internal.h"

#include <errno.h>

enum {
    SCAN_REGIONS = 512, /* changed runs that one request reports */
    SCAN_GAP = 64       /* pages; to scan over them is cheaper than another request */
};

/* The regions ascend, so the bits of a word are gathered before they go to memory. */
static void mark_client(const struct umdev_protect_bits *bits, uint64_t base, const struct page_region *regions,
                        int count)
{
    uint64_t word = 0, gathered = 0;
    for (int i = 0; i < count; i++) {
        uint64_t page = (regions[i].start - base) / UMDEV_PAGE, end = (regions[i].end - base) / UMDEV_PAGE;
        if (page + 1 == end && page / 64 == word) { /* mostly */
            gathered |= (uint64_t)1 << (page % 64);
            continue;
        }
        while (page < end) {
            if (page / 64 != word) {
                bits->dirty[word] |= bits->watched[word] & gathered;
                word = page / 64;
                gathered = 0;
            }
            uint64_t rest = end - page;
            gathered |= (rest < 64 ? ((uint64_t)1 << rest) - 1 : ~(uint64_t)0) << (page % 64);
            page = (word + 1) * 64;
        }
    }
    bits->dirty[word] |= bits->watched[word] & gathered;
}

/* As umdev_protect_mark for every page of the regions. */
static void mark_regions(umdev_protector *protector, int slot, const struct page_region *regions, int count)
{
    for (umdev_protect_client *client = protector->clients; client; client = client->next)
        if (client->mode == UMDEV_PROTECT_TRACK && client->bits[slot].watched)
            mark_client(&client->bits[slot], protector->ranges[slot].address, regions, count);
}

static int scan_run(umdev_protector *protector, int slot, uint64_t first, uint64_t end)
{
    uint64_t base = protector->ranges[slot].address;
    struct page_region regions[SCAN_REGIONS];
    struct pm_scan_arg scan = {
        .size = sizeof(scan),
        .flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
        .start = base + first * UMDEV_PAGE,
        .end = base + end * UMDEV_PAGE,
        .vec = (uint64_t)(uintptr_t)regions,
        .vec_len = SCAN_REGIONS,
        .category_mask = PAGE_IS_WRITTEN,
        .return_mask = PAGE_IS_WRITTEN,
    };
    while (scan.start < scan.end) {
        int found = ioctl(protector->pagemap, PAGEMAP_SCAN, &scan);
        if (found < 0)
            return errno == ENOTTY || errno == EINVAL ? -EOPNOTSUPP : -errno;
        mark_regions(protector, slot, regions, found);
        if (scan.walk_end <= scan.start)
            break;
        scan.start = scan.walk_end;
    }
    return 0;
}

/* The kernel calls every page written that is not armed, so only what the client watches is scanned. */
static int scan_client(umdev_protect_client *client)
{
    umdev_protector *protector = client->protector;
    for (int slot = 0; slot < UMDEV_PROTECT_RANGES_MAX; slot++) {
        const uint64_t *watched = client->bits[slot].watched;
        uint64_t pages = protector->ranges[slot].pages;
        uint64_t first = watched ? umdev_bit_next_set(watched, 0, pages) : pages;
        while (first < pages) {
            uint64_t end = umdev_bit_next_clear(watched, first, pages);
            uint64_t next = umdev_bit_next_set(watched, end, pages);
            while (next < pages && next - end <= SCAN_GAP) {
                end = umdev_bit_next_clear(watched, next, pages);
                next = umdev_bit_next_set(watched, end, pages);
            }
            int result = scan_run(protector, slot, first, end);
            if (result)
                return result;
            first = next;
        }
    }
    return 0;
}

int64_t umdev_protect_client_collect(umdev_protect_client *client, uint64_t *pages, uint64_t capacity)
{
    umdev_protector *protector = client->protector;
    pthread_mutex_lock(&protector->lock);
    bool asynchronous = protector->asynchronous;
    int result = protector->lost || client->closed ? -ESRCH : client->mode == UMDEV_PROTECT_TRACK ? 0 : -EPERM;
    if (!result && asynchronous)
        result = scan_client(client);
    uint64_t count = 0;
    for (int slot = 0; slot < UMDEV_PROTECT_RANGES_MAX && !result; slot++) {
        uint64_t *dirty = client->bits[slot].dirty;
        uint64_t end = dirty ? protector->ranges[slot].pages : 0;
        uint64_t address = protector->ranges[slot].address;
        for (uint64_t page = 0; page < end; page += 64, address += 64 * UMDEV_PAGE) {
            uint64_t left = dirty[page / 64];
            if (!left)
                continue;
            for (; left && count < capacity; left &= left - 1)
                pages[count++] = address + (uint64_t)__builtin_ctzll(left) * UMDEV_PAGE;
            dirty[page / 64] = left;
        }
    }
    struct umdev_protect_run run = {.protector = protector, .on = 1};
    for (uint64_t i = 0; i < count && !asynchronous && !result; i++) /* a scan has armed them again already */
        result = umdev_protect_run_add(&run, pages[i], 1);
    if (!result)
        result = umdev_protect_run_flush(&run);
    /* Nobody hears of them this time, so they are for the next. */
    for (uint64_t i = 0; i < count && result; i++) {
        int slot = umdev_protect_find(protector, pages[i]);
        umdev_bit_set(client->bits[slot].dirty, (pages[i] - protector->ranges[slot].address) / UMDEV_PAGE);
    }
    pthread_mutex_unlock(&protector->lock);
    return result ? result : (int64_t)count;
}
