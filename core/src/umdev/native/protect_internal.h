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
    uint64_t *dirty; /* stored to (TRACK) or about to be (TRAP), and the client has not heard of it yet */
};

/* TRAP: what a client has to be told, one page at a time, in the order in which the stores were stopped. */
struct umdev_protect_due {
    uint64_t pages;   /* bits set in `dirty`; stores to these pages wait */
    uint64_t telling; /* the page whose notification runs, 0: none */
    uint64_t told;    /* when that was: the protector's turn */
    uint64_t queue[UMDEV_PROTECT_MESSAGES_MAX]; /* a ring; pages that are no longer dirty are passed over */
    uint32_t first, queued;
    bool overflown; /* pages are due that the queue had no room for: they are searched for when it is empty */
    int slot;       /* where the next search begins */
    uint64_t page;
};

struct umdev_protect_client {
    umdev_protector *protector;
    umdev_protect_client *next;
    umdev_device *device;
    umdev_page_notify notify;
    void *context;
    int mode;
    bool closed;
    uint32_t references; /* the owner's, and one while it is told */
    uint64_t watching;   /* bits set in `watched` */
    struct umdev_protect_due due;
    struct umdev_protect_bits bits[UMDEV_PROTECT_RANGES_MAX];
};

/* One of the threads of a protector; see protect_threads.c. */
struct umdev_protect_thread {
    umdev_protector *protector;
    pthread_t id;
    struct umdev_protect_thread *next; /* in `ended` */
};

/* `lock` guards everything below it and orders the requests to the kernel. It is never held while a device lock is
 * waited for or a notification runs. */
struct umdev_protector {
    umdev_protector *next; /* of all of the process, see protect_fork.c; guarded there */
    pthread_mutex_t lock;
    pthread_cond_t quiet; /* a notification or a thread has ended */
    int userfault;
    int pagemap;
    bool asynchronous;
    bool lost;       /* the guest's address space is gone: the threads end */
    bool pausing;    /* they end for others, not for good */
    bool free_later; /* by the last of them */
    int stop;        /* eventfd: they shall look at the three above, */
    bool called;     /* or the one that serves at its clients, since another thread has read what the kernel said */
    int timer;       /* for the thread that stands by */
    bool timed;      /* it runs */
    bool served;     /* a thread reads `userfault` */
    bool standby;    /* another one waits to do it in its place */
    bool telling;    /* the one that serves is in a notification */
    uint64_t turn;        /* counts all notifications */
    uint64_t server_turn; /* counts those of the thread that serves */
    uint64_t timed_turn;  /* of these, the one that ran when the timer was set */
    uint64_t term;        /* counts the threads that have served */
    uint32_t threads;
    uint32_t starting; /* of them: not there yet */
    struct umdev_protect_thread *ended; /* to be joined */
    uint64_t faults;
    uint32_t references; /* the owner and each client */
    umdev_protect_client *clients;
    struct umdev_protect_range ranges[UMDEV_PROTECT_RANGES_MAX];
};

/* No lock. The guest is lost in a child that is forked while the protector is listed. */
UMDEV_PROTECT_HIDDEN void umdev_protect_list(umdev_protector *protector);
UMDEV_PROTECT_HIDDEN void umdev_protect_unlist(umdev_protector *protector);

/* Everything from here on: with the lock held. */
UMDEV_PROTECT_HIDDEN int umdev_protect_find(const umdev_protector *protector, uint64_t address); /* slot, -1: none */
/* `page` of `slot` was stored to, or removed: those who track it will report it. */
UMDEV_PROTECT_HIDDEN void umdev_protect_mark(umdev_protector *protector, int slot, uint64_t page);
/* Whether some client still waits for a store to the page. */
UMDEV_PROTECT_HIDDEN bool umdev_protect_wanted(const umdev_protector *protector, int slot, uint64_t page);
/* Whether somebody has to be told, or is being told, of a store to the page that waits. */
UMDEV_PROTECT_HIDDEN bool umdev_protect_held(const umdev_protector *protector, int slot, uint64_t page);
/* Unless the page is held, stores to it go on: they land, or fault again where they are wanted. */
UMDEV_PROTECT_HIDDEN void umdev_protect_settle(umdev_protector *protector, uint64_t address);
/* What the kernel has to say, noted for whom it concerns; 0 or a negative errno. */
UMDEV_PROTECT_HIDDEN int umdev_protect_take(umdev_protector *protector);
/* Write-protects pages, or releases them and wakes who stores there; 0 or a negative errno. While memory is being
 * discarded the kernel refuses to, so what it says of that is taken first; -EAGAIN: that has no end. */
