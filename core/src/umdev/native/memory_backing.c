/* memory: a client's file, mapped for the device. */
#define _GNU_SOURCE
#include "memory_internal.h"

#include <errno.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

static _Atomic uint32_t backings; /* counted ones that are open */
static uint32_t backings_max;
static pthread_once_t backings_once = PTHREAD_ONCE_INIT;

static void read_max_map_count(void)
{
    unsigned long long limit = 65530; /* DEFAULT_MAX_MAP_COUNT of include/linux/mm.h */
    FILE *file = fopen("/proc/sys/vm/max_map_count", "re");
    if (file && fscanf(file, "%llu", &limit) != 1)
        limit = 65530;
    if (file)
        fclose(file);
    backings_max = limit / 2 > UINT32_MAX ? UINT32_MAX : (uint32_t)(limit / 2);
}

uint32_t umdev_memory_backings_max(void)
{
    pthread_once(&backings_once, read_max_map_count);
    return backings_max;
}

static bool backing_count(void)
{
    if (atomic_fetch_add(&backings, 1) < umdev_memory_backings_max())
        return true;
    atomic_fetch_sub(&backings, 1);
    return false;
}

static int backing_prot(uint32_t protection)
{
    return (protection & UMDEV_READABLE ? PROT_READ : 0) | (protection & UMDEV_WRITABLE ? PROT_WRITE : 0);
}

int umdev_memory_backing_open(int descriptor, uint64_t offset, uint64_t length, uint32_t protection,
                              umdev_backing *ret)
{
    struct statfs filesystem;
    struct stat file;
    if (fstatfs(descriptor, &filesystem) || fstat(descriptor, &file))
        return -errno;
    bool huge = filesystem.f_type == HUGETLBFS_MAGIC;
    /* Files on disk or behind FUSE would let a client stall or fail each access. */
    if (!S_ISREG(file.st_mode) || (filesystem.f_type != TMPFS_MAGIC && !huge))
        return -EMEDIUMTYPE;
    uint64_t size = (uint64_t)file.st_size;
    if (length == 0)
        return -EINVAL;
    if (offset > size || length > size - offset)
        return -EFBIG;
    /* hugetlbfs maps whole huge pages only, wherever the client's map begins. */
    uint64_t grain = huge ? (uint64_t)filesystem.f_bsize : 4096;
    uint64_t lead = offset & (grain - 1);
    uint64_t extent = (lead + length + grain - 1) & ~(grain - 1);
    if (!backing_count())
        return -EDQUOT;
    void *base = mmap(NULL, extent, backing_prot(protection), MAP_SHARED, descriptor, (off_t)(offset - lead));
    if (base == MAP_FAILED) {
        int error = -errno;
        atomic_fetch_sub(&backings, 1);
        return error;
    }
    madvise(base, extent, MADV_DONTDUMP); /* a core file of the device needn't hold the guest */
    int guard = umdev_guard_add(base, extent, protection);
    if (guard < 0) {
        munmap(base, extent);
        atomic_fetch_sub(&backings, 1);
        return guard;
    }
    *ret = (umdev_backing){.base = base,
                           .extent = extent,
                           .host = (uint8_t *)base + lead,
                           .protection = protection,
                           .guard = guard,
                           .counted = 1};
    return 0;
}

int umdev_memory_backing_adopt(void *base, uint64_t length, uint32_t protection, umdev_backing *ret)
{
    if (length == 0 || ((uintptr_t)base | length) & 4095)
        return -EINVAL;
    int guard = umdev_guard_add(base, length, protection);
    if (guard < 0)
        return guard;
    *ret = (umdev_backing){.base = base, .extent = length, .host = base, .protection = protection, .guard = guard};
    return 0;
}

int umdev_memory_backing_detach(const umdev_backing *backing)
{
    return umdev_guard_replace((uintptr_t)backing->base, backing->extent, backing->protection);
}

void umdev_memory_backing_close(umdev_backing *backing)
{
    if (!backing->base)
        return;
    umdev_guard_remove(backing->guard);
    munmap(backing->base, backing->extent);
    atomic_fetch_sub(&backings, backing->counted);
    *backing = (umdev_backing){.guard = -1};
}
