/* Interrupts of one function: its pin as a level, its messages as injections. */
#include "internal.h"

#include <stdlib.h>

/* Bits 31:20 of a message's address (Intel SDM volume 3A, "Message Address Register Format"). */
#define INTERRUPTS 0xFEEu
#define VECTOR 0xFFu

struct umdev_xen_wire {
    umdev_xen *domain;
    uint32_t slot;
    uint32_t pin;
    pthread_mutex_t mutex; /* of MSI's place; a leaf */
    uint64_t address;
    uint32_t data;
    uint32_t count;
};

umdev_xen_wire *umdev_xen_wire_new(umdev_xen *domain, uint32_t slot, uint32_t pin)
{
    umdev_xen_wire *wire = calloc(1, sizeof *wire);
    if (!wire)
        return NULL;
    wire->domain = domain;
    wire->slot = slot;
    wire->pin = pin;
    wire->count = 1;
    pthread_mutex_init(&wire->mutex, NULL);
    return wire;
}

void umdev_xen_wire_free(umdev_xen_wire *wire)
{
    if (!wire)
        return;
    pthread_mutex_destroy(&wire->mutex);
    free(wire);
}

void umdev_xen_wire_set_msi(umdev_xen_wire *wire, uint64_t address, uint32_t data, uint32_t count)
{
    pthread_mutex_lock(&wire->mutex);
    wire->address = address;
    wire->data = data;
    wire->count = count;
    pthread_mutex_unlock(&wire->mutex);
}

void umdev_xen_wire_level(void *context, int level)
{
    umdev_xen_wire *wire = context;
    if (wire->pin)
        wire->domain->calls.set_pci_intx_level(wire->domain->calls.device_model, wire->domain->id, 0, 0,
                                               (uint8_t)wire->slot, (uint8_t)(wire->pin - 1), level ? 1 : 0);
}

void umdev_xen_wire_message(void *context, uint32_t index, uint32_t vector, uint64_t address, uint32_t data)
{
    umdev_xen_wire *wire = context;
    umdev_xen *domain = wire->domain;
    if (index == UMDEV_IRQ_MSI) { /* the function puts the vector into the low bits (PCI Local Bus 3.0, 6.8.1.6) */
        pthread_mutex_lock(&wire->mutex);
        address = wire->address;
        data = (wire->data & ~(wire->count - 1)) | (vector & (wire->count - 1));
        pthread_mutex_unlock(&wire->mutex);
    }
    /* Elsewhere a message is a store to memory, and means nothing. With vector 0 it stands for an event channel: the
     * guest has written the number of its physical interrupt in place of a destination, bits 31:8 of it into the upper
     * half (hvm_inject_msi, xen/arch/x86/hvm/irq.c). */
    bool interrupt = (uint32_t)address >> 20 == INTERRUPTS && (address >> 32 == 0 || !(data & VECTOR));
    bool sent = interrupt &&
                !domain->calls.inject_msi(domain->calls.device_model, domain->id, address & ~(uint64_t)3, data);
    umdev_xen_count(sent ? &domain->messages : &domain->lost);
}
