/* The floor of the KVM rows: a machine of one processor whose memory-mapped reads are answered by nothing but a loop
 * around KVM_RUN. */
#define _GNU_SOURCE
#include "umdev.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench_decls.h"
#include "clock.h"

enum { MEMORY = 1 << 20, ENTRY = 0x10000, CPUID_ENTRIES = 256 };

struct umdev_bench_kvm {
    int kvm, vm, vcpu;
    size_t run_size;
    struct kvm_run *run;
    uint8_t *memory;
    uint32_t answered;
};

void umdev_bench_kvm_free(umdev_bench_kvm *machine)
{
    if (!machine)
        return;
    if (machine->run && machine->run != MAP_FAILED)
        munmap(machine->run, machine->run_size);
    if (machine->vcpu >= 0)
        close(machine->vcpu);
    if (machine->vm >= 0)
        close(machine->vm);
    if (machine->kvm >= 0)
        close(machine->kvm);
    if (machine->memory && machine->memory != MAP_FAILED)
        munmap(machine->memory, MEMORY);
    free(machine);
}

static struct kvm_segment flat(uint8_t type)
{
    return (struct kvm_segment){
        .limit = 0xFFFFFFFF, .selector = type == 11 ? 8 : 16, .type = type, .present = 1, .db = 1, .s = 1, .g = 1};
}

static int set_state(const umdev_bench_kvm *machine)
{
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + CPUID_ENTRIES * sizeof *cpuid->entries);
    if (!cpuid)
        return -1;
    cpuid->nent = CPUID_ENTRIES;
    int failed = ioctl(machine->kvm, KVM_GET_SUPPORTED_CPUID, cpuid) || ioctl(machine->vcpu, KVM_SET_CPUID2, cpuid);
    free(cpuid);
    struct kvm_sregs sregs;
    if (failed || ioctl(machine->vcpu, KVM_GET_SREGS, &sregs))
        return -1;
    sregs.cs = flat(11);
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat(3);
    sregs.cr0 |= 1;
    struct kvm_regs regs = {.rip = ENTRY, .rflags = 2};
    return ioctl(machine->vcpu, KVM_SET_SREGS, &sregs) || ioctl(machine->vcpu, KVM_SET_REGS, &regs) ? -1 : 0;
}

static int build(umdev_bench_kvm *machine)
{
    machine->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (machine->kvm < 0)
        return -1;
    machine->vm = ioctl(machine->kvm, KVM_CREATE_VM, 0);
    if (machine->vm < 0 || ioctl(machine->vm, KVM_CREATE_IRQCHIP, 0))
        return -1;
    struct kvm_userspace_memory_region region = {.memory_size = MEMORY, .userspace_addr = (uintptr_t)machine->memory};
    if (ioctl(machine->vm, KVM_SET_USER_MEMORY_REGION, &region))
        return -1;
    machine->vcpu = ioctl(machine->vm, KVM_CREATE_VCPU, 0);
    int size = ioctl(machine->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (machine->vcpu < 0 || size < 0)
        return -1;
    machine->run_size = (size_t)size;
    machine->run = mmap(NULL, machine->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, machine->vcpu, 0);
    return machine->run == MAP_FAILED ? -1 : set_state(machine);
}

umdev_bench_kvm *umdev_bench_kvm_new(const void *payload, uint32_t length, int *error)
{
    umdev_bench_kvm *machine = calloc(1, sizeof *machine);
    *error = -ENOMEM;
    if (!machine || length > MEMORY - ENTRY)
        return NULL;
    machine->kvm = machine->vm = machine->vcpu = -1;
    machine->memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (machine->memory != MAP_FAILED) {
        memcpy(machine->memory + ENTRY, payload, length);
        if (build(machine) == 0) {
            *error = 0;
            return machine;
        }
    }
    *error = -errno;
    umdev_bench_kvm_free(machine);
    return NULL;
}

int umdev_bench_kvm_runs(umdev_bench_kvm_run run, umdev_kvm_vcpu *vcpu, umdev_kvm_event *event, int kind,
                         uint32_t count, uint64_t *times)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t start = umdev_bench_now();
        if (run(vcpu, event) != kind)
            return -EIO;
        times[i] = umdev_bench_now() - start;
    }
    return 0;
}

int umdev_bench_kvm_reads(umdev_bench_kvm *machine, uint32_t count, uint64_t *times)
{
    struct kvm_run *run = machine->run;

    for (uint32_t i = 0; i < count; i++) {
        uint64_t start = umdev_bench_now();

        for (;;) {
            if (ioctl(machine->vcpu, KVM_RUN, 0) < 0 && errno != EINTR)
                return -errno;
            if (run->exit_reason == KVM_EXIT_MMIO)
                memcpy(run->mmio.data, &machine->answered, sizeof machine->answered), machine->answered++;
            else if (run->exit_reason == KVM_EXIT_IO)
                break;
            else
                return -EIO;
        }
        times[i] = umdev_bench_now() - start;
    }
    return 0;
}
