/* protect: what its C files share; not for cffi. */
#ifndef UMDEV_PROTECT_INTERNAL_H
#define UMDEV_PROTECT_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "umdev.h"
#include "device_decls.h"
#include "memory_decls.h"
#include "protect_decls.h"
#include "userfault_internal.h"

#define UMDEV_PROTECT_HIDDEN __attribute__((visibility("hidden")))

struct umdev_protect_range {
    uint64_t address;
    uint64_t pages; /* 0: the slot is free */
};

/* One client's pages of one range, a bit each; NULL until it arms one there. */
struct umdev_protect_bits {
    uint64_t *watched;
    uint64_t *dirty; /* TRACK: stored to, not yet reported */
};

struct umdev_protect_client {
    umdev_protector *protector;
    umdev_protect_client *next;
    umdev_device *device;
    umdev_page_notify notify;
    void *context;
    int mode;
    bool closed;
    bool notifying;
    uint32_t references; /* the owner's, and one while notifying */
    uint64_t watching; /* bits set in `watched` */
    struct umdev_protect_bits bits[UMDEV_PROTECT_RANGES_MAX];
};

/* `lock` guards everything below it and orders the requests to the kernel. It is never held while a device lock is
 * waited for or a notification runs. */
struct umdev_protector {
    pthread_mutex_t lock;
    pthread_cond_t quiet; /* a notification has ended */
    int userfault;
    int pagemap;
    bool asynchronous;
    bool lost;       /* the guest's address space is gone */
    bool served;     /* `thread` runs */
    bool pausing;    /* `thread` ends for another one, not for good */
    bool free_later; /* by the thread itself */
    int stop;        /* eventfd */
    pthread_t thread;
    uint64_t serving; /* the page of the notification that runs, 0: none */
    uint64_t changing; /* the page whose clients are being told one by one; whoever drops it leaves its release to that */
    uint64_t faults;
    uint32_t references; /* the owner and each client */
    umdev_protect_client *clients;
    struct umdev_protect_range ranges[UMDEV_PROTECT_RANGES_MAX];
};

/* Everything here: with the lock held. */
UMDEV_PROTECT_HIDDEN int umdev_protect_find(const umdev_protector *protector, uint64_t address); /* slot, -1: none */
/* `page` of `slot` was stored to, or removed: those who track it will report it. */
UMDEV_PROTECT_HIDDEN void umdev_protect_mark(umdev_protector *protector, int slot, uint64_t page);
/* Whether some client still waits for a store to the page. */
UMDEV_PROTECT_HIDDEN bool umdev_protect_wanted(const umdev_protector *protector, int slot, uint64_t page);
UMDEV_PROTECT_HIDDEN int umdev_protect_serve(umdev_protector *protector); /* starts the thread */
UMDEV_PROTECT_HIDDEN void umdev_protect_client_unref(umdev_protect_client *client);
UMDEV_PROTECT_HIDDEN void umdev_protect_unref(umdev_protector *protector); /* unlocks; may free */

static inline bool umdev_bit(const uint64_t *bits, uint64_t index)
{
    return bits && (bits[index / 64] >> (index % 64) & 1);
}

static inline void umdev_bit_set(uint64_t *bits, uint64_t index)
{
    bits[index / 64] |= (uint64_t)1 << (index % 64);
}

static inline void umdev_bit_clear(uint64_t *bits, uint64_t index)
{
    bits[index / 64] &= ~((uint64_t)1 << (index % 64));
}

/* Pages next to each other become one request. */
struct umdev_protect_run {
    int userfault;
    int on;
    uint64_t start;
    uint64_t end;
};

static inline int umdev_protect_run_flush(struct umdev_protect_run *run)
{
    int result = run->start == run->end
                     ? 0
                     : umdev_userfault_protect(run->userfault, run->start, run->end - run->start, run->on);
    run->start = run->end = 0;
    return result;
}

static inline int umdev_protect_run_add(struct umdev_protect_run *run, uint64_t address)
{
    int result = 0;
    if (address != run->end || run->start == run->end) {
        result = umdev_protect_run_flush(run);
        run->start = address;
    }
    run->end = address + UMDEV_PAGE;
    return result;
}

#endif
