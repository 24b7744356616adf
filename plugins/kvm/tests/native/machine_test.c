/* Two processors run while everything around them changes: the table of ranges, memory slots, doorbells, stops. For the
 * sanitizers. Exit status 77: there is no usable /dev/kvm. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "umdev.h"

#include "kvm_decls.h"
#include "umdev_check.h"

#define MEMORY (1 << 20)
#define SPARE 0x80000u
#define BAR 0xC0000000u
/* again: mov eax, [ebx]; mov [ebx + 8], eax; mov [ebx + 16], eax; mov [ebx + 20], eax; inc dword ptr [0x80000];
 * jmp again */
static const uint8_t payload[] = {0xBB, 0x00, 0x00, 0x00, 0xC0, 0x8B, 0x03, 0x89, 0x43, 0x08, 0x89, 0x43,
                                  0x10, 0x89, 0x43, 0x14, 0xFF, 0x05, 0x00, 0x00, 0x08, 0x00, 0xEB, 0xED};

static _Atomic uint64_t reads, stores, rings, other_rings;
static int device, others[3]; /* their addresses are umdev_devices */

static int count_access(umdev_device *target, uint32_t region, uint64_t offset, void *bytes, uint32_t length,
                        uint32_t flags, uint32_t initiator, uint32_t space)
{
    CHECK(region == 0 && length == 4 && initiator < 2 && space == 0);
    if ((void *)target != (void *)&device)
        atomic_fetch_add(&other_rings, 1);
    else if (offset == 16)
        atomic_fetch_add(&rings, 1);
    else if (flags & UMDEV_WRITE)
        atomic_fetch_add(&stores, 1);
    else
        atomic_fetch_add(&reads, 1);
    if (!(flags & UMDEV_WRITE))
        memset(bytes, 0x5A, length);
    return UMDEV_OK;
}

static void *run(void *argument)
{
    umdev_kvm_event event;
    int kind = umdev_kvm_vcpu_run(argument, &event);
    if (kind != UMDEV_KVM_STOPPED)
        fprintf(stderr, "a processor ended with %d, detail %u\n", kind, event.detail);
    return (void *)(intptr_t)kind;
}

static void change_everything(umdev_kvm *machine, uint8_t *memory, int round)
{
    umdev_kvm_range ranges[2] = {
        {.start = BAR, .length = 0x1000, .device = (umdev_device *)&device, .slot = 1},
        {.start = 0xD0000000u, .length = 0x1000, .device = (umdev_device *)&device, .slot = 1},
    };
    CHECK(umdev_kvm_publish(machine, ranges + round % 2, (uint32_t)(1 + (round % 4 == 0))) == 0);
    CHECK(umdev_kvm_set_posted(machine, BAR + 8, 4, round % 2) == 0);
    if (round % 8 == 3)
        CHECK(umdev_kvm_add_doorbell(machine, 0, 0, BAR + 16, 4, 0, 1, (umdev_device *)&device, 0, 16) == 0);
    if (round % 8 == 7)
        CHECK(umdev_kvm_remove_doorbell(machine, 0) == 0);
    umdev_device *other = (umdev_device *)&others[round / 8 % 3];
    if (round % 8 == 1)
        CHECK(umdev_kvm_add_doorbell(machine, 1, 0, BAR + 20, 4, 0, 1, other, 0, 20) == 0);
    if (round % 8 == 5)
        CHECK(umdev_kvm_remove_doorbell(machine, 1) == 0);
    umdev_kvm_ring(machine, round % 2 ? other : NULL);
    umdev_kvm_stop(machine);
    umdev_kvm_stop(machine);
    uint32_t before, after;
    memcpy(&before, memory + SPARE, sizeof before);
    CHECK(umdev_kvm_set_slot(machine, 1, SPARE, 0, 0, 0) == 0);
    CHECK(umdev_kvm_set_slot(machine, 1, SPARE, 0x1000, (uintptr_t)memory + SPARE, 0) == 0);
    memcpy(&after, memory + SPARE, sizeof after);
    CHECK(before == after);
    umdev_kvm_resume(machine);
    umdev_kvm_resume(machine);
    uint32_t value = 0;
    umdev_kvm_access(machine, 0, BAR, &value, sizeof value, 0);
}

static void one_life(umdev_api *api, uint8_t *memory, int rounds)
{
    int error;
    const char *failed;
    umdev_kvm *machine = umdev_kvm_new(api, -1, 0, &error, &failed);
    if (!machine) {
        fprintf(stderr, "%s: %s (the same tests run inside a TCG guest: test_in_guest.py)\n", failed,
                strerror(-error));
        exit(77);
    }
    CHECK(umdev_kvm_set_slot(machine, 0, 0, SPARE, (uintptr_t)memory, 0) == 0);
    CHECK(umdev_kvm_set_slot(machine, 1, SPARE, 0x1000, (uintptr_t)memory + SPARE, 0) == 0);
    umdev_kvm_vcpu *vcpus[2];
    for (int i = 0; i < 2; i++) {
        vcpus[i] = umdev_kvm_vcpu_new(machine, &error, &failed);
        CHECK(vcpus[i] != NULL);
        CHECK(umdev_kvm_vcpu_set_entry(vcpus[i], 1, 0x10000, 0x70000, 0, 0, 0x500, 0) == 0);
    }
    umdev_kvm_range bad[2] = {{.start = 0x1000, .length = 0x1000}, {.start = 0x1800, .length = 0x1000}};
    CHECK(umdev_kvm_publish(machine, bad, 2) == -17);
    umdev_kvm_begin(machine);
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, run, vcpus[i]) == 0);
    for (int round = 0; round < rounds; round++) {
        change_everything(machine, memory, round);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    while (!atomic_load(&rings) || !atomic_load(&other_rings)) /* both bells are there now */
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    umdev_kvm_end(machine);
    uint64_t exits = 0;
    for (int i = 0; i < 2; i++) {
        void *kind;
        CHECK(pthread_join(threads[i], &kind) == 0);
        CHECK((intptr_t)kind == UMDEV_KVM_STOPPED);
        umdev_kvm_exits found;
        umdev_kvm_vcpu_read_exits(vcpus[i], &found);
        exits += found.memory_reads + found.memory_writes;
    }
    CHECK(exits > 0);
    umdev_kvm_free(machine);
}

int main(void)
{
    umdev_api api = {.header = {.size = sizeof api, .major = UMDEV_ABI_MAJOR}, .access = count_access};
    uint8_t *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    memcpy(memory + 0x10000, payload, sizeof payload);
    for (int life = 0; life < 3; life++)
        one_life(&api, memory, 100);
    CHECK(atomic_load(&reads) > 0 && atomic_load(&stores) > 0 && atomic_load(&rings) > 0 &&
          atomic_load(&other_rings) > 0);
    printf("%lu reads, %lu stores, %lu and %lu rings\n", (unsigned long)reads, (unsigned long)stores,
           (unsigned long)rings, (unsigned long)other_rings);
    munmap(memory, MEMORY);
    return 0;
}
