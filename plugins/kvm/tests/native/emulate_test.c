/* Stores of four threads to emulated pages, while devices come, go, and change their minds about pages. */
#define _GNU_SOURCE
#include "internal.h"
#include "umdev_check.h"

#include <stdio.h>
#include <stdlib.h>

enum { THREADS = 4, PAGES = 32, STORES = 20000, PAGE = 4096, DEVICES = 2 };

#define GUEST 0x40000000u
struct umdev_device {
    pthread_mutex_t mutex;
    uint64_t told;
};

static umdev_kvm machine;
static umdev_kvm_emulator *emulator;
static umdev_device devices[DEVICES] = {{.mutex = PTHREAD_MUTEX_INITIALIZER}, {.mutex = PTHREAD_MUTEX_INITIALIZER}};
static uint32_t memory[PAGES * PAGE / 4];
static uint32_t logs[THREADS][PAGES];
static atomic_bool over;

static int trylock(umdev_device *device)
{
    return pthread_mutex_trylock(&device->mutex) == 0;
}

static void unlock(umdev_device *device)
{
    pthread_mutex_unlock(&device->mutex);
}

static int stored(void *context, uint64_t address, uint64_t value, uint32_t length)
{
    umdev_device *device = context;
    CHECK(length == 4);
    device->told++;
    /* A device writes to memory as DMA does; both may hear of one store. */
    __atomic_store_n(&memory[(address - GUEST) / 4], (uint32_t)value, __ATOMIC_RELAXED);
    return 1;
}

static void *processor(void *argument)
{
    unsigned number = (unsigned)(uintptr_t)argument;
    uint32_t random = number * 2654435761u + 1;
    for (uint32_t i = 1; i <= STORES; i++) {
        random = random * 1664525u + 1013904223u;
        unsigned page = (random >> 8) % PAGES;
        logs[number][page] = i;
        umdev_kvm_store store = atomic_load(&machine.store);
        CHECK(store(machine.store_context, GUEST + page * PAGE + number * 4, (const uint8_t *)&i, 4) == 1);
        CHECK(__atomic_load_n(&memory[page * (PAGE / 4) + number], __ATOMIC_RELAXED) == i);
    }
    return NULL;
}

static void *restless(void *argument)
{
    umdev_device *device = argument;
    for (unsigned turn = 0; !atomic_load(&over); turn++) {
        umdev_kvm_watcher *watcher = umdev_kvm_watcher_new(emulator, device, stored, device);
        CHECK(watcher);
        for (unsigned page = 0; page < PAGES; page++)
            CHECK(umdev_kvm_watcher_set(watcher, GUEST + page * PAGE, 1) == 0);
        CHECK(umdev_kvm_watcher_set(watcher, GUEST + PAGES * PAGE, 1) == -EFAULT);
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
        for (unsigned page = 0; page < PAGES; page += 2)
            CHECK(umdev_kvm_watcher_set(watcher, GUEST + page * PAGE, 0) == 0);
        /* A model may close with its lock held, or without. */
        if (turn % 2)
            pthread_mutex_lock(&device->mutex);
        umdev_kvm_watcher_free(watcher);
        if (turn % 2)
            pthread_mutex_unlock(&device->mutex);
    }
    return NULL;
}

static umdev_kvm_watcher *suicidal;

static int closes_itself(void *context, uint64_t address, uint64_t value, uint32_t length)
{
    (void)address, (void)value, (void)length;
    umdev_kvm_watcher_free(suicidal);
    ++*(int *)context;
    return 1;
}

static int drops(void *context, uint64_t address, uint64_t value, uint32_t length)
{
    (void)address, (void)value, (void)length;
    ++*(int *)context;
    return 1;
}

static int fails(void *context, uint64_t address, uint64_t value, uint32_t length)
{
    (void)address, (void)value, (void)length;
    ++*(int *)context;
    return 0;
}

int main(void)
{
    static const umdev_api api = {.trylock = trylock, .unlock = unlock};
    emulator = umdev_kvm_emulator_new(&api);
    CHECK(emulator);
    umdev_kvm_emulator_connect(emulator, &machine);
    CHECK(umdev_kvm_emulator_add_memory(emulator, GUEST, sizeof memory, (uintptr_t)memory) == 0);

    pthread_t processors[THREADS], restless_ones[DEVICES];
    for (uintptr_t i = 0; i < DEVICES; i++)
        pthread_create(&restless_ones[i], NULL, restless, &devices[i]);
    for (uintptr_t i = 0; i < THREADS; i++)
        pthread_create(&processors[i], NULL, processor, (void *)i);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(processors[i], NULL);
    atomic_store(&over, true);
    for (unsigned i = 0; i < DEVICES; i++)
        pthread_join(restless_ones[i], NULL);
    for (unsigned page = 0; page < PAGES; page++)
        for (unsigned number = 0; number < THREADS; number++)
            CHECK(memory[page * (PAGE / 4) + number] == logs[number][page]);
    CHECK(umdev_kvm_emulator_stores(emulator) == THREADS * STORES);
    CHECK(devices[0].told + devices[1].told > 0);

    uint8_t byte = 7;
    int calls = 0;
    suicidal = umdev_kvm_watcher_new(emulator, &devices[0], closes_itself, &calls);
    CHECK(umdev_kvm_watcher_set(suicidal, GUEST, 1) == 0);
    umdev_kvm_store store = atomic_load(&machine.store);
    CHECK(store(emulator, GUEST + 100, &byte, 1) == 1 && calls == 1);
    CHECK(store(emulator, GUEST + 100, &byte, 1) == 1 && calls == 1 && ((uint8_t *)memory)[100] == 7);
    CHECK(store(emulator, GUEST - 1, &byte, 1) == 0);

    /* What its model fails to take lands, unless another has it; nobody is told twice. */
    int failed = 0;
    umdev_kvm_watcher *failing = umdev_kvm_watcher_new(emulator, &devices[0], fails, &failed);
    CHECK(umdev_kvm_watcher_set(failing, GUEST, 1) == 0);
    byte = 9;
    CHECK(store(emulator, GUEST + 100, &byte, 1) == 1 && failed == 1 && ((uint8_t *)memory)[100] == 9);
    umdev_kvm_watcher *dropping = umdev_kvm_watcher_new(emulator, &devices[1], drops, &calls);
    CHECK(umdev_kvm_watcher_set(dropping, GUEST, 1) == 0);
    byte = 11;
    CHECK(store(emulator, GUEST + 100, &byte, 1) == 1 && failed == 2 && calls == 2 && ((uint8_t *)memory)[100] == 9);
    umdev_kvm_watcher_free(failing);
    umdev_kvm_watcher_free(dropping);
    umdev_kvm_emulator_free(emulator);
    return 0;
}
