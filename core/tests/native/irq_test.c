/* The rules of umdev_irq, one by one. */
#include "irq_fixture.h"

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

int main(void)
{
    test_intx();
    test_level_listener();
    test_descriptors();
    test_msi();
    test_msix();
    test_restore();
    puts("irq: ok");
    return 0;
}
