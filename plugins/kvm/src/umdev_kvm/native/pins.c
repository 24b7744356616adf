/* Long-term pins: io_uring's registered buffers take them (FOLL_LONGTERM), and no hardware is needed. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "umdev.h"

#include "kvm_decls.h"

struct umdev_kvm_pins {
    int ring;
    uint32_t places;
};

static int ring_register(int ring, unsigned operation, void *argument, unsigned count)
{
    return syscall(SYS_io_uring_register, ring, operation, argument, count) < 0 ? -errno : 0;
}

umdev_kvm_pins *umdev_kvm_pins_new(uint32_t places, int *error)
{
    umdev_kvm_pins *pins = calloc(1, sizeof *pins);
    *error = -ENOMEM;
    if (!pins)
        return NULL;
    struct io_uring_params parameters = {0};
    pins->places = places;
    pins->ring = (int)syscall(SYS_io_uring_setup, 1, &parameters);
    *error = pins->ring < 0 ? -errno : 0;
    if (!*error) {
        struct io_uring_rsrc_register table = {.nr = places, .flags = IORING_RSRC_REGISTER_SPARSE};
        *error = ring_register(pins->ring, IORING_REGISTER_BUFFERS2, &table, sizeof table);
    }
    if (*error) {
        umdev_kvm_pins_free(pins);
        return NULL;
    }
    return pins;
}

int umdev_kvm_pins_set(umdev_kvm_pins *pins, uint32_t place, uint64_t address, uint64_t length)
{
    if (place >= pins->places)
        return -EINVAL;
    struct iovec buffer = {.iov_base = (void *)(uintptr_t)(length ? address : 0), .iov_len = length};
    uint64_t tag = 0;
    struct io_uring_rsrc_update2 update = {
        .offset = place, .data = (uintptr_t)&buffer, .tags = (uintptr_t)&tag, .nr = 1};
    int result = ring_register(pins->ring, IORING_REGISTER_BUFFERS_UPDATE, &update, sizeof update);
    return result;
}

void umdev_kvm_pins_free(umdev_kvm_pins *pins)
{
    if (!pins)
        return;
    if (pins->ring >= 0)
        close(pins->ring);
    free(pins);
}
