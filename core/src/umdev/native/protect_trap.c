/* protect: the thread that stands between a store and its landing. */
#define _GNU_SOURCE
#include "protect_internal.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* With the protector's lock held; false when the client was closed, or the protector is being freed, while we waited.
 * Polled rather than waited for, so that a device whose clients are closed is never touched again. */
static bool client_enter(umdev_protector *protector, umdev_protect_client *client)
{
    for (unsigned tries = 0; client->device && !umdev_device_trylock(client->device); tries++) {
        pthread_mutex_unlock(&protector->lock);
        struct timespec pause = {.tv_nsec = 20000};
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

/* With the lock held, which is dropped in between. `client` may be gone afterwards. */
static void client_tell(umdev_protector *protector, umdev_protect_client *client, uint64_t address)
{
    client->notifying = true;
    client->references++;
    if (client_enter(protector, client)) {
        protector->serving = address;
        umdev_device *device = client->device;
        pthread_mutex_unlock(&protector->lock);
        client->notify(client->context, address);
        if (device)
            umdev_device_unlock(device);
        pthread_mutex_lock(&protector->lock);
        protector->serving = 0;
    }
    client->notifying = false;
    umdev_protect_client_unref(client);
    pthread_cond_broadcast(&protector->quiet);
}

/* The next client that traps stores to the page; its wish is fulfilled by that. */
static umdev_protect_client *take_client(umdev_protector *protector, int slot, uint64_t page)
{
    for (umdev_protect_client *client = protector->clients; client; client = client->next) {
        struct umdev_protect_bits *bits = &client->bits[slot];
        if (client->closed || client->mode == UMDEV_PROTECT_TRACK || !umdev_bit(bits->watched, page))
            continue;
        umdev_bit_clear(bits->watched, page);
        client->watching--;
        return client;
    }
    return NULL;
}

/* With the lock held. A client that arms the page again while another one is told is not told twice: the store faults
 * again instead, since the page stays protected. */
static void page_changes(umdev_protector *protector, int slot, uint64_t page)
{
    umdev_protect_client *told[16];
    uint64_t address = protector->ranges[slot].address + page * UMDEV_PAGE;
    protector->changing = address;
    for (unsigned turns = 0; turns < sizeof(told) / sizeof(told[0]); turns++) {
        umdev_protect_client *client = take_client(protector, slot, page);
        if (!client)
            break;
        for (unsigned i = 0; i < turns; i++)
            if (told[i] == client) {
                umdev_bit_set(client->bits[slot].watched, page);
                client->watching++;
                protector->changing = 0;
                return;
            }
        told[turns] = client;
        client_tell(protector, client, address);
    }
    protector->changing = 0;
}

static void serve_fault(umdev_protector *protector, uint64_t address)
{
    pthread_mutex_lock(&protector->lock);
    protector->faults++;
    int slot = umdev_protect_find(protector, address);
    if (slot >= 0) {
        uint64_t page = (address - protector->ranges[slot].address) / UMDEV_PAGE;
        umdev_protect_mark(protector, slot, page);
        page_changes(protector, slot, page);
        slot = umdev_protect_find(protector, address); /* it may have gone in between */
    }
    /* Armed again meanwhile: the store has to fault once more. */
    if (slot >= 0 && umdev_protect_wanted(protector, slot, (address - protector->ranges[slot].address) / UMDEV_PAGE))
        umdev_userfault_wake(protector->userfault, address, UMDEV_PAGE);
    else if (umdev_userfault_protect(protector->userfault, address, UMDEV_PAGE, 0))
        umdev_userfault_wake(protector->userfault, address, UMDEV_PAGE);
    pthread_mutex_unlock(&protector->lock);
}

/* Those who trap the pages; those who track them know it since the message was read. */
static void serve_remove(umdev_protector *protector, uint64_t start, uint64_t end)
{
    pthread_mutex_lock(&protector->lock);
    for (uint64_t address = start; address < end; address += UMDEV_PAGE) {
        int slot = umdev_protect_find(protector, address);
        if (slot >= 0)
            page_changes(protector, slot, (address - protector->ranges[slot].address) / UMDEV_PAGE);
    }
    pthread_mutex_unlock(&protector->lock);
}

/* What the kernel has to say, or a negative errno. Who removes pages goes on when the message has been read, so they are
 * marked before anybody can collect. */
static ssize_t take_messages(umdev_protector *protector, struct uffd_msg *messages)
{
    pthread_mutex_lock(&protector->lock);
    ssize_t bytes = read(protector->userfault, messages, UMDEV_PROTECT_MESSAGES_MAX * sizeof(*messages));
    ssize_t count = bytes < 0 ? -errno : bytes / (ssize_t)sizeof(*messages);
    for (ssize_t i = 0; i < count; i++) {
        if (messages[i].event != UFFD_EVENT_REMOVE)
            continue;
        for (uint64_t at = messages[i].arg.remove.start; at < messages[i].arg.remove.end; at += UMDEV_PAGE) {
            int slot = umdev_protect_find(protector, at);
            if (slot >= 0)
                umdev_protect_mark(protector, slot, (at - protector->ranges[slot].address) / UMDEV_PAGE);
        }
    }
    pthread_mutex_unlock(&protector->lock);
    return count;
}

static void serve_messages(umdev_protector *protector, const struct uffd_msg *messages, ssize_t count)
{
    for (ssize_t i = 0; i < count; i++) {
        if (messages[i].event == UFFD_EVENT_PAGEFAULT)
            serve_fault(protector, messages[i].arg.pagefault.address & ~(uint64_t)(UMDEV_PAGE - 1));
        else if (messages[i].event == UFFD_EVENT_REMOVE)
            serve_remove(protector, messages[i].arg.remove.start, messages[i].arg.remove.end);
    }
}

static void *serve(void *argument)
{
    umdev_protector *protector = argument;
    struct uffd_msg messages[UMDEV_PROTECT_MESSAGES_MAX];
    struct pollfd ready[2] = {{.fd = protector->userfault, .events = POLLIN}, {.fd = protector->stop, .events = POLLIN}};
    for (;;) {
        if (poll(ready, 2, -1) < 0 && errno != EINTR)
            break;
        if (ready[1].revents)
            break;
        ssize_t count = take_messages(protector, messages);
        if (count >= 0)
            serve_messages(protector, messages, count);
        else if ((count != -EAGAIN && count != -EINTR) || ready[0].revents & (POLLERR | POLLHUP))
            break; /* the guest's process has ended */
    }
    pthread_mutex_lock(&protector->lock);
    protector->lost |= !protector->pausing;
    if (!protector->free_later) {
        pthread_mutex_unlock(&protector->lock);
        return NULL;
    }
    close(protector->userfault);
    protector->userfault = -1;
    umdev_protect_unref(protector);
    return NULL;
}

int umdev_protect_serve(umdev_protector *protector)
{
    /* Signals are for the threads of the program. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&protector->thread, NULL, serve, protector);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    protector->served = error == 0;
    return -error;
}
