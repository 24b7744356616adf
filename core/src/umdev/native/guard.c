/* guard: a client that shrinks the file under a map must not kill the process. */
#define _GNU_SOURCE
#include "memory_internal.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct umdev_guard_slot *_Atomic umdev_guard_blocks[UMDEV_GUARD_BLOCKS];

static pthread_mutex_t guard_lock = PTHREAD_MUTEX_INITIALIZER; /* adding and removing; never the handler */
static uint32_t guard_search;                                  /* every slot below is taken */

/* A program may install handlers of its own above ours, and take them off again in favour of what was there before. So
 * each time that ours has to go on top it does so as another function, with a predecessor of its own: chains are lines
 * without rings. */
enum { GUARD_LEVELS = 4 };
static uint32_t guard_levels; /* that have been installed; under guard_lock */
static struct sigaction guard_previous[GUARD_LEVELS];

static struct umdev_guard_slot *guard_slot(uint32_t index)
{
    struct umdev_guard_slot *block = atomic_load(&umdev_guard_blocks[index / UMDEV_GUARD_BLOCK]);
    return block ? &block[index % UMDEV_GUARD_BLOCK] : NULL;
}

int umdev_guard_replace(uintptr_t address, uint64_t length, uint32_t protection)
{
    long prot = (protection & UMDEV_READABLE ? PROT_READ : 0) | (protection & UMDEV_WRITABLE ? PROT_WRITE : 0);
    /* The bare system call: the C library's is no async-signal-safe function, and a sanitizer's takes it for a store
     * to the whole range. */
    long flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
    long result = syscall(SYS_mmap, address, length, prot, flags, -1L, 0L);
    return result == -1 ? -errno : 0;
}

/* Async-signal-safe: loads, stores and one system call. */
static bool guard_poison(uintptr_t address)
{
    for (uint32_t index = 0; index < UMDEV_GUARD_BLOCK * UMDEV_GUARD_BLOCKS; index++) {
        struct umdev_guard_slot *slot = guard_slot(index);
        if (!slot)
            return false; /* blocks are added in order */
        uintptr_t start = atomic_load(&slot->address);
        uint64_t length = atomic_load(&slot->length);
        if (!start || address - start >= length)
            continue;
        uint32_t protection = atomic_load(&slot->protection);
        /* Marked before the zeros appear, so that whoever reads them finds the mark. */
        atomic_store(&slot->poisoned, 1);
        return umdev_guard_replace(start, length, protection) == 0;
    }
    return false;
}

static void guard_handle(const struct sigaction *previous, int number, siginfo_t *info, void *context)
{
    int saved = errno;
    bool ours = info->si_code > 0 && guard_poison((uintptr_t)info->si_addr);
    errno = saved;
    if (ours)
        return;
    if (previous->sa_flags & SA_SIGINFO) {
        previous->sa_sigaction(number, info, context);
    } else if (previous->sa_handler != SIG_DFL && previous->sa_handler != SIG_IGN) {
        previous->sa_handler(number);
    } else if (info->si_code > 0 || previous->sa_handler == SIG_DFL) {
        /* A fault repeats when we return, a signal that was sent does not. */
        struct sigaction standard = {.sa_handler = SIG_DFL};
        sigaction(number, &standard, NULL);
        if (info->si_code <= 0)
            raise(number);
    }
}

#define GUARD_ENTRY(level)                                                                                             \
    static void guard_entry_##level(int number, siginfo_t *info, void *context)                                        \
    {                                                                                                                  \
        guard_handle(&guard_previous[level], number, info, context);                                                   \
    }
GUARD_ENTRY(0)
GUARD_ENTRY(1)
GUARD_ENTRY(2)
GUARD_ENTRY(3)

static void (*const guard_entries[GUARD_LEVELS])(int, siginfo_t *, void *) = {guard_entry_0, guard_entry_1,
                                                                              guard_entry_2, guard_entry_3};

static bool guard_same(const struct sigaction *one, const struct sigaction *other)
{
    if ((one->sa_flags ^ other->sa_flags) & SA_SIGINFO)
        return false;
    return one->sa_flags & SA_SIGINFO ? one->sa_sigaction == other->sa_sigaction
                                      : one->sa_handler == other->sa_handler;
}

/* Make ours the handler if it is not. With guard_lock held. */
static int guard_install(void)
{
    struct sigaction present;
    uint32_t level = 0;

    if (sigaction(SIGBUS, NULL, &present))
        return -errno;
    for (; level < guard_levels; level++) {
        const struct sigaction ours = {.sa_sigaction = guard_entries[level], .sa_flags = SA_SIGINFO};
        if (guard_same(&present, &ours))
            return 0;
    }
    for (level = 0; level < guard_levels && !guard_same(&present, &guard_previous[level]);)
        level++; /* one that has been above this very handler before */
    if (level == GUARD_LEVELS)
        return 0; /* the program takes care of SIGBUS itself */
    struct sigaction action = {.sa_sigaction = guard_entries[level], .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    if (level == guard_levels)
        guard_previous[guard_levels++] = present;
    return sigaction(SIGBUS, &action, NULL) ? -errno : 0;
}

/* With guard_lock held. */
static int guard_take(void)
{
    for (uint32_t index = guard_search; index < UMDEV_GUARD_BLOCK * UMDEV_GUARD_BLOCKS; index++) {
        struct umdev_guard_slot *slot = guard_slot(index);
        if (!slot) {
            slot = calloc(UMDEV_GUARD_BLOCK, sizeof(*slot));
            if (!slot)
                return -ENOMEM;
            atomic_store(&umdev_guard_blocks[index / UMDEV_GUARD_BLOCK], slot);
        }
        if (!atomic_load(&slot->address)) {
            guard_search = index + 1;
            return (int)index;
        }
    }
    return -ENOSPC;
}

int umdev_guard_add(uint8_t *address, uint64_t length, uint32_t protection)
{
    pthread_mutex_lock(&guard_lock);
    int result = guard_install();
    if (!result)
        result = guard_take();
    if (result >= 0) {
        struct umdev_guard_slot *slot = guard_slot((uint32_t)result);
        atomic_store(&slot->poisoned, 0);
        atomic_store(&slot->length, length);
        atomic_store(&slot->protection, protection);
        atomic_store(&slot->address, (uintptr_t)address);
    }
    pthread_mutex_unlock(&guard_lock);
    return result;
}

void umdev_guard_remove(int slot)
{
    struct umdev_guard_slot *entry = slot < 0 ? NULL : guard_slot((uint32_t)slot);
    if (!entry)
        return;
    pthread_mutex_lock(&guard_lock);
    atomic_store(&entry->address, 0);
    atomic_store(&entry->length, 0);
    if ((uint32_t)slot < guard_search)
        guard_search = (uint32_t)slot;
    pthread_mutex_unlock(&guard_lock);
}

int umdev_guard_poisoned(int slot)
{
    return umdev_guard_slot_poisoned(slot);
}
