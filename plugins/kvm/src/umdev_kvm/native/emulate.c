/* Stores that a read-only slot has turned into exits. */
#include "internal.h"

#include <sched.h>
#include <stdlib.h>
#include <time.h>

enum { PAGE = 4096, PARTS = 64 };

struct part {
    uint64_t guest, length, host;
};

struct umdev_kvm_watcher {
    umdev_kvm_emulator *emulator;
    umdev_kvm_watcher *next;
    umdev_device *device;
    umdev_kvm_store_notify notify;
    void *context;
    bool closed;
    bool inside;      /* `thread` is in `notify`; the device lock lets one in at a time */
    bool free_later;  /* by that thread */
    pthread_t thread;
    uint32_t busy; /* processors that are with it */
    uint64_t *bits[PARTS];
};

/* `mutex` guards everything; it is never held while a device lock is waited for or a device is told. */
struct umdev_kvm_emulator {
    const umdev_api *api;
    pthread_mutex_t mutex;
    pthread_cond_t quiet;
    struct part parts[PARTS];
    uint32_t part_count;
    umdev_kvm_watcher *watchers;
    uint64_t stores;
};

umdev_kvm_emulator *umdev_kvm_emulator_new(const umdev_api *api)
{
    umdev_kvm_emulator *emulator = calloc(1, sizeof *emulator);
    if (!emulator)
        return NULL;
    emulator->api = api;
    pthread_mutex_init(&emulator->mutex, NULL);
    pthread_cond_init(&emulator->quiet, NULL);
    return emulator;
}

void umdev_kvm_emulator_free(umdev_kvm_emulator *emulator)
{
    if (!emulator)
        return;
    pthread_cond_destroy(&emulator->quiet);
    pthread_mutex_destroy(&emulator->mutex);
    free(emulator);
}

int umdev_kvm_emulator_add_memory(umdev_kvm_emulator *emulator, uint64_t guest, uint64_t length, uint64_t host)
{
    pthread_mutex_lock(&emulator->mutex);
    int result = emulator->part_count < PARTS ? 0 : -ENOSPC;
    if (!result)
        emulator->parts[emulator->part_count++] = (struct part){guest, length, host};
    pthread_mutex_unlock(&emulator->mutex);
    return result;
}

uint64_t umdev_kvm_emulator_stores(umdev_kvm_emulator *emulator)
{
    pthread_mutex_lock(&emulator->mutex);
    uint64_t stores = emulator->stores;
    pthread_mutex_unlock(&emulator->mutex);
    return stores;
}

/* With the mutex held. -1: no memory. */
static int find_part(const umdev_kvm_emulator *emulator, uint64_t address)
{
    for (uint32_t i = 0; i < emulator->part_count; i++)
        if (address - emulator->parts[i].guest < emulator->parts[i].length)
            return (int)i;
    return -1;
}

static bool watches(const umdev_kvm_watcher *watcher, uint32_t part, uint64_t page)
{
    return watcher->bits[part] && (watcher->bits[part][page / 64] >> (page % 64) & 1);
}

/* With the mutex held, which is dropped in between. False: it was closed meanwhile. Polled rather than waited for, so
 * that a device whose watcher is closed, lock held, is never touched again. */
static bool lock_device(umdev_kvm_emulator *emulator, const umdev_kvm_watcher *watcher)
{
    for (unsigned tries = 0; !emulator->api->trylock(watcher->device); tries++) {
        pthread_mutex_unlock(&emulator->mutex);
        struct timespec pause = {.tv_nsec = 20000};
        if (tries < 16)
            sched_yield();
        else
            nanosleep(&pause, NULL);
        pthread_mutex_lock(&emulator->mutex);
        if (watcher->closed)
            return false;
    }
    return true;
}

static void watcher_delete(umdev_kvm_watcher *watcher)
{
    for (unsigned i = 0; i < PARTS; i++)
        free(watcher->bits[i]);
    free(watcher);
}

/* With the mutex held; the watcher may be gone afterwards. Whether it was told, and (`*taken`) has the store. */
static bool tell(umdev_kvm_emulator *emulator, umdev_kvm_watcher *watcher, uint64_t address, uint64_t value,
                 uint32_t length, bool *taken)
{
    watcher->busy++;
    bool entered = lock_device(emulator, watcher);
    if (entered) {
        umdev_device *device = watcher->device;
        watcher->inside = true;
        watcher->thread = pthread_self();
        pthread_mutex_unlock(&emulator->mutex);
        bool took = watcher->notify(watcher->context, address, value, length) != 0;
        pthread_mutex_lock(&emulator->mutex);
        *taken |= took;
        watcher->inside = false;
        emulator->api->unlock(device);
    }
    watcher->busy--;
    if (watcher->free_later)
        watcher_delete(watcher);
    else if (watcher->closed)
        pthread_cond_broadcast(&emulator->quiet);
    return entered;
}

