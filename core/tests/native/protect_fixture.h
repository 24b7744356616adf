/* A guest whose pages can be protected; what the tests of protection share. */
#ifndef PROTECT_FIXTURE_H
#define PROTECT_FIXTURE_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "protect_internal.h"

#include "check.h"

enum { PAGE = 4096, PAGES = 32 };

static inline int open_userfault(int asynchronous)
{
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    int userfault = umdev_userfault_open(device, 0);
    if (device >= 0)
        close(device);
    if (userfault < 0)
        userfault = umdev_userfault_open(-1, 1);
    if (userfault < 0)
        return userfault;
    int result = umdev_userfault_enable(userfault, asynchronous);
    if (result) {
        close(userfault);
        return result;
    }
    return userfault;
}

/* A guest: its own mapping of a memfd, and the device's. */
struct guest {
    uint8_t *own;
    uint8_t *device;
    size_t size;
    umdev_protector *protector;
};

static inline void guest_open_size(struct guest *guest, int asynchronous, size_t size)
{
    int file = memfd_create("guest", MFD_CLOEXEC);
    CHECK(file >= 0 && ftruncate(file, (off_t)size) == 0);
    guest->size = size;
    guest->own = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    guest->device = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    CHECK(guest->own != MAP_FAILED && guest->device != MAP_FAILED);
    close(file);
    int pagemap = asynchronous ? open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC) : -1;
    guest->protector = umdev_protector_new(open_userfault(asynchronous), pagemap, asynchronous);
    CHECK(guest->protector);
    CHECK(umdev_protector_register(guest->protector, (uintptr_t)guest->own, size) == 0);
}

static inline void guest_open(struct guest *guest, int asynchronous)
{
    guest_open_size(guest, asynchronous, PAGES * PAGE);
}

static inline void guest_unmap(struct guest *guest)
{
    munmap(guest->own, guest->size);
    munmap(guest->device, guest->size);
}

static inline void guest_close(struct guest *guest)
{
    umdev_protector_free(guest->protector);
    guest_unmap(guest);
}

static inline uint64_t page_of(const struct guest *guest, unsigned number)
{
    return (uintptr_t)guest->own + number * PAGE;
}

static inline void store(struct guest *guest, unsigned number, uint64_t value)
{
    umdev_guest_store(guest->own + number * PAGE, &value, sizeof(value));
}

static inline uint64_t device_load(const struct guest *guest, unsigned number)
{
    uint64_t value;
    umdev_guest_load(guest->device + number * PAGE, &value, sizeof(value));
    return value;
}

/* Says why and ends the test where there is none. */
static inline void need_userfault(void)
{
    int userfault = open_userfault(0);
    if (userfault < 0) {
        printf("skipped: no userfaultfd with write-protection (%s): give access to /dev/userfaultfd\n",
               strerror(-userfault));
        exit(0);
    }
    close(userfault);
}

#endif
