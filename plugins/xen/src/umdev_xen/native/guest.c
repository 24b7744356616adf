/* Guest memory for data by pointer: a few pages, mapped when they are needed. */
#include "internal.h"

#include <stdlib.h>
#include <sys/mman.h>

/* With the cache's mutex. NULL: not the guest's, or not RAM. */
static uint8_t *page_of(umdev_xen *domain, uint64_t frame)
{
    struct umdev_xen_mapping *oldest = &domain->mappings[0];
    for (uint32_t i = 0; i < UMDEV_XEN_MAPPINGS; i++) {
        struct umdev_xen_mapping *mapping = &domain->mappings[i];
        if (mapping->page && mapping->frame == frame) {
            mapping->used = ++domain->clock;
            return mapping->page;
        }
        if (!mapping->page || (oldest->page && mapping->used < oldest->used))
            oldest = mapping;
    }
    int error = 0;
    unsigned long wanted = frame;
    void *page = domain->calls.foreign_map(domain->calls.foreign_memory, domain->id, PROT_READ | PROT_WRITE, 1, &wanted,
                                           &error);
    if (!page)
        return NULL;
    if (error) {
        domain->calls.foreign_unmap(domain->calls.foreign_memory, page, 1);
        return NULL;
    }
    if (oldest->page)
        domain->calls.foreign_unmap(domain->calls.foreign_memory, oldest->page, 1);
    *oldest = (struct umdev_xen_mapping){.frame = frame, .page = page, .used = ++domain->clock};
    return page;
}

/* With the cache's mutex. Xen tracks what processors store by themselves; this here passes it by. */
static void note(umdev_xen *domain, uint64_t frame)
{
    uint64_t number = frame - domain->landed.first;
    if (number < domain->landed.count)
        domain->landed.bits[number / 8] |= (uint8_t)(1u << number % 8);
}

int umdev_xen_set_tracked(umdev_xen *domain, uint64_t first, uint32_t count)
{
    uint8_t *bits = calloc(count / 8 + 1, 1);
    if (!bits)
        return -ENOMEM;
    pthread_mutex_lock(&domain->cache);
    uint8_t *old = domain->landed.bits;
    domain->landed.first = first;
    domain->landed.count = count;
    domain->landed.bits = bits;
    pthread_mutex_unlock(&domain->cache);
    free(old);
    return 0;
}

void umdev_xen_take_landed(umdev_xen *domain, uint8_t *ret)
{
    pthread_mutex_lock(&domain->cache);
    uint32_t length = (domain->landed.count + 7) / 8;
    if (length) {
        memcpy(ret, domain->landed.bits, length);
        memset(domain->landed.bits, 0, length);
    }
    pthread_mutex_unlock(&domain->cache);
}

int umdev_xen_copy(umdev_xen *domain, uint64_t address, void *bytes, uint32_t length, int write)
{
    uint8_t *cursor = bytes;
    int result = length > UMDEV_XEN_PAGE ? -EFAULT : 0;
    pthread_mutex_lock(&domain->cache);
    while (length && !result) {
        uint32_t offset = (uint32_t)(address % UMDEV_XEN_PAGE);
        uint32_t part = length < UMDEV_XEN_PAGE - offset ? length : UMDEV_XEN_PAGE - offset;
        uint8_t *page = page_of(domain, address / UMDEV_XEN_PAGE);
        if (!page) {
            result = -EFAULT;
            break;
        }
        if (write) {
            memcpy(page + offset, cursor, part);
            note(domain, address / UMDEV_XEN_PAGE);
        } else {
            memcpy(cursor, page + offset, part);
        }
        address += part;
        cursor += part;
        length -= part;
    }
    pthread_mutex_unlock(&domain->cache);
    return result;
}

int umdev_xen_map_file(uint64_t address, uint64_t length, int fd, uint64_t offset)
{
    void *wanted = (void *)(uintptr_t)address;
    void *found = mmap(wanted, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, (off_t)offset);
    return found == MAP_FAILED ? -errno : 0;
}

void umdev_xen_forget(umdev_xen *domain)
{
    pthread_mutex_lock(&domain->cache);
    for (uint32_t i = 0; i < UMDEV_XEN_MAPPINGS; i++)
        if (domain->mappings[i].page) {
            domain->calls.foreign_unmap(domain->calls.foreign_memory, domain->mappings[i].page, 1);
            domain->mappings[i].page = NULL;
        }
    pthread_mutex_unlock(&domain->cache);
}
