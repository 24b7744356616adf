/* The rules of umdev_irq, one by one, and all of its calls from many threads at once. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
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

static int new_event(void)
{
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

/* How often it was signalled since the last look. */
static uint64_t take(int fd)
{
    uint64_t count = 0;
    return read(fd, &count, sizeof count) == sizeof count ? count : 0;
}

/* The watcher thread acts soon; how soon is not promised. */
static uint64_t await(int fd)
{
    struct pollfd in = {.fd = fd, .events = POLLIN};
    CHECK(poll(&in, 1, 20000) == 1);
    return take(fd);
}

static void test_intx(void)
{
    umdev_irq *irq = umdev_irq_new(1, 0, 0);
    int fd = new_event();

    umdev_irq_set_level(irq, 3, 1);
    CHECK(umdev_irq_level(irq) == 1 && take(fd) == 0);
    CHECK(umdev_irq_connect(irq, INTX, 0, fd) == 0);
    CHECK(take(fd) == 1); /* high before the connection */
    umdev_irq_set_level(irq, 5, 1);
    CHECK(take(fd) == 0); /* masked by its own signal */
    umdev_irq_set_level(irq, 3, 0);
    CHECK(umdev_irq_level(irq) == 1); /* an OR of sources */
    CHECK(umdev_irq_unmask(irq, INTX, 0) == 0 && take(fd) == 1);
    umdev_irq_set_level(irq, 5, 0);
    CHECK(umdev_irq_unmask(irq, INTX, 0) == 0 && take(fd) == 0 && umdev_irq_level(irq) == 0);

    umdev_irq_set_state(irq, UMDEV_IRQ_INTX_DISABLED);
    CHECK(umdev_irq_raise(irq, 0) == 0);
    CHECK(take(fd) == 0 && umdev_irq_level(irq) == 1); /* Status bit 3 does not know of Command bit 10 */
    umdev_irq_set_state(irq, 0);
    CHECK(take(fd) == 1);
    umdev_irq_set_level(irq, 0, 0);
    umdev_irq_unmask(irq, INTX, 0);
    umdev_irq_mask(irq, INTX, 0);
    umdev_irq_set_level(irq, 63, 1);
    CHECK(take(fd) == 0);
    umdev_irq_unmask(irq, INTX, 0);
    CHECK(take(fd) == 1);
    umdev_irq_set_level(irq, 64, 1); /* no such source: nothing, least of all a crash */
    CHECK(umdev_irq_raise(irq, 64) == -EINVAL && umdev_irq_signal(irq, 0) == -ENODEV);

    umdev_irq_reset(irq);
    CHECK(umdev_irq_level(irq) == 0 && umdev_irq_unmask(irq, INTX, 0) == 0 && take(fd) == 0);
    umdev_irq_set_level(irq, 0, 1);
    CHECK(take(fd) == 1); /* the connection is still there */
    CHECK(umdev_irq_disable(irq, INTX) == 0 && umdev_irq_unmask(irq, INTX, 0) == 0 && take(fd) == 0);
    CHECK(umdev_irq_trigger(irq, INTX, 0) == -ENOTCONN);
    umdev_irq_free(irq);
    close(fd);
}

static int heard[2]; /* [level]: how often */

static void hear(void *context, int level)
{
    *(int *)context = level;
    heard[level]++;
}

static void test_level_listener(void)
{
    umdev_irq *irq = umdev_irq_new(1, 1, 0);
    int pin = 0;
    umdev_irq_set_level(irq, 1, 1);
    umdev_irq_on_level(irq, hear, &pin);
    CHECK(pin == 1 && heard[1] == 1); /* high already */
    umdev_irq_set_level(irq, 2, 1);
    umdev_irq_set_level(irq, 1, 0);
    CHECK(heard[1] == 1 && heard[0] == 0); /* one level of all sources */
    umdev_irq_mask(irq, UMDEV_IRQ_INTX, 0);
    CHECK(pin == 1); /* masks are for eventfds */
    umdev_irq_set_state(irq, UMDEV_IRQ_INTX_DISABLED);
    CHECK(pin == 0);
    umdev_irq_set_state(irq, 0);
    CHECK(pin == 1);
    umdev_irq_set_state(irq, UMDEV_IRQ_MSI_ENABLED); /* the pin is forbidden then */
    CHECK(pin == 0);
    umdev_irq_set_state(irq, 0);
    CHECK(pin == 1);
    umdev_irq_reset(irq);
    CHECK(pin == 0 && heard[1] == 3 && heard[0] == 3);
    umdev_irq_disconnect_all(irq);
    umdev_irq_set_level(irq, 0, 1);
    CHECK(pin == 0);
    umdev_irq_free(irq);
}

