/* From an address to what decodes it. */
#include "internal.h"

#define LATCH_PORT 0xCF8u

/* The host bridge: a generic PCI Express host bridge as virtual machines have it; class 060000. No BAR, nothing to
 * set. */
static uint8_t bridge_byte(uint32_t offset)
{
    static const uint8_t header[16] = {0x36, 0x1B, 0x08, 0x00, 0, 0, 0, 0, 0, 0x00, 0x00, 0x06, 0, 0, 0x00, 0};
    return offset < sizeof header ? header[offset] : 0;
}

static void ones(uint8_t *bytes, const struct umdev_xen_request *request)
{
    if (request->read)
        memset(bytes, 0xFF, request->width);
}

/* The address is segment 63:48, bus 47:40, device 39:35, function 34:32, offset 31:0 (xen/hvm/ioreq.h). */
static int config(umdev_xen_vcpu *vcpu, const struct umdev_xen_request *request, uint64_t address, uint8_t *bytes,
                  umdev_xen_event *event)
{
    umdev_xen *domain = vcpu->domain;
    uint32_t slot = (uint32_t)(address >> 35 & 31), offset = (uint32_t)address;
    bool ours = address >> 40 == 0 && (address >> 32 & 7) == 0;
    umdev_device *device = ours ? atomic_load(&domain->functions[slot]) : NULL;
    if (ours && slot == 0 && atomic_load(&domain->bridge)) {
        for (uint32_t i = 0; i < request->width && request->read; i++)
            bytes[i] = bridge_byte(offset + i);
        return 0;
    }
    if (!device) {
        umdev_xen_count(&domain->unclaimed);
        ones(bytes, request);
        return 0;
    }
    int result = domain->api->access(device, UMDEV_REGION_CONFIG, offset, bytes, request->width,
                                     request->read ? 0 : UMDEV_WRITE, vcpu->index, 0);
    if (result < 0)
        ones(bytes, request);
    if (request->read)
        return 0;
    *event = (umdev_xen_event){
        .kind = UMDEV_XEN_CONFIG, .address = offset, .length = request->width, .slot = slot};
    return UMDEV_XEN_CONFIG;
}

/* Xen keeps a latch of its own for port 0xCFC, and forwards every access to this one as well. */
static void latch(umdev_xen *domain, const struct umdev_xen_request *request, uint64_t address, uint8_t *bytes)
{
    uint32_t value = atomic_load(&domain->latch);
    uint32_t offset = (uint32_t)(address - LATCH_PORT);
    if (request->read) {
        memset(bytes, 0xFF, request->width);
        for (uint32_t i = 0; i < request->width && offset + i < 4; i++)
            bytes[i] = (uint8_t)(value >> 8 * (offset + i));
    } else if (request->width == 4 && offset == 0) { /* smaller ones are nobody's (PCI Local Bus 3.0, 3.2.2.3.2) */
        memcpy(&value, bytes, 4);
        atomic_store(&domain->latch, value);
    }
}

int umdev_xen_store(umdev_xen *domain, uint64_t address, const uint8_t *bytes, uint32_t length, umdev_xen_event *event)
{
    if (!umdev_xen_is_emulated(domain, address))
        return 0;
    umdev_xen_count(&domain->stores);
    *event = (umdev_xen_event){.kind = UMDEV_XEN_STORE, .address = address, .length = length};
    memcpy(&event->value, bytes, length);
    return UMDEV_XEN_STORE;
}

/* A store to RAM that Xen gives to its device model. */
static int store(umdev_xen *domain, const struct umdev_xen_request *request, uint64_t address, uint8_t *bytes,
                 umdev_xen_event *event)
{
    int kind = umdev_xen_store(domain, address, bytes, request->width, event);
    if (kind)
        return kind;
    /* It was on its way when its page became ordinary: it lands. */
    if (atomic_load(&domain->emulating) && !umdev_xen_copy(domain, address, bytes, request->width, 1))
        return 0;
    umdev_xen_count(&domain->unclaimed);
    return 0;
}

int umdev_xen_dispatch(umdev_xen_vcpu *vcpu, const struct umdev_xen_request *request, uint64_t address, uint8_t *bytes,
                       umdev_xen_event *event)
{
    umdev_xen *domain = vcpu->domain;
    umdev_xen_count(&domain->accesses);
    if (request->type == TYPE_CONFIG)
        return config(vcpu, request, address, bytes, event);
    bool io = request->type == TYPE_PORT;
    umdev_xen_range range;
    if (umdev_xen_find(domain, io, address, request->width, &range)) {
        uint32_t flags = request->read ? 0 : UMDEV_WRITE | (io ? 0u : (uint32_t)UMDEV_POSTED);
        if (domain->api->access(range.device, range.region, address - range.start, bytes, request->width, flags,
                                vcpu->index, 0) < 0)
            ones(bytes, request);
        return 0;
    }
    if (io && atomic_load(&domain->bridge) && address - LATCH_PORT < 4) {
        latch(domain, request, address, bytes);
        return 0;
    }
    if (!io && !request->read)
        return store(domain, request, address, bytes, event);
    umdev_xen_count(&domain->unclaimed);
    ones(bytes, request);
    return 0;
}