UMDEV_PROTECT_HIDDEN int umdev_protect_set(umdev_protector *protector, uint64_t address, uint64_t length, int on);
/* A client that has something to be told, and isn't being told: the one whose turn was longest ago. NULL: none. */
UMDEV_PROTECT_HIDDEN umdev_protect_client *umdev_protect_next(umdev_protector *protector);
/* Tells a client of the next page that is due. Drops the lock meanwhile; the caller has a reference to the client. */
UMDEV_PROTECT_HIDDEN void umdev_protect_tell(umdev_protector *protector, umdev_protect_client *client);
/* The kernel unregisters everything and wakes every writer. */
UMDEV_PROTECT_HIDDEN void umdev_protect_let_go(umdev_protector *protector);
/* Starts a thread; 0 or a negative errno. */
UMDEV_PROTECT_HIDDEN int umdev_protect_start(umdev_protector *protector);
/* Waits until all threads have ended, without the lock. */
UMDEV_PROTECT_HIDDEN void umdev_protect_stop(umdev_protector *protector);
/* The notification that the calling thread is in, if it is one of this protector: its client and page. No lock. */
UMDEV_PROTECT_HIDDEN const umdev_protect_client *umdev_protect_inside(const umdev_protector *protector,
                                                                      uint64_t *address);
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

/* The first bit from `index` on that is set; `end`: none below it. */
static inline uint64_t umdev_bit_next_set(const uint64_t *bits, uint64_t index, uint64_t end)
{
    while (index < end) {
        uint64_t rest = bits[index / 64] >> (index % 64);
        if (rest) {
            index += (uint64_t)__builtin_ctzll(rest);
            return index < end ? index : end;
        }
        index = (index / 64 + 1) * 64;
    }
    return end;
}

static inline uint64_t umdev_bit_next_clear(const uint64_t *bits, uint64_t index, uint64_t end)
{
    while (index < end) {
        uint64_t rest = ~bits[index / 64] >> (index % 64);
        if (rest) {
            index += (uint64_t)__builtin_ctzll(rest);
            return index < end ? index : end;
        }
        index = (index / 64 + 1) * 64;
    }
    return end;
}

/* Sets the bits of [index, end); how many of them were clear. */
static inline uint64_t umdev_bit_set_run(uint64_t *bits, uint64_t index, uint64_t end)
{
    uint64_t changed = 0;
    while (index < end) {
        uint64_t count = 64 - index % 64 < end - index ? 64 - index % 64 : end - index;
        uint64_t mask = ~(uint64_t)0 >> (64 - count) << (index % 64);
        changed += (uint64_t)__builtin_popcountll(mask & ~bits[index / 64]);
        bits[index / 64] |= mask;
        index += count;
    }
    return changed;
}

/* Pages next to each other become one request. */
struct umdev_protect_run {
    umdev_protector *protector;
    int on;
    uint64_t start;
    uint64_t end;
};

static inline int umdev_protect_run_flush(struct umdev_protect_run *run)
{
    int result = run->start == run->end
                     ? 0
                     : umdev_protect_set(run->protector, run->start, run->end - run->start, run->on);
    run->start = run->end = 0;
    return result;
}

static inline int umdev_protect_run_add(struct umdev_protect_run *run, uint64_t address, uint64_t pages)
{
    int result = 0;
    if (address != run->end || run->start == run->end) {
        result = umdev_protect_run_flush(run);
        run->start = address;
    }
    run->end = address + pages * UMDEV_PAGE;
    return result;
}

#endif