static void test_unmask_eventfd(void)
{
    umdev_irq *irq = umdev_irq_new(1, 0, 0);
    int fd = new_event(), unmask = new_event(), second = new_event();

    CHECK(umdev_irq_connect(irq, INTX, 0, fd) == 0 && umdev_irq_connect_unmask(irq, INTX, 0, unmask) == 0);
    umdev_irq_set_level(irq, 0, 1);
    CHECK(take(fd) == 1);
    for (int i = 0; i < 100; i++) {
        CHECK(eventfd_write(unmask, 1) == 0);
        CHECK(await(fd) == 1);
    }
    /* One that is written already when it is connected counts; the one before is watched no more. */
    CHECK(eventfd_write(second, 1) == 0);
    CHECK(umdev_irq_connect_unmask(irq, INTX, 0, second) == 0);
    CHECK(await(fd) == 1);
    CHECK(umdev_irq_connect_unmask(irq, INTX, 0, -1) == 0);
    CHECK(eventfd_write(unmask, 1) == 0 && eventfd_write(second, 1) == 0);
    CHECK(umdev_irq_connect_unmask(irq, MSI, 0, unmask) == -EINVAL);
    umdev_irq_free(irq);
    eventfd_write(unmask, 1);
    close(fd), close(unmask), close(second);
}

static void test_descriptors(void)
{
    umdev_irq *irq = umdev_irq_new(1, 2, 3);
    int pipes[2], fd = new_event();

    CHECK(pipe(pipes) == 0);
    CHECK(umdev_irq_connect(irq, MSI, 0, pipes[1]) == -EINVAL);
    CHECK(umdev_irq_connect_unmask(irq, INTX, 0, pipes[0]) == -EINVAL);
    CHECK(umdev_irq_connect(irq, MSI, 0, 1 << 20) == -EINVAL);
    CHECK(umdev_irq_connect(irq, MSI, 2, fd) == -EINVAL && umdev_irq_connect(irq, MSIX, 3, fd) == -EINVAL);
    CHECK(umdev_irq_connect(irq, 5, 0, fd) == -EINVAL && umdev_irq_connect(irq, ~0U, ~0U, fd) == -EINVAL);
    CHECK(umdev_irq_mask(irq, 5, 0) == -EINVAL && umdev_irq_unmask(irq, 0, 1) == -EINVAL);
    CHECK(umdev_irq_disable(irq, 5) == -EINVAL && umdev_irq_trigger(irq, MSIX, 3) == -EINVAL);
    CHECK(umdev_irq_vectors(irq, MSI) == 2 && umdev_irq_vectors(irq, MSIX) == 3 && umdev_irq_vectors(irq, 9) == 0);

    /* The caller may close its own. */
    int copy = dup(fd);
    CHECK(umdev_irq_connect(irq, MSIX, 2, copy) == 0);
    close(copy);
    CHECK(umdev_irq_trigger(irq, MSIX, 2) == 0 && take(fd) == 1);
    CHECK(umdev_irq_trigger(irq, MSIX, 1) == -ENOTCONN);
    CHECK(umdev_irq_connect(irq, MSIX, 2, -1) == 0 && umdev_irq_trigger(irq, MSIX, 2) == -ENOTCONN);

    CHECK(umdev_irq_notify(irq, UMDEV_IRQ_ERR) == -ENOTCONN && umdev_irq_notify(irq, MSI) == -EINVAL);
    CHECK(umdev_irq_connect(irq, UMDEV_IRQ_ERR, 0, fd) == 0 && umdev_irq_notify(irq, UMDEV_IRQ_ERR) == 0);
    CHECK(take(fd) == 1);
    CHECK(umdev_irq_connect(irq, UMDEV_IRQ_REQ, 0, fd) == 0 && umdev_irq_notify(irq, UMDEV_IRQ_REQ) == 0);
    CHECK(take(fd) == 1);
    umdev_irq_free(irq);
    umdev_irq_free(NULL);
    CHECK(umdev_irq_new(0, 33, 0) == NULL && umdev_irq_new(0, 0, 2049) == NULL);
    close(fd), close(pipes[0]), close(pipes[1]);
}

