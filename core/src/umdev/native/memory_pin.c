/* memory: pages that stay. */
#define _GNU_SOURCE
#include "memory_internal.h"

#include <errno.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

int umdev_memory_pin(uint64_t address, uint64_t length, int writable)
{
    void *range = (void *)(uintptr_t)address;
    /* mlock populates too, but leaves the zero page where a hole was and reports no failure of it. */
    if (madvise(range, length, writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) && errno != EINVAL)
        return -errno;
    return mlock(range, length) ? -errno : 0;
}

int umdev_memory_unpin(uint64_t address, uint64_t length)
{
    return munlock((void *)(uintptr_t)address, length) ? -errno : 0;
}
