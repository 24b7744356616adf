/* The few ports of a PC that a kernel cannot do without: exit, reset, power. */
#include "internal.h"

/* Power management registers at their port (ACPI 6.5, 4.8.3): status and enable, then control. */
#define PM_EVENT 0
#define PM_CONTROL 4
#define PM_RESET 8
#define SLEEP_ENABLE (1u << 13)

static uint32_t value_of(const uint8_t *bytes, uint32_t length)
{
    uint32_t value = 0;
    memcpy(&value, bytes, length < 4 ? length : 4);
    return value;
}

static int power(umdev_kvm *machine, uint32_t offset, uint8_t *bytes, uint32_t length, bool write,
                 umdev_kvm_event *event)
{
    uint32_t word = offset / 4, shift = 8 * (offset % 4);
    uint32_t mask = (length >= 4 ? 0xFFFFFFFFu : (1u << 8 * length) - 1) << shift;
    uint32_t old = atomic_load(&machine->power[word]);
    if (!write) {
        uint32_t value = old >> shift;
        memcpy(bytes, &value, length < 4 ? length : 4);
        return 0;
    }
    uint32_t value = (old & ~mask) | (value_of(bytes, length) << shift & mask);
    if (word == PM_EVENT / 4) /* status is cleared by ones, and nothing ever sets it: only the enables stay */
        value &= 0xFFFF0000u;
    if (word == PM_CONTROL / 4 && (value & SLEEP_ENABLE)) {
        *event = (umdev_kvm_event){.kind = UMDEV_KVM_POWERED_OFF};
        return UMDEV_KVM_POWERED_OFF;
    }
    if (word == PM_CONTROL / 4)
        value |= 1; /* SCI_EN: the machine is always in ACPI mode */
    if (word == PM_RESET / 4) {
        *event = (umdev_kvm_event){.kind = UMDEV_KVM_RESET};
        return UMDEV_KVM_RESET;
    }
    atomic_store(&machine->power[word], value);
    return 0;
}

int umdev_kvm_platform(umdev_kvm *machine, enum umdev_kvm_target_kind kind, uint32_t offset, uint8_t *bytes,
                       uint32_t length, bool write, umdev_kvm_event *event)
{
    switch (kind) {
    case TARGET_POWER:
        return power(machine, offset, bytes, length, write, event);
    case TARGET_EXIT:
        if (!write)
            break;
        *event = (umdev_kvm_event){.kind = UMDEV_KVM_EXITED, .value = value_of(bytes, length)};
        return UMDEV_KVM_EXITED;
    case TARGET_KEYBOARD: /* no keyboard: its controller only pulses the reset line */
        if (write && bytes[0] == 0xFE) {
            *event = (umdev_kvm_event){.kind = UMDEV_KVM_RESET};
            return UMDEV_KVM_RESET;
        }
        break;
    default:
        break;
    }
    if (!write)
        memset(bytes, 0, length);
    return 0;
}