static void test_msi(void)
{
    umdev_irq *irq = umdev_irq_new(1, 4, 0);
    int fd[4];

    for (uint32_t i = 0; i < 4; i++)
        CHECK(umdev_irq_connect(irq, MSI, i, fd[i] = new_event()) == 0);
    CHECK(umdev_irq_mode(irq) == INTX && umdev_irq_signal(irq, 0) == -ENODEV);
    umdev_irq_set_state(irq, UMDEV_IRQ_MSI_ENABLED);
    CHECK(umdev_irq_mode(irq) == MSI && umdev_irq_signal(irq, 0) == -EPERM); /* no bus mastering */
    umdev_irq_set_state(irq, UMDEV_IRQ_MSI_ENABLED | MASTER);
    CHECK(take(fd[0]) == 0); /* lost, not late */
    umdev_irq_set_msi(irq, 4, 0);
    CHECK(umdev_irq_signal(irq, 3) == 0 && take(fd[3]) == 1);
    CHECK(umdev_irq_raise(irq, 2) == 0 && umdev_irq_raise(irq, 2) == 0 && take(fd[2]) == 2 && !umdev_irq_level(irq));
    umdev_irq_set_msi(irq, 2, 0); /* two of four allocated: vectors share */
    CHECK(umdev_irq_signal(irq, 3) == 0 && take(fd[3]) == 0 && take(fd[1]) == 1);

    umdev_irq_set_msi(irq, 4, 2);
    CHECK(umdev_irq_signal(irq, 1) == 0 && take(fd[1]) == 0 && umdev_irq_msi_pending(irq) == 2);
    CHECK(umdev_irq_signal(irq, 1) == 0 && umdev_irq_pending(irq, MSI, 1) == 1);
    umdev_irq_set_msi(irq, 4, 0);
    CHECK(take(fd[1]) == 1 && umdev_irq_msi_pending(irq) == 0); /* two that pended are one */
    umdev_irq_set_msi(irq, 4, 1);
    CHECK(umdev_irq_signal(irq, 0) == 0);
    umdev_irq_set_state(irq, MASTER);
    umdev_irq_set_state(irq, UMDEV_IRQ_MSI_ENABLED | MASTER);
    umdev_irq_set_msi(irq, 4, 0);
    CHECK(take(fd[0]) == 0); /* disabling forgets */

    umdev_irq_set_level(irq, 0, 1);
    int line = new_event();
    CHECK(umdev_irq_connect(irq, INTX, 0, line) == 0 && take(line) == 0); /* MSI forbids the pin */
    umdev_irq_set_state(irq, MASTER);
    CHECK(take(line) == 1);
    umdev_irq_free(irq);
    close(line);
    for (int i = 0; i < 4; i++)
        close(fd[i]);
}

static void store(umdev_irq *irq, uint64_t offset, uint32_t value)
{
    CHECK(umdev_irq_msix_table(irq, offset, &value, sizeof value, UMDEV_WRITE) == UMDEV_OK);
}

static uint32_t load(umdev_irq *irq, uint64_t offset)
{
    uint32_t value = 0xdeadbeef;
    CHECK(umdev_irq_msix_table(irq, offset, &value, sizeof value, 0) == UMDEV_OK);
    return value;
}

static uint64_t pba(umdev_irq *irq, uint64_t offset)
{
    uint64_t value = ~0ULL;
    CHECK(umdev_irq_msix_pba(irq, offset, &value, sizeof value, 0) == UMDEV_OK);
    return value;
}

