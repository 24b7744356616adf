/* userfault: the kernel interface, one function for each request. */
#define _GNU_SOURCE
#include "userfault_internal.h"

#include "umdev.h"
#include "device_decls.h"
#include "memory_decls.h"
#include "protect_decls.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

int umdev_userfault_open(int device, int user_only)
{
    int flags = O_CLOEXEC | O_NONBLOCK | (user_only ? UFFD_USER_MODE_ONLY : 0);
    int userfault =
        device >= 0 ? ioctl(device, USERFAULTFD_IOC_NEW, flags) : (int)syscall(SYS_userfaultfd, flags);
    return userfault < 0 ? -errno : userfault;
}

int umdev_userfault_enable(int userfault, int asynchronous)
{
    uint64_t features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
    features |= UFFD_FEATURE_EVENT_REMOVE; /* a discarded page is a changed one, and keeps its write-protection */
    if (asynchronous)
        features |= UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED;
    /* One that came over a socket may block; the protector's thread polls. */
    int status = fcntl(userfault, F_GETFL);
    if (status < 0 || fcntl(userfault, F_SETFL, status | O_NONBLOCK))
        return -errno;
    struct uffdio_api api = {.api = UFFD_API, .features = features};
    if (ioctl(userfault, UFFDIO_API, &api))
        return errno == EINVAL ? -EOPNOTSUPP : -errno;
    return (api.features & features) == features ? 0 : -EOPNOTSUPP;
}

int umdev_userfault_register(int userfault, uint64_t address, uint64_t length)
{
    struct uffdio_register request = {.range = {.start = address, .len = length}, .mode = UFFDIO_REGISTER_MODE_WP};
    if (ioctl(userfault, UFFDIO_REGISTER, &request))
        return -errno;
    return request.ioctls & ((uint64_t)1 << _UFFDIO_WRITEPROTECT) ? 0 : -EOPNOTSUPP;
}

int umdev_userfault_unregister(int userfault, uint64_t address, uint64_t length)
{
    struct uffdio_range request = {.start = address, .len = length};
    return ioctl(userfault, UFFDIO_UNREGISTER, &request) ? -errno : 0;
}

int umdev_userfault_protect(int userfault, uint64_t address, uint64_t length, int on)
{
    struct uffdio_writeprotect request = {.range = {.start = address, .len = length},
                                          .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
    return ioctl(userfault, UFFDIO_WRITEPROTECT, &request) ? -errno : 0;
}

int umdev_userfault_wake(int userfault, uint64_t address, uint64_t length)
{
    struct uffdio_range request = {.start = address, .len = length};
    return ioctl(userfault, UFFDIO_WAKE, &request) ? -errno : 0;
}
