/* Virtual processors: their making, and the loop that runs them. */
#define _GNU_SOURCE
#include "internal.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define CPUID_ENTRIES 256

/* What the host offers, with this processor's number where it stands (Intel SDM volume 2A, CPUID). */
static int set_cpuid(umdev_kvm_vcpu *vcpu)
{
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + CPUID_ENTRIES * sizeof *cpuid->entries);
    if (!cpuid)
        return -ENOMEM;
    cpuid->nent = CPUID_ENTRIES;
    int result = 0;
    if (ioctl(vcpu->machine->kvm, KVM_GET_SUPPORTED_CPUID, cpuid) < 0)
        result = -errno;
    for (uint32_t i = 0; !result && i < cpuid->nent; i++) {
        struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];
        switch (entry->function) {
        case 0x1:
            entry->ebx = (entry->ebx & 0x00FFFFFF) | vcpu->index << 24;
            entry->ecx |= 1u << 31; /* hypervisor present */
            if (ioctl(vcpu->machine->kvm, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0)
                entry->ecx |= 1u << 24;
            break;
        case 0xB:
        case 0x1F:
            entry->edx = vcpu->index;
            break;
        default:
            break;
        }
    }
    if (!result && ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid) < 0)
        result = -errno;
    free(cpuid);
    return result;
}

umdev_kvm_vcpu *umdev_kvm_vcpu_new(umdev_kvm *machine, int *error, const char **failed)
{
    *error = 0;
    if (machine->vcpu_count == UMDEV_KVM_VCPUS) {
        *error = -E2BIG;
        *failed = "KVM_CREATE_VCPU";
        return NULL;
    }
    umdev_kvm_vcpu *vcpu = calloc(1, sizeof *vcpu);
    if (!vcpu) {
        *error = -ENOMEM;
        *failed = "calloc";
        return NULL;
    }
    vcpu->machine = machine;
    vcpu->index = machine->vcpu_count;
    *failed = "KVM_CREATE_VCPU";
    vcpu->fd = ioctl(machine->vm, KVM_CREATE_VCPU, (unsigned long)vcpu->index);
    if (vcpu->fd < 0) {
        *error = -errno;
        free(vcpu);
        return NULL;
    }
    *failed = "mmap of a processor's run page";
    vcpu->run = mmap(NULL, machine->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    if (vcpu->run == MAP_FAILED) {
        *error = -errno;
        vcpu->run = NULL;
    } else {
        *failed = "KVM_SET_CPUID2";
        *error = set_cpuid(vcpu);
        if (!*error && ioctl(vcpu->fd, KVM_GET_SREGS, &vcpu->made) < 0) {
            *failed = "KVM_GET_SREGS";
            *error = -errno;
        }
    }
    if (*error) {
        umdev_kvm_vcpu_free(vcpu);
        return NULL;
    }
    /* One ring for the machine: any processor's mapping shows it. */
    int page = ioctl(machine->vm, KVM_CHECK_EXTENSION, KVM_CAP_COALESCED_MMIO);
    if (!machine->ring && page > 0) {
        machine->ring = (void *)((char *)vcpu->run + (size_t)page * 4096);
        machine->ring_slots = (4096 - sizeof *machine->ring) / sizeof *machine->ring->coalesced_mmio;
    }
    pthread_mutex_lock(&machine->gate_mutex);
    machine->vcpus[machine->vcpu_count++] = vcpu;
    pthread_mutex_unlock(&machine->gate_mutex);
    return vcpu;
}

void umdev_kvm_vcpu_free(umdev_kvm_vcpu *vcpu)
{
    if (vcpu->run)
        munmap(vcpu->run, vcpu->machine->run_size);
    close(vcpu->fd);
    free(vcpu);
}

void umdev_kvm_vcpu_read_exits(const umdev_kvm_vcpu *vcpu, umdev_kvm_exits *ret)
{
    uint64_t *counters = &ret->memory_reads;
    for (uint32_t i = 0; i < 6; i++)
        counters[i] = atomic_load_explicit(&vcpu->exits[i], memory_order_relaxed);
}

enum { MEMORY_READ, MEMORY_WRITE, PORT_READ, PORT_WRITE, INTERRUPTED, OTHER };

/* Only this thread writes the counter: no locked instruction is needed. */
static inline void count_exit(umdev_kvm_vcpu *vcpu, int which)
{
    uint64_t value = atomic_load_explicit(&vcpu->exits[which], memory_order_relaxed);
    atomic_store_explicit(&vcpu->exits[which], value + 1, memory_order_relaxed);
}

/* String instructions bring several, all for one port. What ends the run ends them, too; configuration space may be
 * written on, since all of them go to one function, which is looked at when they are done. */
static int do_ports(umdev_kvm_vcpu *vcpu, umdev_kvm_event *event)
{
    struct kvm_run *run = vcpu->run;
    uint8_t *bytes = (uint8_t *)run + run->io.data_offset;
    bool write = run->io.direction == KVM_EXIT_IO_OUT;
    int result = 0;
    for (uint32_t i = 0; i < run->io.count; i++, bytes += run->io.size) {
        count_exit(vcpu, write ? PORT_WRITE : PORT_READ);
        int code =
            umdev_kvm_dispatch(vcpu->machine, vcpu, true, run->io.port, bytes, run->io.size, write, event);
        if (code > 0)
            result = code;
        if (code > 0 && code != UMDEV_KVM_CONFIG)
            break;
    }
    return result;
}

static int fatal(umdev_kvm_event *event, uint32_t kind, uint32_t detail, uint64_t value)
{
    *event = (umdev_kvm_event){.kind = kind, .detail = detail, .value = value};
    return (int)kind;
}

/* What the exit asks for: 0 to run on, or the event. Part of its callers: one of them is in a hurry. */
static inline __attribute__((always_inline)) int handle(umdev_kvm_vcpu *vcpu, umdev_kvm_event *event)
{
    struct kvm_run *run = vcpu->run;
    switch (run->exit_reason) {
    case KVM_EXIT_MMIO: {
        bool write = run->mmio.is_write;
        count_exit(vcpu, write ? MEMORY_WRITE : MEMORY_READ);
        int code = umdev_kvm_dispatch(vcpu->machine, vcpu, false, run->mmio.phys_addr, run->mmio.data, run->mmio.len,
                                      write, event);
        return code > 0 ? code : 0;
    }
    case KVM_EXIT_IO:
        return do_ports(vcpu, event);
    case KVM_EXIT_INTR:
        return 0;
    case KVM_EXIT_SHUTDOWN:
        count_exit(vcpu, OTHER);
        return fatal(event, UMDEV_KVM_SHUT_DOWN, 0, 0);
    case KVM_EXIT_SYSTEM_EVENT:
        count_exit(vcpu, OTHER);
        return fatal(event, run->system_event.type == KVM_SYSTEM_EVENT_RESET ? UMDEV_KVM_RESET : UMDEV_KVM_POWERED_OFF,
                     run->system_event.type, 0);
    case KVM_EXIT_INTERNAL_ERROR:
        count_exit(vcpu, OTHER);
        return fatal(event, UMDEV_KVM_INTERNAL, run->internal.suberror,
                     run->internal.ndata ? run->internal.data[0] : 0);
    case KVM_EXIT_FAIL_ENTRY:
        count_exit(vcpu, OTHER);
        return fatal(event, UMDEV_KVM_ENTRY_FAILED, 0, run->fail_entry.hardware_entry_failure_reason);
    default:
        count_exit(vcpu, OTHER);
        return fatal(event, UMDEV_KVM_UNKNOWN, run->exit_reason, 0);
    }
}

/* False: the run ends. */
static inline bool gate_enter(umdev_kvm_vcpu *vcpu)
{
    umdev_kvm *machine = vcpu->machine;
    for (;;) {
        /* Cleared before the reasons for kicks are looked at, which the next store sees to: who sets one after that
         * sets the flag again. */
        __atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_RELAXED);
        atomic_store(&vcpu->in_guest, true);
        if (UMDEV_KVM_LIKELY(!atomic_load(&machine->ending) && !atomic_load(&machine->gate)))
            return true;
        if (!umdev_kvm_gate_wait(vcpu))
            return false;
    }
}