static void test_msix(void)
{
    umdev_irq *irq = umdev_irq_new(0, 1, 70);
    int fd = new_event(), last = new_event();

    CHECK(load(irq, 12) == 1 && load(irq, 69 * 16 + 12) == 1 && load(irq, 0) == 0); /* masked, zero at first */
    store(irq, 0, ~0U), store(irq, 4, ~0U), store(irq, 8, ~0U), store(irq, 12, ~0U);
    CHECK(load(irq, 0) == ~3U && load(irq, 4) == ~0U && load(irq, 8) == ~0U && load(irq, 12) == 1);
    uint8_t odd[6] = {1, 2, 3, 4, 5, 6};
    CHECK(umdev_irq_msix_table(irq, 3, odd, sizeof odd, UMDEV_WRITE) == UMDEV_OK);
    CHECK(load(irq, 0) == 0x01fffffc && load(irq, 4) == 0x05040302 && load(irq, 8) == 0xffffff06);
    uint64_t beyond = 0;
    CHECK(umdev_irq_msix_table(irq, 70 * 16 - 4, &beyond, 8, 0) == UMDEV_OK && beyond == 1);
    CHECK(umdev_irq_msix_table(irq, 70 * 16, &beyond, 8, UMDEV_WRITE) == UMDEV_OK);
    CHECK(umdev_irq_msix_table(irq, ~0ULL, &beyond, 8, 0) == UMDEV_OK && beyond == 0);

    CHECK(umdev_irq_connect(irq, MSIX, 0, fd) == 0 && umdev_irq_connect(irq, MSIX, 69, last) == 0);
    umdev_irq_set_state(irq, UMDEV_IRQ_MSIX_ENABLED | UMDEV_IRQ_MSI_ENABLED | MASTER);
    CHECK(umdev_irq_mode(irq) == MSIX && umdev_irq_signal(irq, 70) == -EINVAL);
    CHECK(umdev_irq_signal(irq, 0) == 0 && umdev_irq_signal(irq, 69) == 0 && take(fd) == 0);
    CHECK(pba(irq, 0) == 1 && pba(irq, 8) == 1ULL << 5 && pba(irq, 16) == 0);
    uint64_t ones = ~0ULL;
    CHECK(umdev_irq_msix_pba(irq, 0, &ones, 8, UMDEV_WRITE) == UMDEV_OK && pba(irq, 0) == 1);
    umdev_irq_set_state(irq, UMDEV_IRQ_MSIX_ENABLED | UMDEV_IRQ_MSIX_MASKED | MASTER);
    store(irq, 12, 0);
    CHECK(take(fd) == 0 && pba(irq, 0) == 1); /* the function mask */
    umdev_irq_set_state(irq, UMDEV_IRQ_MSIX_ENABLED);
    CHECK(take(fd) == 0 && pba(irq, 0) == 1); /* unmasked, but it may not write to memory */
    umdev_irq_set_state(irq, UMDEV_IRQ_MSIX_ENABLED | MASTER);
    CHECK(take(fd) == 1 && pba(irq, 0) == 0 && pba(irq, 8) == 1ULL << 5);
    store(irq, 69 * 16 + 12, 0);
    CHECK(take(last) == 1 && pba(irq, 8) == 0);
    CHECK(umdev_irq_signal(irq, 0) == 0 && take(fd) == 1);

    /* A vector that nobody listens to yet pends until somebody does. */
    store(irq, 5 * 16 + 12, 0);
    CHECK(umdev_irq_signal(irq, 5) == 0 && pba(irq, 0) == 1U << 5);
    CHECK(umdev_irq_connect(irq, MSIX, 5, fd) == 0 && take(fd) == 1 && pba(irq, 0) == 0);

    CHECK(umdev_irq_mask(irq, MSIX, 0) == 0 && umdev_irq_signal(irq, 0) == 0 && take(fd) == 0 && pba(irq, 0) == 1);
    umdev_irq_reset(irq);
    CHECK(pba(irq, 0) == 0 && load(irq, 12) == 1 && load(irq, 4) == 0);
    store(irq, 12, 0);
    CHECK(umdev_irq_unmask(irq, MSIX, 0) == 0 && take(fd) == 0); /* what pended before the reset never comes */
    CHECK(umdev_irq_signal(irq, 0) == 0 && take(fd) == 1);
    umdev_irq_counters seen;
    umdev_irq_read_counters(irq, &seen);
    CHECK(seen.sent == 5 && seen.pended == 4 && seen.dropped == 0);
    umdev_irq_free(irq);
    close(fd), close(last);
}

