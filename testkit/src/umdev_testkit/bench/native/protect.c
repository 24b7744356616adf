/* Protection: the least that userfaultfd can cost, and the stores that both sides are measured by. */
#define _GNU_SOURCE
#include "umdev.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bench_decls.h"
#include "clock.h"

/* What Debian 12's headers lack (Linux 6.7: userfaultfd.h, fs.h). */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef PAGEMAP_SCAN
struct page_region {
    uint64_t start, end, categories;
};
struct pm_scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define PAGE_IS_WRITTEN (1 << 1)
#define PM_SCAN_WP_MATCHING (1 << 0)
#define PM_SCAN_CHECK_WPASYNC (1 << 1)
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#endif

enum { PAGE = 4096, REGIONS = 512 };

struct umdev_bench_guard {
    uint8_t *memory;
    uint32_t pages;
    int userfault, pagemap, stop;
    bool served;
    pthread_t thread;
};

static int request(int userfault, uint64_t start, uint64_t length, bool on)
{
    struct uffdio_writeprotect wish = {.range = {start, length}, .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
    return ioctl(userfault, UFFDIO_WRITEPROTECT, &wish) ? -errno : 0;
}

static void *serve(void *argument)
{
    umdev_bench_guard *guard = argument;
    struct pollfd ready[2] = {{.fd = guard->userfault, .events = POLLIN}, {.fd = guard->stop, .events = POLLIN}};
    while (poll(ready, 2, -1) > 0 && !ready[1].revents) {
        struct uffd_msg message;
        if (read(guard->userfault, &message, sizeof message) == (ssize_t)sizeof message)
            request(guard->userfault, message.arg.pagefault.address & ~(uint64_t)(PAGE - 1), PAGE, false);
    }
    return NULL;
}

static int open_userfault(void)
{
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    int userfault = device < 0 ? -1 : ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    if (device >= 0)
        close(device);
    return userfault >= 0 ? userfault : (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1 /* USER_MODE_ONLY */);
}

static int start(umdev_bench_guard *guard, bool asynchronous)
{
    uint64_t length = (uint64_t)guard->pages * PAGE;
    int file = memfd_create("umdev-bench", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, (off_t)length))
        return -errno;
    guard->memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file, 0);
    close(file);
    if (guard->memory == MAP_FAILED)
        return -errno;
    guard->userfault = open_userfault();
    if (guard->userfault < 0)
        return -errno;
    struct uffdio_api api = {.api = UFFD_API,
                             .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM};
    if (asynchronous)
        api.features |= UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED;
    struct uffdio_register all = {.range = {(uintptr_t)guard->memory, length}, .mode = UFFDIO_REGISTER_MODE_WP};
    if (ioctl(guard->userfault, UFFDIO_API, &api) || ioctl(guard->userfault, UFFDIO_REGISTER, &all))
        return -errno;
    guard->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    guard->stop = eventfd(0, EFD_CLOEXEC);
    if (guard->pagemap < 0 || guard->stop < 0)
        return -errno;
    if (asynchronous)
        return request(guard->userfault, (uintptr_t)guard->memory, length, true);
    int error = pthread_create(&guard->thread, NULL, serve, guard);
    guard->served = error == 0;
    return -error;
}

umdev_bench_guard *umdev_bench_guard_new(uint32_t pages, int asynchronous, int *error)
{
    umdev_bench_guard *guard = calloc(1, sizeof *guard);
    *error = -ENOMEM;
    if (!guard)
        return NULL;
    *guard = (umdev_bench_guard){.memory = MAP_FAILED, .pages = pages, .userfault = -1, .pagemap = -1, .stop = -1};
    *error = start(guard, asynchronous);
    if (!*error)
        return guard;
    umdev_bench_guard_free(guard);
    return NULL;
}

void umdev_bench_guard_free(umdev_bench_guard *guard)
{
    if (guard->served) {
        eventfd_write(guard->stop, 1);
        pthread_join(guard->thread, NULL);
    }
    int descriptors[] = {guard->userfault, guard->pagemap, guard->stop};
    for (unsigned i = 0; i < 3; i++)
        if (descriptors[i] >= 0)
            close(descriptors[i]);
    if (guard->memory != MAP_FAILED)
        munmap(guard->memory, (size_t)guard->pages * PAGE);
    free(guard);
}

