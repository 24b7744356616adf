/* userfault: what Debian 12's headers lack, by the kernel's names (Linux 6.7 uapi, userfaultfd.h and fs.h). */
#ifndef UMDEV_USERFAULT_INTERNAL_H
#define UMDEV_USERFAULT_INTERNAL_H

#include <linux/fs.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <sys/ioctl.h>

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
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
    __u64 start;
    __u64 end;
    __u64 categories;
};
struct pm_scan_arg {
    __u64 size;
    __u64 flags;
    __u64 start;
    __u64 end;
    __u64 walk_end;
    __u64 vec;
    __u64 vec_len;
    __u64 max_pages;
    __u64 category_inverted;
    __u64 category_mask;
    __u64 category_anyof_mask;
    __u64 return_mask;
};
#define PAGE_IS_WRITTEN (1 << 1)
#define PM_SCAN_WP_MATCHING (1 << 0)
#define PM_SCAN_CHECK_WPASYNC (1 << 1)
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#endif

#define UMDEV_PAGE 4096u

__attribute__((visibility("hidden"))) int umdev_userfault_register(int userfault, uint64_t address, uint64_t length);
__attribute__((visibility("hidden"))) int umdev_userfault_unregister(int userfault, uint64_t address, uint64_t length);
/* Write-protects, or releases and wakes. -EAGAIN: as long as a thread that gives pages back waits for its message to be
 * read, and then has not run yet (userfaultfd(2): events); see umdev_protect_set. */
__attribute__((visibility("hidden"))) int umdev_userfault_protect(int userfault, uint64_t address, uint64_t length,
                                                                  int on);
/* Wakes without releasing: the store faults again. */
__attribute__((visibility("hidden"))) int umdev_userfault_wake(int userfault, uint64_t address, uint64_t length);

#endif