/* As QEMU's vfio-user client does it: the table stays as after reset, and indexes are enabled by connecting them. */
struct message {
    uint32_t count, index, vector, data;
    uint64_t address;
};

static void hear_message(void *context, uint32_t index, uint32_t vector, uint64_t address, uint32_t data)
{
    struct message *heard = context;
    *heard = (struct message){heard->count + 1, index, vector, data, address};
}

static void test_message_listener(void)
{
    umdev_irq *irq = umdev_irq_new(0, 4, 3);
    struct message heard = {0};
    int fd = new_event();

    CHECK(umdev_irq_connect(irq, MSIX, 1, fd) == 0);
    umdev_irq_set_state(irq, UMDEV_IRQ_MSIX_ENABLED | MASTER);
    store(irq, 16 * 2, 0xFEE01000);
    store(irq, 16 * 2 + 4, 7);
    store(irq, 16 * 2 + 8, 0x4321);
    CHECK(umdev_irq_signal(irq, 2) == 0 && pba(irq, 0) == 4); /* masked, and nobody listens */
    umdev_irq_on_message(irq, hear_message, &heard);
    CHECK(heard.count == 0);
    store(irq, 16 * 2 + 12, 0);
    CHECK(heard.count == 1 && heard.index == MSIX && heard.vector == 2 && heard.data == 0x4321);
    CHECK(heard.address == 0x7FEE01000 && pba(irq, 0) == 0);
    store(irq, 16 + 12, 0);
    CHECK(umdev_irq_signal(irq, 1) == 0 && heard.count == 2 && take(fd) == 0); /* in place of the eventfd */
    umdev_irq_on_message(irq, NULL, NULL);
    CHECK(umdev_irq_signal(irq, 2) == 0 && pba(irq, 0) == 4);
    umdev_irq_on_message(irq, hear_message, &heard);
    CHECK(heard.count == 3 && heard.vector == 2); /* what pended for want of a listener */
    umdev_irq_set_state(irq, UMDEV_IRQ_MSI_ENABLED | MASTER);
    umdev_irq_set_msi(irq, 4, 0);
    CHECK(umdev_irq_raise(irq, 3) == 0 && heard.index == MSI && heard.vector == 3 && heard.address == 0);
    umdev_irq_set_state(irq, UMDEV_IRQ_MSI_ENABLED);
    CHECK(umdev_irq_signal(irq, 3) == -EPERM && heard.count == 4); /* no bus mastering */
    umdev_irq_set_state(irq, UMDEV_IRQ_MSI_ENABLED | MASTER);
    umdev_irq_disconnect_all(irq);
    CHECK(umdev_irq_signal(irq, 3) == 0 && heard.count == 4 && umdev_irq_pending(irq, MSI, 3));
    umdev_irq_free(irq);
    close(fd);
}