static inline void gate_leave(umdev_kvm_vcpu *vcpu)
{
    atomic_store(&vcpu->in_guest, false);
    if (UMDEV_KVM_UNLIKELY(atomic_load(&vcpu->machine->gate)))
        umdev_kvm_gate_tell(vcpu->machine);
}

static __attribute__((hot)) int run(umdev_kvm_vcpu *vcpu, umdev_kvm_event *event)
{
    for (;;) {
        if (!gate_enter(vcpu))
            return fatal(event, UMDEV_KVM_STOPPED, 0, 0);
        int result = ioctl(vcpu->fd, KVM_RUN, 0);
        int error = UMDEV_KVM_UNLIKELY(result < 0) ? errno : 0;
        gate_leave(vcpu);
        if (UMDEV_KVM_UNLIKELY(atomic_load_explicit(&vcpu->machine->posting, memory_order_relaxed)))
            umdev_kvm_drain(vcpu->machine);
        if (UMDEV_KVM_UNLIKELY(error)) {
            if (error != EINTR && error != EAGAIN)
                return fatal(event, UMDEV_KVM_FAILED, (uint32_t)error, 0);
            count_exit(vcpu, INTERRUPTED);
            continue;
        }
        int code = handle(vcpu, event);
        if (code)
            return code;
    }
}

int umdev_kvm_vcpu_run(umdev_kvm_vcpu *vcpu, umdev_kvm_event *ret)
{
    umdev_kvm_gate_take(vcpu);
    int kind = run(vcpu, ret);
    umdev_kvm_gate_give(vcpu);
    return kind;
}

/* KVM does the rest of an access at the next entry, before it looks whether it should leave at once; there may be more
 * accesses in the same instruction (Documentation/virt/kvm/api.rst, KVM_RUN's exits for I/O). */
__attribute__((cold)) int umdev_kvm_vcpu_finish(umdev_kvm_vcpu *vcpu, umdev_kvm_event *ret)
{
    for (;;) {
        umdev_kvm_gate_pass(vcpu);
        int error = ioctl(vcpu->fd, KVM_RUN, 0) < 0 ? errno : 0;
        gate_leave(vcpu);
        if (error)
            return error == EINTR || error == EAGAIN ? fatal(ret, UMDEV_KVM_STOPPED, 0, 0)
                                                     : fatal(ret, UMDEV_KVM_FAILED, (uint32_t)error, 0);
        int code = handle(vcpu, ret);
        if (code)
            return code;
    }
}

int umdev_kvm_vcpu_prefault(umdev_kvm_vcpu *vcpu, uint64_t guest, uint64_t length)
{
    /* linux/kvm.h from 6.11 on: KVM_PRE_FAULT_MEMORY, struct kvm_pre_fault_memory. */
    struct {
        uint64_t gpa, size, flags, padding[5];
    } range = {.gpa = guest, .size = length};
    /* One call does a part, and says what is left. A race with a change of the map is to be tried again, not for
     * ever. */
    unsigned races = 0;
    do
        if (ioctl(vcpu->fd, _IOWR(KVMIO, 0xd5, range), &range) == 0)
            races = 0;
        else if (errno != EINTR && (errno != EAGAIN || ++races == 1000))
            return -errno;
    while (range.size);
    return 0;
}
