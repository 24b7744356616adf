/* A processor's registers: as a payload finds them, and for people. */
#include "internal.h"

enum { REAL, PROTECTED, LONG };

/* Descriptor types of segments (AMD64 APM volume 2, 4.7): accessed, read-write data and execute-read code. */
#define DATA_SEGMENT 0x3
#define CODE_SEGMENT 0xB
#define CODE_SELECTOR 0x10 /* Linux' boot protocol (Documentation/arch/x86/boot.rst, 32-bit boot protocol) */
#define DATA_SELECTOR 0x18

static struct kvm_segment segment(uint16_t selector, uint8_t type, int mode)
{
    struct kvm_segment made = {.selector = selector, .type = type, .present = 1, .s = 1, .limit = 0xFFFFFFFF, .g = 1};
    if (mode == LONG && type == CODE_SEGMENT)
        made.l = 1;
    else if (mode != REAL)
        made.db = 1;
    return made;
}

static void set_segments(struct kvm_sregs *sregs, int mode)
{
    uint16_t code = mode == REAL ? 0 : CODE_SELECTOR, data = mode == REAL ? 0 : DATA_SELECTOR;
    sregs->cs = segment(code, CODE_SEGMENT, mode);
    struct kvm_segment *others[] = {&sregs->ds, &sregs->es, &sregs->fs, &sregs->gs, &sregs->ss};
    for (unsigned i = 0; i < sizeof others / sizeof *others; i++)
        *others[i] = segment(data, DATA_SEGMENT, mode);
    if (mode == REAL) { /* code as the processor has it; data reaches 4 GiB, so that a payload reaches every BAR */
        sregs->cs.limit = 0xFFFF;
        sregs->cs.g = 0;
    }
}

static int set_state(umdev_kvm_vcpu *vcpu, const struct kvm_sregs *sregs, const struct kvm_regs *regs,
                     uint32_t activity)
{
    /* An interrupt or exception that was on its way in would come before the first instruction. */
    struct kvm_vcpu_events none = {.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW};
    struct kvm_mp_state state = {.mp_state = activity};
    bool done = ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &none) >= 0 && ioctl(vcpu->fd, KVM_SET_SREGS, sregs) >= 0 &&
                ioctl(vcpu->fd, KVM_SET_REGS, regs) >= 0 && ioctl(vcpu->fd, KVM_SET_MP_STATE, &state) >= 0;
    return done ? 0 : -errno;
}

int umdev_kvm_vcpu_set_entry(umdev_kvm_vcpu *vcpu, int mode, uint64_t entry, uint64_t stack, uint64_t argument,
                             uint64_t second, uint64_t gdt, uint64_t page_table)
{
    struct kvm_sregs sregs = vcpu->made; /* what the last payload has set is nothing to this one */
    set_segments(&sregs, mode);
    if (mode != REAL) {
        sregs.gdt.base = gdt;
        sregs.gdt.limit = 4 * 8 - 1;
        sregs.cr0 |= 1; /* PE */
    }
    if (mode == LONG) {
        sregs.cr3 = page_table;
        sregs.cr4 |= 1u << 5 | 1u << 9; /* PAE, OSFXSR */
        sregs.cr0 |= 1u << 31;          /* PG */
        sregs.efer |= 1u << 8 | 1u << 10; /* LME, LMA */
    }
    struct kvm_regs regs = {
        .rip = entry, .rsp = stack, .rax = argument, .rdi = argument, .rsi = second, .rflags = 2};
    return set_state(vcpu, &sregs, &regs, KVM_MP_STATE_RUNNABLE);
}

int umdev_kvm_vcpu_set_waiting(umdev_kvm_vcpu *vcpu)
{
    return set_state(vcpu, &vcpu->made, &(struct kvm_regs){.rflags = 2}, KVM_MP_STATE_UNINITIALIZED);
}

int umdev_kvm_vcpu_read_registers(umdev_kvm_vcpu *vcpu, uint64_t registers[24])
{
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    if (ioctl(vcpu->fd, KVM_GET_REGS, &regs) < 0 || ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) < 0)
        return -errno;
    const uint64_t found[24] = {regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi,  regs.rdi,   regs.rsp, regs.rbp,
                                regs.r8,  regs.r9,  regs.r10, regs.r11, regs.r12,  regs.r13,   regs.r14, regs.r15,
                                regs.rip, regs.rflags, sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer,
                                sregs.cs.base};
    memcpy(registers, found, sizeof found);
    return 0;
}