/* What pends is the function's state: it outlives the bus, unless the client of that owned it. */
static void test_pending_outlives_the_bus(void)
{
    umdev_irq *irq = umdev_irq_new(1, 4, 2);
    struct message heard = {0};
    int fd = new_event(), next = new_event();

    umdev_irq_set_state(irq, UMDEV_IRQ_MSIX_ENABLED | MASTER);
    CHECK(umdev_irq_connect(irq, MSIX, 1, fd) == 0 && umdev_irq_mask(irq, MSIX, 1) == 0);
    umdev_irq_on_message(irq, hear_message, &heard);
    CHECK(umdev_irq_signal(irq, 0) == 0 && umdev_irq_signal(irq, 1) == 0 && pba(irq, 0) == 3);
    store(irq, 16 + 12, 0); /* only the client masks vector 1 now, the driver masks vector 0 */
    umdev_irq_disconnect_all(irq);
    CHECK(pba(irq, 0) == 3 && heard.count == 0 && take(fd) == 0);
    CHECK(umdev_irq_connect(irq, MSIX, 1, next) == 0 && take(next) == 1 && pba(irq, 0) == 1);
    CHECK(umdev_irq_connect(irq, MSIX, 0, next) == 0 && take(next) == 0);
    umdev_irq_disconnect_all(irq);
    umdev_irq_reset(irq);
    CHECK(pba(irq, 0) == 0);
    CHECK(umdev_irq_signal(irq, 0) == 0 && umdev_irq_disable(irq, MSIX) == 0 && pba(irq, 0) == 0);

    umdev_irq_set_policy(irq, UMDEV_IRQ_POLICY_CLIENT);
    CHECK(umdev_irq_connect(irq, MSIX, 0, -1) == 0 && umdev_irq_signal(irq, 0) == 0 && pba(irq, 0) == 1);
    umdev_irq_disconnect_all(irq);
    CHECK(pba(irq, 0) == 0);
    umdev_irq_free(irq);
    close(fd), close(next);
}

static void test_client_policy(void)
{
    umdev_irq *irq = umdev_irq_new(1, 4, 2);
    int line = new_event(), fd = new_event();

    umdev_irq_set_policy(irq, UMDEV_IRQ_POLICY_CLIENT);
    umdev_irq_set_state(irq, MASTER);
    CHECK(umdev_irq_connect(irq, INTX, 0, line) == 0 && umdev_irq_mode(irq) == INTX);
    CHECK(umdev_irq_disable(irq, INTX) == 0);
    CHECK(umdev_irq_connect(irq, MSIX, 0, -1) == 0 && umdev_irq_mode(irq) == MSIX); /* enabled, vector 0 not used */
    CHECK(umdev_irq_signal(irq, 0) == 0 && pba(irq, 0) == 1);
    CHECK(umdev_irq_connect(irq, MSIX, 0, fd) == 0 && take(fd) == 1);
    CHECK(umdev_irq_signal(irq, 0) == 0 && take(fd) == 1 && load(irq, 12) == 1); /* masked in our copy of the table */
    CHECK(umdev_irq_disable(irq, MSIX) == 0 && umdev_irq_mode(irq) == INTX);
    CHECK(umdev_irq_connect(irq, MSI, 0, fd) == 0);
    umdev_irq_set_msi(irq, 1, 1);
    CHECK(umdev_irq_signal(irq, 0) == 0 && take(fd) == 1);
    CHECK(umdev_irq_signal(irq, 3) == 0 && take(fd) == 1); /* one of four connected: they share it */
    CHECK(umdev_irq_connect(irq, MSI, 2, line) == 0 && umdev_irq_signal(irq, 2) == 0 && take(line) == 1);
    CHECK(umdev_irq_signal(irq, 3) == 0 && take(fd) == 1);
    umdev_irq_set_state(irq, 0);
    CHECK(umdev_irq_signal(irq, 0) == -EPERM && take(fd) == 0);
    umdev_irq_set_level(irq, 0, 1);
    CHECK(umdev_irq_connect(irq, INTX, 0, line) == 0 && take(line) == 0);
    CHECK(umdev_irq_disable(irq, MSI) == 0 && take(line) == 1); /* back to the pin, which is high */
    umdev_irq_free(irq);
    close(line), close(fd);
}

static void test_restore(void)
{
    umdev_irq *irq = umdev_irq_new(1, 2, 2);
    int fd = new_event();

    CHECK(umdev_irq_sources(irq) == 64 && umdev_irq_source(irq, 0) == 0 && umdev_irq_source(irq, 64) == 0);
    umdev_irq_set_level(irq, 7, 1);
    CHECK(umdev_irq_source(irq, 7) == 1);
    umdev_irq_set_pending(irq, MSI, 1, 1);
    umdev_irq_set_pending(irq, MSI, 2, 1);
    umdev_irq_set_pending(irq, INTX, 0, 1);
    CHECK(umdev_irq_pending(irq, MSI, 1) == 1 && umdev_irq_pending(irq, MSI, 2) == 0);
    umdev_irq_set_state(irq, UMDEV_IRQ_MSIX_ENABLED | MASTER);
    store(irq, 12, 0);
    CHECK(umdev_irq_connect(irq, MSIX, 0, fd) == 0);
    umdev_irq_set_pending(irq, MSIX, 0, 1);
    CHECK(take(fd) == 1 && umdev_irq_pending(irq, MSIX, 0) == 0);
    umdev_irq_free(irq);
    close(fd);
}

