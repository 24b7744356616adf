/* protect: the threads that stop stores and tell of them.
 *
 * One thread serves: it reads what the kernel says and tells the clients by itself, since handing that over would
 * cost as much as the store does. A notification may take long though, and stores to pages of other clients must not
 * wait for it. So a second thread stands by, and serves in its place when one notification has taken PATIENCE_NS. The
 * first one is left behind with its client, and goes on with that client alone until it has nothing to be told. So
 * there are at most as many threads as clients that take long, and two.
 */
#define _GNU_SOURCE
#include "protect_internal.h"
#include "signals_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum {
    PATIENCE_NS = 1000000, /* far more than most notifications take, far less than a guest notices */
    TURNS = 16             /* notifications between two looks at what the kernel says */
};

static bool ending(const umdev_protector *protector)
{
    return protector->lost || protector->pausing;
}

/* A thread that has put itself there has nothing left to do but to unlock and return. */
static void join_ended(umdev_protector *protector)
{
    while (protector->ended) {
        struct umdev_protect_thread *thread = protector->ended;
        protector->ended = thread->next;
        pthread_join(thread->id, NULL);
        free(thread);
    }
}

static void set_timer(umdev_protector *protector)
{
    struct itimerspec once = {.it_value = {.tv_nsec = PATIENCE_NS}};
    timerfd_settime(protector->timer, 0, &once, NULL);
    protector->timed = true;
    protector->timed_turn = protector->server_turn;
}

/* Before a notification of the thread that serves. */
static void be_watched(umdev_protector *protector)
{
    protector->telling = true;
    protector->server_turn++;
    if (!protector->standby && !protector->starting)
        umdev_protect_start(protector); /* where no thread can be had, this one is waited for */
    if (!protector->timed)
        set_timer(protector);
}

/* With the lock held, which is dropped meanwhile. False when this thread has been left behind. */
static bool tell_as_server(umdev_protector *protector, umdev_protect_client *client, uint64_t term)
{
    client->references++;
    be_watched(protector);
    umdev_protect_tell(protector, client);
    bool serving = protector->term == term;
    if (serving)
        protector->telling = false;
    while (!serving && client->due.pages && !client->closed && !ending(protector))
        umdev_protect_tell(protector, client);
    umdev_protect_client_unref(client);
    return serving;
}

static void hear_call(umdev_protector *protector)
{
    eventfd_t written;
    eventfd_read(protector->stop, &written);
    protector->called = false;
}

/* Until the threads end, or this one has been left behind. */
static void serve(umdev_protector *protector)
{
    struct pollfd ready[2] = {{.fd = protector->userfault, .events = POLLIN},
                              {.fd = protector->stop, .events = POLLIN}};
    uint64_t term = ++protector->term;
    protector->served = true;
    protector->telling = false;
    while (!ending(protector)) {
        bool more = umdev_protect_next(protector);
        ready[0].revents = ready[1].revents = 0;
        pthread_mutex_unlock(&protector->lock);
        int count = poll(ready, 2, more ? 0 : -1);
        int error = count < 0 && errno != EINTR ? errno : 0;
        pthread_mutex_lock(&protector->lock);
        if (ending(protector))
            break;
        if (protector->called)
            hear_call(protector);
        if (error || umdev_protect_take(protector) || ready[0].revents & (POLLERR | POLLHUP)) {
            protector->lost = true; /* the guest's process has ended */
            eventfd_write(protector->stop, 1);
            break;
        }
        for (unsigned turns = 0; turns < TURNS && !ending(protector); turns++) {
            umdev_protect_client *client = umdev_protect_next(protector);
            if (!client)
                break;
            if (!tell_as_server(protector, client, term))
                return;
        }
    }
    protector->served = false;
}

/* Until the threads end, or the one that serves takes too long. */
static void stand_by(umdev_protector *protector)
{
    struct pollfd ready[2] = {{.fd = protector->timer, .events = POLLIN}, {.fd = protector->stop, .events = POLLIN}};
    protector->standby = true;
    while (!ending(protector) && protector->served) {
        uint64_t expired;
        pthread_mutex_unlock(&protector->lock);
        poll(ready, 2, -1);
        pthread_mutex_lock(&protector->lock);
        if (read(protector->timer, &expired, sizeof(expired)) != (ssize_t)sizeof(expired))
            continue;
        protector->timed = false;
        if (protector->telling && protector->server_turn == protector->timed_turn)
            protector->served = false;
        else if (protector->telling)
            set_timer(protector);
    }
    protector->standby = false;
}

static void *run(void *argument)
{
    struct umdev_protect_thread *self = argument;
    umdev_protector *protector = self->protector;
    pthread_mutex_lock(&protector->lock);
    protector->starting--;
    while (!ending(protector) && !(protector->served && protector->standby))
        if (protector->served)
            stand_by(protector);
        else
            serve(protector);
    protector->threads--;
    pthread_cond_broadcast(&protector->quiet);
    if (protector->threads || !protector->free_later) {
        self->next = protector->ended;
        protector->ended = self;
        pthread_mutex_unlock(&protector->lock);
        return NULL;
    }
    join_ended(protector);
    pthread_detach(self->id);
    free(self);
    umdev_protect_let_go(protector);
    umdev_protect_unref(protector);
    return NULL;
}

int umdev_protect_start(umdev_protector *protector)
{
    join_ended(protector);
    struct umdev_protect_thread *thread = calloc(1, sizeof(*thread));
    if (!thread)
        return -ENOMEM;
    thread->protector = protector;
    /* Signals are for the threads of the program. */
    sigset_t before;
    umdev_signals_block(&before);
    int error = pthread_create(&thread->id, NULL, run, thread);
    umdev_signals_restore(&before);
    if (error) {
        free(thread);
    } else {
        protector->starting++;
        protector->threads++;
    }
    return -error;
}

void umdev_protect_stop(umdev_protector *protector)
{
    eventfd_write(protector->stop, 1);
    while (protector->threads)
        pthread_cond_wait(&protector->quiet, &protector->lock);
    join_ended(protector);
    hear_call(protector);
}