int umdev_bench_store_pages(uint8_t *memory, uint32_t pages, uint32_t stride, uint64_t *time)
{
    uint64_t start = umdev_bench_now();
    for (uint32_t page = 0; page < pages; page += stride)
        ((volatile uint8_t *)memory)[(size_t)page * PAGE]++;
    *time = umdev_bench_now() - start;
    return 0;
}

int umdev_bench_guard_arms(umdev_bench_guard *guard, uint32_t count, uint64_t *times)
{
    uint64_t address = (uintptr_t)guard->memory, length = (uint64_t)guard->pages * PAGE;
    int result = 0;
    for (uint32_t i = 0; i < count && !result; i++) {
        uint64_t begin = umdev_bench_now();
        result = request(guard->userfault, address, length, true);
        times[i] = umdev_bench_now() - begin;
        if (!result)
            result = request(guard->userfault, address, length, false);
    }
    return result;
}

int umdev_bench_guard_traps(umdev_bench_guard *guard, uint32_t count, uint64_t *times)
{
    int result = 0;
    for (uint32_t i = 0; i < count && !result; i++) {
        result = request(guard->userfault, (uintptr_t)guard->memory, (uint64_t)guard->pages * PAGE, true);
        if (!result)
            umdev_bench_store_pages(guard->memory, guard->pages, 1, &times[i]);
    }
    return result;
}

static int scan(const umdev_bench_guard *guard, uint64_t *found)
{
    struct page_region regions[REGIONS];
    uint64_t start = (uintptr_t)guard->memory, end = start + (uint64_t)guard->pages * PAGE;
    while (start < end) {
        struct pm_scan_arg wish = {.size = sizeof wish,
                                   .flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
                                   .start = start,
                                   .end = end,
                                   .vec = (uintptr_t)regions,
                                   .vec_len = REGIONS,
                                   .category_mask = PAGE_IS_WRITTEN,
                                   .return_mask = PAGE_IS_WRITTEN};
        int count = ioctl(guard->pagemap, PAGEMAP_SCAN, &wish);
        if (count < 0)
            return -errno;
        for (int i = 0; i < count; i++)
            *found += (regions[i].end - regions[i].start) / PAGE;
        start = wish.walk_end;
    }
    return 0;
}

int umdev_bench_guard_scans(umdev_bench_guard *guard, uint32_t stride, uint32_t count, uint64_t *times)
{
    uint64_t found = 0;
    int result = scan(guard, &found);
    for (uint32_t i = 0; i < count && !result; i++) {
        uint64_t ignored;
        umdev_bench_store_pages(guard->memory, guard->pages, stride, &ignored);
        found = 0;
        uint64_t begin = umdev_bench_now();
        result = scan(guard, &found);
        times[i] = umdev_bench_now() - begin;
        if (!result && found != (guard->pages + stride - 1) / stride)
            result = -EIO;
    }
    return result;
}

int umdev_bench_client_arms(const umdev_bench_client *client, uint32_t count, uint64_t *times)
{
    int result = 0;
    for (uint32_t i = 0; i < count && !result; i++) {
        uint64_t failed, begin = umdev_bench_now();
        result = client->arm(client->client, client->addresses, client->pages, &failed);
        times[i] = umdev_bench_now() - begin;
        if (!result && client->armed(client->client) != client->pages)
            result = -EIO;
        if (!result)
            result = client->disarm(client->client, client->addresses, client->pages);
    }
    return result;
}

int umdev_bench_client_scans(const umdev_bench_client *client, uint32_t stride, uint32_t count, uint64_t *times)
{
    int64_t found = client->collect(client->client, client->found, client->pages);
    for (uint32_t i = 0; i < count && found >= 0; i++) {
        uint64_t ignored;
        umdev_bench_store_pages(client->memory, client->pages, stride, &ignored);
        uint64_t begin = umdev_bench_now();
        found = client->collect(client->client, client->found, client->pages);
        times[i] = umdev_bench_now() - begin;
        if (found >= 0 && found != (client->pages + stride - 1) / stride)
            found = -EIO;
    }
    return found < 0 ? (int)found : 0;
}

void umdev_bench_notified(void *context, uint64_t address)
{
    (void)address;
    ++*(uint64_t *)context;
}