typedef struct storm {
    umdev_irq *irq;
    int fd, unmask;
    atomic_int stop;
} storm;

static void *signal_storm(void *argument)
{
    storm *s = argument;
    for (uint32_t i = 0; !atomic_load(&s->stop); i++) {
        umdev_irq_signal(s->irq, i % 4);
        umdev_irq_raise(s->irq, i % 70);
        umdev_irq_set_level(s->irq, i % 64, (int)(i & 1));
    }
    return NULL;
}

static void *bus_storm(void *argument)
{
    storm *s = argument;
    for (uint32_t i = 0; i < 2000; i++) {
        uint32_t index = i % 3, vector = index ? i % 2 : 0, mask = i & 1;
        umdev_irq_connect(s->irq, index, vector, i % 5 ? s->fd : -1);
        umdev_irq_mask(s->irq, index, vector);
        umdev_irq_msix_table(s->irq, 12, &mask, 4, UMDEV_WRITE);
        umdev_irq_set_state(s->irq, i % 32);
        umdev_irq_unmask(s->irq, index, vector);
        umdev_irq_connect_unmask(s->irq, INTX, 0, i % 3 ? s->unmask : -1);
        eventfd_write(s->unmask, 1);
        if (i % 7 == 0)
            umdev_irq_reset(s->irq);
        if (i % 11 == 0)
            umdev_irq_disable(s->irq, index);
        if (i % 13 == 0)
            umdev_irq_set_policy(s->irq, (int)(i & 1));
    }
    return NULL;
}

/* Sanitizers judge this one; afterwards the object still works. */
static void test_threads(void)
{
    storm s = {.irq = umdev_irq_new(1, 4, 8), .fd = new_event(), .unmask = new_event()};
    pthread_t models[2], buses[2];

    for (int i = 0; i < 2; i++) {
        CHECK(pthread_create(&models[i], NULL, signal_storm, &s) == 0);
        CHECK(pthread_create(&buses[i], NULL, bus_storm, &s) == 0);
    }
    for (int i = 0; i < 2; i++)
        pthread_join(buses[i], NULL);
    atomic_store(&s.stop, 1);
    for (int i = 0; i < 2; i++)
        pthread_join(models[i], NULL);

    umdev_irq_disconnect_all(s.irq);
    umdev_irq_reset(s.irq);
    umdev_irq_set_policy(s.irq, UMDEV_IRQ_POLICY_CORE);
    umdev_irq_set_state(s.irq, 0);
    take(s.fd);
    CHECK(umdev_irq_connect(s.irq, INTX, 0, s.fd) == 0 && take(s.fd) == 0);
    umdev_irq_set_level(s.irq, 0, 1);
    CHECK(take(s.fd) == 1);
    umdev_irq_free(s.irq);
    close(s.fd), close(s.unmask);
}

/* An object may end while its unmask eventfd is being written. */
static void test_free_while_watched(void)
{
    int unmask = new_event();

    for (int i = 0; i < 500; i++) {
        umdev_irq *irq = umdev_irq_new(1, 0, 0);
        CHECK(umdev_irq_connect_unmask(irq, INTX, 0, unmask) == 0);
        CHECK(eventfd_write(unmask, 1) == 0);
        umdev_irq_free(irq);
    }
    close(unmask);
}

int main(void)
{
    test_intx();
    test_level_listener();
    test_unmask_eventfd();
    test_descriptors();
    test_msi();
    test_msix();
    test_message_listener();
    test_pending_outlives_the_bus();
    test_client_policy();
    test_restore();
    test_threads();
    test_free_while_watched();
    puts("irq: ok");
    return 0;
}
