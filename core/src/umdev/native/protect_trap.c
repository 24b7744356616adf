/* protect: what stands between a store and its landing. */
#define _GNU_SOURCE
#include "protect_internal.h"

#include <errno.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum {
    SET_TRIES = 64 /* in a row: somebody who discards without a pause leaves gaps of microseconds */
};
static const int64_t SET_NS = 5000000000; /* a thread may wait long for a processor, but not that long */

static _Thread_local const umdev_protect_client *inside; /* whose notification runs in this thread */
static _Thread_local uint64_t inside_page;

const umdev_protect_client *umdev_protect_inside(const umdev_protector *protector, uint64_t *address)
{
    *address = inside_page;
    return inside && inside->protector == protector ? inside : NULL;
}

bool umdev_protect_held(const umdev_protector *protector, int slot, uint64_t page)
{
    uint64_t address = protector->ranges[slot].address + page * UMDEV_PAGE;
    for (const umdev_protect_client *client = protector->clients; client; client = client->next)
        if (client->mode == UMDEV_PROTECT_TRAP
            && (client->due.telling == address || umdev_bit(client->bits[slot].dirty, page)))
            return true;
    return false;
}

void umdev_protect_settle(umdev_protector *protector, uint64_t address)
{
    int slot = umdev_protect_find(protector, address);
    uint64_t page = slot < 0 ? 0 : (address - protector->ranges[slot].address) / UMDEV_PAGE;
    if (slot >= 0 && umdev_protect_held(protector, slot, page))
        return;
    /* Armed again meanwhile: the store has to fault once more. */
    if (slot >= 0 && umdev_protect_wanted(protector, slot, page))
        umdev_userfault_wake(protector->userfault, address, UMDEV_PAGE);
    else if (umdev_protect_set(protector, address, UMDEV_PAGE, 0))
        umdev_userfault_wake(protector->userfault, address, UMDEV_PAGE);
}

static void due_add(umdev_protect_client *client, uint64_t address)
{
    struct umdev_protect_due *due = &client->due;
    due->pages++;
    due->overflown |= due->queued == UMDEV_PROTECT_MESSAGES_MAX;
    if (!due->overflown)
        due->queue[(due->first + due->queued++) % UMDEV_PROTECT_MESSAGES_MAX] = address;
}

/* The queue is empty: fill it with what is due, starting behind what it was filled with before. */
static void due_search(umdev_protector *protector, umdev_protect_client *client)
{
    struct umdev_protect_due *due = &client->due;
    due->first = 0;
    for (int turns = 0; turns <= UMDEV_PROTECT_RANGES_MAX; turns++) {
        const uint64_t *dirty = client->bits[due->slot].dirty;
        uint64_t pages = dirty ? protector->ranges[due->slot].pages : 0;
        for (; due->page < pages; due->page++) {
            if (!dirty[due->page / 64]) {
                due->page |= 63; /* none in this word */
                continue;
            }
            if (due->queued == UMDEV_PROTECT_MESSAGES_MAX || due->queued == due->pages)
                break;
            if (umdev_bit(dirty, due->page))
                due->queue[due->queued++] = protector->ranges[due->slot].address + due->page * UMDEV_PAGE;
        }
        if (due->page < pages)
            break;
        due->slot = (due->slot + 1) % UMDEV_PROTECT_RANGES_MAX;
        due->page = 0;
    }
    due->overflown = due->queued < due->pages;
}

/* The next page that is due, due no more and no longer armed; 0: none. */
static uint64_t due_take(umdev_protector *protector, umdev_protect_client *client)
{
    struct umdev_protect_due *due = &client->due;
    while (due->pages) {
        if (!due->queued)
            due_search(protector, client);
        uint64_t address = due->queue[due->first];
        due->first = (due->first + 1) % UMDEV_PROTECT_MESSAGES_MAX;
        due->queued--;
        int slot = umdev_protect_find(protector, address);
        uint64_t page = slot < 0 ? 0 : (address - protector->ranges[slot].address) / UMDEV_PAGE;
        if (slot < 0 || !umdev_bit(client->bits[slot].dirty, page))
            continue; /* disarmed in between */
        umdev_bit_clear(client->bits[slot].watched, page);
        umdev_bit_clear(client->bits[slot].dirty, page);
        client->watching--;
        due->pages--;
        return address;
    }
    return 0;
}

/* `page` of `slot` was stored to, is about to be, or was removed. */
static void page_changes(umdev_protector *protector, int slot, uint64_t page)
{
    for (umdev_protect_client *client = protector->clients; client; client = client->next) {
        struct umdev_protect_bits *bits = &client->bits[slot];
        if (client->closed || !umdev_bit(bits->watched, page) || umdev_bit(bits->dirty, page))
            continue;
        umdev_bit_set(bits->dirty, page);
        if (client->mode == UMDEV_PROTECT_TRAP)
            due_add(client, protector->ranges[slot].address + page * UMDEV_PAGE);
    }
}