/* A store that left the guest before its page became ordinary memory again, or whose model failed. */
static void land(const struct part *part, uint64_t address, uint64_t value, uint32_t length)
{
    void *where = (void *)(uintptr_t)(part->host + (address - part->guest));
    switch (length) {
    case 1: __atomic_store_n((uint8_t *)where, (uint8_t)value, __ATOMIC_RELEASE); break;
    case 2: memcpy(where, &value, 2); break;
    case 4: memcpy(where, &value, 4); break;
    case 8: memcpy(where, &value, 8); break;
    default: memcpy(where, &value, length);
    }
}

static int store(void *context, uint64_t address, const uint8_t *bytes, uint32_t length)
{
    umdev_kvm_emulator *emulator = context;
    uint64_t value = 0;
    memcpy(&value, bytes, length < 8 ? length : 8);
    pthread_mutex_lock(&emulator->mutex);
    int part = find_part(emulator, address);
    if (part < 0) {
        pthread_mutex_unlock(&emulator->mutex);
        return 0;
    }
    emulator->stores++;
    uint64_t page = (address - emulator->parts[part].guest) / PAGE;
    /* One of a machine's devices after the other. The list may change while one is told: those told are remembered. */
    umdev_kvm_watcher *told[UMDEV_KVM_FUNCTIONS];
    unsigned count = 0;
    bool taken = false;
    for (umdev_kvm_watcher *watcher = emulator->watchers; watcher && count < UMDEV_KVM_FUNCTIONS;) {
        bool again = false;
        for (unsigned i = 0; i < count; i++)
            again |= told[i] == watcher;
        if (again || watcher->closed || !watches(watcher, (uint32_t)part, page)) {
            watcher = watcher->next;
            continue;
        }
        if (tell(emulator, watcher, address, value, length, &taken))
            told[count++] = watcher;
        watcher = emulator->watchers;
    }
    struct part memory = emulator->parts[part];
    pthread_mutex_unlock(&emulator->mutex);
    if (!taken)
        land(&memory, address, value, length);
    return 1;
}

void umdev_kvm_emulator_connect(umdev_kvm_emulator *emulator, umdev_kvm *machine)
{
    machine->store_context = emulator;
    atomic_store(&machine->store, store);
}

umdev_kvm_watcher *umdev_kvm_watcher_new(umdev_kvm_emulator *emulator, umdev_device *device,
                                         umdev_kvm_store_notify notify, void *context)
{
    umdev_kvm_watcher *watcher = calloc(1, sizeof *watcher);
    if (!watcher)
        return NULL;
    *watcher = (umdev_kvm_watcher){.emulator = emulator, .device = device, .notify = notify, .context = context};
    pthread_mutex_lock(&emulator->mutex);
    /* At the end: who came first is told first. */
    umdev_kvm_watcher **link = &emulator->watchers;
    while (*link)
        link = &(*link)->next;
    *link = watcher;
    pthread_mutex_unlock(&emulator->mutex);
    return watcher;
}

void umdev_kvm_watcher_free(umdev_kvm_watcher *watcher)
{
    if (!watcher)
        return;
    umdev_kvm_emulator *emulator = watcher->emulator;
    pthread_mutex_lock(&emulator->mutex);
    watcher->closed = true;
    /* Those that wait for the device lock see `closed` and give up, so whoever holds it may wait for them here. */
    bool own = watcher->inside && pthread_equal(watcher->thread, pthread_self());
    while (watcher->busy > own)
        pthread_cond_wait(&emulator->quiet, &emulator->mutex);
    umdev_kvm_watcher **link = &emulator->watchers;
    while (*link != watcher)
        link = &(*link)->next;
    *link = watcher->next;
    watcher->free_later = own;
    pthread_mutex_unlock(&emulator->mutex);
    if (!own)
        watcher_delete(watcher);
}

int umdev_kvm_watcher_set(umdev_kvm_watcher *watcher, uint64_t address, int watched)
{
    umdev_kvm_emulator *emulator = watcher->emulator;
    pthread_mutex_lock(&emulator->mutex);
    int part = find_part(emulator, address);
    int result = part < 0 ? -EFAULT : 0;
    if (!result && !watcher->bits[part]) {
        watcher->bits[part] = calloc((emulator->parts[part].length / PAGE + 63) / 64, 8);
        result = watcher->bits[part] ? 0 : -ENOMEM;
    }
    if (!result) {
        uint64_t page = (address - emulator->parts[part].guest) / PAGE;
        uint64_t bit = (uint64_t)1 << (page % 64);
        uint64_t *word = &watcher->bits[part][page / 64];
        *word = watched ? *word | bit : *word & ~bit;
    }
    pthread_mutex_unlock(&emulator->mutex);
    return result;
}
