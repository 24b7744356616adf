/* What the tests of umdev_irq share. */
#ifndef IRQ_FIXTURE_H
#define IRQ_FIXTURE_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "umdev.h"

#include "irq_decls.h"
#include "check.h"

enum { INTX = UMDEV_IRQ_INTX, MSI = UMDEV_IRQ_MSI, MSIX = UMDEV_IRQ_MSIX };
static const uint32_t MASTER = UMDEV_IRQ_BUS_MASTER;

static inline int new_event(void)
{
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

/* How often it was signalled since the last look. */
static inline uint64_t take(int fd)
{
    uint64_t count = 0;
    return read(fd, &count, sizeof count) == sizeof count ? count : 0;
}

static inline void store(umdev_irq *irq, uint64_t offset, uint32_t value)
{
    CHECK(umdev_irq_msix_table(irq, offset, &value, sizeof value, UMDEV_WRITE) == UMDEV_OK);
}

static inline uint32_t load(umdev_irq *irq, uint64_t offset)
{
    uint32_t value = 0xdeadbeef;
    CHECK(umdev_irq_msix_table(irq, offset, &value, sizeof value, 0) == UMDEV_OK);
    return value;
}

static inline uint64_t pba(umdev_irq *irq, uint64_t offset)
{
    uint64_t value = ~0ULL;
    CHECK(umdev_irq_msix_pba(irq, offset, &value, sizeof value, 0) == UMDEV_OK);
    return value;
}

#endif