static void take_fault(umdev_protector *protector, uint64_t address)
{
    protector->faults++;
    int slot = umdev_protect_find(protector, address);
    if (slot >= 0)
        page_changes(protector, slot, (address - protector->ranges[slot].address) / UMDEV_PAGE);
    umdev_protect_settle(protector, address);
}

static void take_remove(umdev_protector *protector, uint64_t start, uint64_t end)
{
    for (int slot = 0; slot < UMDEV_PROTECT_RANGES_MAX; slot++) {
        const struct umdev_protect_range *range = &protector->ranges[slot];
        uint64_t first = start > range->address ? (start - range->address) / UMDEV_PAGE : 0;
        for (uint64_t page = first; page < range->pages && range->address + page * UMDEV_PAGE < end; page++)
            page_changes(protector, slot, page);
    }
}

/* Who removes pages goes on when the message has been read, so they are noted before anybody can collect. `settling`: a
 * page is being settled already, or armed; a store that was stopped faults again, and is taken then. */
static int take(umdev_protector *protector, bool settling)
{
    struct uffd_msg messages[UMDEV_PROTECT_MESSAGES_MAX];
    ssize_t bytes = read(protector->userfault, messages, sizeof(messages));
    if (bytes < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    for (size_t i = 0; i < (size_t)bytes / sizeof(*messages); i++) {
        uint64_t page = messages[i].arg.pagefault.address & ~(uint64_t)(UMDEV_PAGE - 1);
        if (messages[i].event == UFFD_EVENT_REMOVE)
            take_remove(protector, messages[i].arg.remove.start, messages[i].arg.remove.end);
        else if (messages[i].event == UFFD_EVENT_PAGEFAULT && settling)
            umdev_userfault_wake(protector->userfault, page, UMDEV_PAGE);
        else if (messages[i].event == UFFD_EVENT_PAGEFAULT)
            take_fault(protector, page);
    }
    return 0;
}

int umdev_protect_take(umdev_protector *protector)
{
    return take(protector, false);
}

static int64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* The kernel refuses from the moment when a thread begins to give pages back until its message has been read and the
 * thread has run again. The one that serves can't read it: we hold the lock. */
static int set_patiently(umdev_protector *protector, uint64_t address, uint64_t length, int on)
{
    int64_t end = now_ns() + SET_NS;
    int result = -EAGAIN;
    for (unsigned tries = 1; result == -EAGAIN && (tries % SET_TRIES || now_ns() < end); tries++) {
        int taken = take(protector, true);
        if (taken)
            return taken;
        if (tries % SET_TRIES == 0)
            usleep(10); /* it needs a processor */
        result = umdev_userfault_protect(protector->userfault, address, length, on);
    }
    if (umdev_protect_next(protector) && protector->served && !protector->telling && !protector->called) {
        protector->called = true; /* it may sleep, and would not be told again of what we have read */
        eventfd_write(protector->stop, 1);
    }
    return result;
}

int umdev_protect_set(umdev_protector *protector, uint64_t address, uint64_t length, int on)
{
    int result = umdev_userfault_protect(protector->userfault, address, length, on);
    return result == -EAGAIN ? set_patiently(protector, address, length, on) : result;
}

umdev_protect_client *umdev_protect_next(umdev_protector *protector)
{
    umdev_protect_client *next = NULL;
    for (umdev_protect_client *client = protector->clients; client; client = client->next) {
        bool able = client->due.pages && !client->due.telling && !client->closed;
        if (able && (!next || client->due.told < next->due.told))
            next = client;
    }
    return next;
}

/* With the protector's lock held; false when the client was closed, or the protector is being freed, while we waited.
 * Polled rather than waited for, so that a device whose clients are closed is never touched again. */
static bool client_enter(umdev_protector *protector, umdev_protect_client *client)
{
    for (unsigned tries = 0; client->device && !umdev_device_trylock(client->device); tries++) {
        pthread_mutex_unlock(&protector->lock);
        struct timespec pause = {.tv_nsec = tries < 64 ? 20000 : 500000};
        if (tries < 16)
            sched_yield();
        else
            nanosleep(&pause, NULL);
        pthread_mutex_lock(&protector->lock);
        if (client->closed || protector->lost)
            return false;
    }
    return true;
}

void umdev_protect_tell(umdev_protector *protector, umdev_protect_client *client)
{
    uint64_t address = due_take(protector, client);
    client->due.telling = address;
    client->due.told = ++protector->turn;
    if (address && client_enter(protector, client)) {
        umdev_device *device = client->device;
        pthread_mutex_unlock(&protector->lock);
        inside = client;
        inside_page = address;
        client->notify(client->context, address);
        inside = NULL;
        if (device)
            umdev_device_unlock(device);
        pthread_mutex_lock(&protector->lock);
    }
    client->due.telling = 0;
    if (address)
        umdev_protect_settle(protector, address);
    pthread_cond_broadcast(&protector->quiet);
}
