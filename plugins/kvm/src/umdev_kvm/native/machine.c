/* The machine's kernel objects, and their end. */
#define _GNU_SOURCE
#include "internal.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* Three pages that KVM needs on processors without unrestricted guests, below the firmware's place at the top. */
#define TSS_ADDRESS 0xFFFBD000ul
#define IDENTITY_ADDRESS 0xFFFBC000ull

static umdev_kvm *fail(umdev_kvm *machine, int code, const char *call, int *error, const char **failed)
{
    *error = -code;
    *failed = call;
    umdev_kvm_free(machine);
    return NULL;
}

umdev_kvm *umdev_kvm_new(const umdev_api *api, int console, uint64_t room, int *error, const char **failed)
{
    *error = 0;
    *failed = "";
    umdev_kvm *machine = calloc(1, sizeof *machine);
    if (!machine) {
        *error = -ENOMEM;
        *failed = "calloc";
        return NULL;
    }
    machine->api = api;
    machine->access = api->access;
    machine->kvm = machine->vm = machine->bell_end = -1;
    pthread_mutex_init(&machine->gate_mutex, NULL);
    pthread_cond_init(&machine->gate_changed, NULL);
    pthread_cond_init(&machine->bell_changed, NULL);
    pthread_mutex_init(&machine->table_mutex, NULL);
    pthread_mutex_init(&machine->ring_mutex, NULL);
    pthread_mutex_init(&machine->bell_mutex, NULL);
    umdev_kvm_serial_init(machine, console, room);
    int code = umdev_kvm_gate_init();
    if (code)
        return fail(machine, -code, "sigaction", error, failed);
    if (umdev_kvm_table_init(machine))
        return fail(machine, ENOMEM, "calloc", error, failed);

    machine->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (machine->kvm < 0)
        return fail(machine, errno, "open(/dev/kvm)", error, failed);
    if (ioctl(machine->kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
        return fail(machine, EPROTO, "KVM_GET_API_VERSION", error, failed);
    int size = ioctl(machine->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (size < 0)
        return fail(machine, errno, "KVM_GET_VCPU_MMAP_SIZE", error, failed);
    machine->run_size = (size_t)size;
    do /* an interrupted creation is simply begun anew */
        machine->vm = ioctl(machine->kvm, KVM_CREATE_VM, 0);
    while (machine->vm < 0 && errno == EINTR);
    if (machine->vm < 0)
        return fail(machine, errno, "KVM_CREATE_VM", error, failed);
    uint64_t identity = IDENTITY_ADDRESS;
    if (ioctl(machine->vm, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0)
        return fail(machine, errno, "KVM_SET_IDENTITY_MAP_ADDR", error, failed);
    if (ioctl(machine->vm, KVM_SET_TSS_ADDR, TSS_ADDRESS) < 0)
        return fail(machine, errno, "KVM_SET_TSS_ADDR", error, failed);
    if (ioctl(machine->vm, KVM_CREATE_IRQCHIP, 0) < 0)
        return fail(machine, errno, "KVM_CREATE_IRQCHIP", error, failed);
    struct kvm_pit_config timer = {.flags = KVM_PIT_SPEAKER_DUMMY};
    if (ioctl(machine->vm, KVM_CREATE_PIT2, &timer) < 0)
        return fail(machine, errno, "KVM_CREATE_PIT2", error, failed);
    code = umdev_kvm_set_messages(machine, NULL, 0);
    if (code)
        return fail(machine, -code, "KVM_SET_GSI_ROUTING", error, failed);
    return machine;
}

void umdev_kvm_free(umdev_kvm *machine)
{
    if (!machine)
        return;
    umdev_kvm_bells_close(machine);
    for (uint32_t i = 0; i < machine->vcpu_count; i++)
        umdev_kvm_vcpu_free(machine->vcpus[i]);
    umdev_kvm_table_free(machine);
    umdev_kvm_serial_free(machine);
    if (machine->vm >= 0)
        close(machine->vm);
    if (machine->kvm >= 0)
        close(machine->kvm);
    pthread_cond_destroy(&machine->bell_changed);
    pthread_mutex_destroy(&machine->bell_mutex);
    pthread_mutex_destroy(&machine->ring_mutex);
    pthread_mutex_destroy(&machine->table_mutex);
    pthread_cond_destroy(&machine->gate_changed);
    pthread_mutex_destroy(&machine->gate_mutex);
    free(machine);
}

void umdev_kvm_abandon(umdev_kvm *machine)
{
    for (uint32_t i = 0; i < machine->vcpu_count; i++) {
        munmap(machine->vcpus[i]->run, machine->run_size);
        close(machine->vcpus[i]->fd);
    }
    close(machine->vm);
    close(machine->kvm);
}

int umdev_kvm_extension(const umdev_kvm *machine, uint32_t capability)
{
    int answer = ioctl(machine->vm, KVM_CHECK_EXTENSION, (unsigned long)capability);
    return answer < 0 ? -errno : answer;
}

int umdev_kvm_descriptor(const umdev_kvm *machine)
{
    return machine->vm;
}

void umdev_kvm_read_counters(const umdev_kvm *machine, umdev_kvm_counters *ret)
{
    ret->unclaimed = atomic_load(&machine->unclaimed);
    ret->coalesced = atomic_load(&machine->coalesced);
    ret->doorbells = atomic_load(&machine->doorbells);
}

int umdev_kvm_set_slot(umdev_kvm *machine, uint32_t slot, uint64_t guest, uint64_t size, uint64_t host, uint32_t flags)
{
    struct kvm_userspace_memory_region region = {
        .slot = slot, .flags = flags, .guest_phys_addr = guest, .memory_size = size, .userspace_addr = host};
    return ioctl(machine->vm, KVM_SET_USER_MEMORY_REGION, &region) < 0 ? -errno : 0;
}
