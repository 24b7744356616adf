/* Configuration space of bus 0: functions in their slots, and the host bridge itself. */
#include "internal.h"

/* The host bridge: the vendor's generic PCI Express host bridge, as virtual machines have it; class 060000. It has no
 * BAR and nothing to set. */
static uint8_t bridge_byte(uint32_t offset)
{
    static const uint8_t header[16] = {0x36, 0x1B, 0x08, 0x00, 0, 0, 0, 0, 0, 0x00, 0x00, 0x06, 0, 0, 0x00, 0};
    return offset < sizeof header ? header[offset] : 0;
}

int umdev_kvm_config(umdev_kvm *machine, uint32_t function, uint32_t offset, uint8_t *bytes, uint32_t length,
                     bool write, uint32_t initiator, umdev_kvm_event *event)
{
    uint32_t slot = function >> 3 & 31;
    umdev_device *device = atomic_load(&machine->functions[slot]);
    if ((function & 7) || (slot && !device)) { /* single-function devices; an empty slot: master abort */
        if (!write)
            memset(bytes, 0xFF, length);
        return 0;
    }
    if (slot == 0) {
        for (uint32_t i = 0; i < length && !write; i++)
            bytes[i] = bridge_byte(offset + i);
        return 0;
    }
    if (write) /* it may move or disable a BAR: no write passes those that were posted before */
        umdev_kvm_ring(machine, device);
    int result = machine->api->access(device, UMDEV_REGION_CONFIG, offset, bytes, length, write ? UMDEV_WRITE : 0,
                                      initiator, 0);
    if (!write) {
        if (result < 0)
            memset(bytes, 0xFF, length);
        return 0;
    }
    *event = (umdev_kvm_event){.kind = UMDEV_KVM_CONFIG, .address = offset, .length = length, .slot = slot};
    return UMDEV_KVM_CONFIG;
}
