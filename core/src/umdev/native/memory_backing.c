/* memory: a client's file, mapped for the device. */
#define _GNU_SOURCE
#include "memory_internal.h"

#include <errno.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

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
    void *base = mmap(NULL, extent, backing_prot(protection), MAP_SHARED, descriptor, (off_t)(offset - lead));
    if (base == MAP_FAILED)
        return -errno;
    madvise(base, extent, MADV_DONTDUMP); /* a core file of the device needn't hold the guest */
    int guard = umdev_guard_add(base, extent, protection);
    if (guard < 0) {
        munmap(base, extent);
        return guard;
    }
    *ret = (umdev_backing){.base = base,
                           .extent = extent,
                           .host = (uint8_t *)base + lead,
                           .protection = protection,
                           .guard = guard};
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
    *backing = (umdev_backing){.guard = -1};
}
