/* One thread per process waits for the eventfds by which clients unmask INTx (VFIO: DATA_EVENTFD with
 * ACTION_UNMASK). */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "irq_private.h"
#include "signals_internal.h"

typedef struct irq_watch {
    umdev_irq *irq;      /* NULL: the slot is free */
    uint32_t generation; /* grows with each use of the slot, so an event of a closed watch finds nothing */
    int fd;
} irq_watch;

static pthread_mutex_t watch_mutex = PTHREAD_MUTEX_INITIALIZER; /* guards all below; taken before an irq's mutex */
static irq_watch *slots;
static uint32_t slot_count;
static int epoll_fd = -1;
static bool fork_handled;

/* Take the counter down, so that a client which looks sees its signal consumed. RWF_NOWAIT, because the client could
 * have emptied it first; a kernel without it for eventfds leaves the counter, and edge triggering still reports. */
static void consume(int fd)
{
    uint64_t count;
    struct iovec into = {.iov_base = &count, .iov_len = sizeof count};
    ssize_t length = preadv2(fd, &into, 1, -1, RWF_NOWAIT);
    (void)length;
}

/* The watched function with a reference, or NULL when the watch ended meanwhile. */
static umdev_irq *take(uint64_t key)
{
    umdev_irq *irq = NULL;

    pthread_mutex_lock(&watch_mutex);
    const irq_watch *watch = &slots[(uint32_t)key];
    if (watch->irq && watch->generation == key >> 32) {
        consume(watch->fd);
        irq = watch->irq;
        atomic_fetch_add_explicit(&irq->references, 1, memory_order_relaxed);
    }
    pthread_mutex_unlock(&watch_mutex);
    return irq;
}

static int64_t monotonic_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* A client may connect what a level signals to what unmasks it, and so keep this thread busy for ever, alone or with
 * several devices in a ring. No driver unmasks as often as this allows; a ring costs little and stays where it is. */
static void pace(void)
{
    enum { BURST = 64, PERIOD_NS = 1000000 };
    static int64_t since;
    static unsigned served;

    if (++served < BURST)
        return;
    int64_t now = monotonic_ns();
    if (now - since < PERIOD_NS)
        nanosleep(&(struct timespec){.tv_nsec = PERIOD_NS}, NULL);
    since = monotonic_ns();
    served = 0;
}

static void *watch_loop(void *unused)
{
    (void)unused;
    for (;;) {
        struct epoll_event events[16];
        int count = epoll_wait(epoll_fd, events, 16, -1);
        for (int i = 0; i < count; i++) {
            umdev_irq *irq = take(events[i].data.u64);
            if (!irq)
                continue;
            umdev_irq_unmask(irq, UMDEV_IRQ_INTX, 0);
            umdev_irq_unref(irq);
            pace();
        }
    }
    return NULL;
}

static void before_fork(void)
{
    pthread_mutex_lock(&watch_mutex);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&watch_mutex);
}

/* The epoll set is the parent's too: what a child took out of it would be taken from its parent. So it forgets the set,
 * which has no thread here, and makes one of its own when it needs one. */
static void after_fork_in_child(void)
{
    for (uint32_t slot = 0; slot < slot_count; slot++) {
        if (!slots[slot].irq)
            continue;
        slots[slot].irq->watch = 0;
        slots[slot].irq = NULL;
        close(slots[slot].fd);
    }
    close(epoll_fd);
    epoll_fd = -1;
    pthread_mutex_unlock(&watch_mutex);
}

/* The epoll descriptor and its thread, made at the first use and kept. 0 or a negative errno. */
static int start(void)
{
    pthread_t thread;

    if (epoll_fd >= 0)
        return 0;
    if (!fork_handled && pthread_atfork(before_fork, after_fork, after_fork_in_child))
        return -ENOMEM;
    fork_handled = true;
    int fd = epoll_create1(EPOLL_CLOEXEC);
    if (fd < 0)
        return -errno;
    epoll_fd = fd;
    /* The program's signals are for its own threads. */
    sigset_t before;
    umdev_signals_block(&before);
    int error = pthread_create(&thread, NULL, watch_loop, NULL);
    umdev_signals_restore(&before);
    if (error) {
        close(fd);
        epoll_fd = -1;
        return -error;
    }
    pthread_detach(thread);
    return 0;
}

static void remove_watch(umdev_irq *irq)
{
    if (!irq->watch)
        return;
    irq_watch *watch = &slots[irq->watch - 1];
    /* Closing is not enough: the client's descriptor keeps the eventfd in the epoll set. */
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
    close(watch->fd);
    watch->irq = NULL;
    irq->watch = 0;
}

/* A free slot's number, or a negative errno. Slots are kept for the next. */
static int64_t free_slot(void)
{
    for (uint32_t slot = 0; slot < slot_count; slot++)
        if (!slots[slot].irq)
            return slot;
    uint32_t count = slot_count ? 2 * slot_count : 16;
    irq_watch *grown = realloc(slots, count * sizeof *grown);
    if (!grown)
        return -ENOMEM;
    memset(grown + slot_count, 0, (count - slot_count) * sizeof *grown);
    slots = grown;
    int64_t first = slot_count;
    slot_count = count;
    return first;
}

static int add_watch(umdev_irq *irq, int fd)
{
    int error = start();
    if (error)
        return error;
    int64_t slot = free_slot();
    if (slot < 0)
        return (int)slot;
    irq_watch *watch = &slots[slot];
    watch->generation++;
    struct epoll_event event = {.events = EPOLLIN | EPOLLET,
                                .data.u64 = (uint64_t)watch->generation << 32 | (uint64_t)slot};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event))
        return -errno;
    watch->irq = irq;
    watch->fd = fd;
    irq->watch = (uint32_t)slot + 1;
    return 0;
}

int umdev_irq_watch(umdev_irq *irq, int fd)
{
    int error = 0;

    pthread_mutex_lock(&watch_mutex);
    remove_watch(irq);
    if (fd >= 0) {
        error = add_watch(irq, fd);
        if (error)
            close(fd);
    }
    pthread_mutex_unlock(&watch_mutex);
    return error;
}
