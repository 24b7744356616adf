/* Interrupt routes: pins of the two controllers, and messages. */
#include "internal.h"

#include <stdlib.h>

#define PIC_PINS 16
#define TIMER_PIN 2 /* where the timer's interrupt 0 goes on the I/O interrupt controller; ACPI tables say so too */

static void pin_route(struct kvm_irq_routing_entry *entry, uint32_t gsi, uint32_t chip, uint32_t pin)
{
    *entry = (struct kvm_irq_routing_entry){.gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP};
    entry->u.irqchip.irqchip = chip;
    entry->u.irqchip.pin = pin;
}

int umdev_kvm_set_messages(umdev_kvm *machine, const umdev_kvm_message *messages, uint32_t count)
{
    struct kvm_irq_routing *routing =
        calloc(1, sizeof *routing + (PIC_PINS + UMDEV_KVM_PINS + count) * sizeof *routing->entries);
    if (!routing)
        return -ENOMEM;
    struct kvm_irq_routing_entry *entry = routing->entries;
    for (uint32_t gsi = 0; gsi < PIC_PINS; gsi++)
        pin_route(entry++, gsi, gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE, gsi % 8);
    for (uint32_t gsi = 0; gsi < UMDEV_KVM_PINS; gsi++)
        if (gsi != TIMER_PIN)
            pin_route(entry++, gsi, KVM_IRQCHIP_IOAPIC, gsi == 0 ? TIMER_PIN : gsi);
    for (uint32_t i = 0; i < count; i++) {
        *entry = (struct kvm_irq_routing_entry){.gsi = messages[i].gsi, .type = KVM_IRQ_ROUTING_MSI};
        entry->u.msi.address_lo = (uint32_t)messages[i].address;
        entry->u.msi.address_hi = (uint32_t)(messages[i].address >> 32);
        entry->u.msi.data = messages[i].data;
        entry++;
    }
    routing->nr = (uint32_t)(entry - routing->entries);
    int result = ioctl(machine->vm, KVM_SET_GSI_ROUTING, routing) < 0 ? -errno : 0;
    free(routing);
    return result;
}

int umdev_kvm_set_irqfd(umdev_kvm *machine, uint32_t gsi, int fd, int resample, int assign)
{
    struct kvm_irqfd irqfd = {.fd = (uint32_t)fd, .gsi = gsi};
    if (!assign)
        irqfd.flags = KVM_IRQFD_FLAG_DEASSIGN;
    if (assign && resample >= 0) {
        irqfd.flags = KVM_IRQFD_FLAG_RESAMPLE;
        irqfd.resamplefd = (uint32_t)resample;
    }
    return ioctl(machine->vm, KVM_IRQFD, &irqfd) < 0 ? -errno : 0;
}

int umdev_kvm_set_line(umdev_kvm *machine, uint32_t gsi, int level)
{
    struct kvm_irq_level line = {.irq = gsi, .level = level != 0};
    return ioctl(machine->vm, KVM_IRQ_LINE, &line) < 0 ? -errno : 0;
}
