/* Who hears an interrupt: buses that send messages themselves, clients that own their vectors, those who come later. */
#include "irq_fixture.h"

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

/* As QEMU's vfio-user client does it: the table stays as after reset, and indexes are enabled by connecting them. */
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

int main(void)
{
    test_message_listener();
    test_pending_outlives_the_bus();
    test_client_policy();
    puts("irq_peers: ok");
    return 0;
}
