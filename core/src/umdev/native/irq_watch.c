/* One thread per process waits for the eventfds by which clients unmask INTx (VFIO: DATA_EVENTFD with ACTION_UNMASK). */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <unistd.h>

#include "irq_private.h"

typedef struct irq_watch {
    struct irq_watch *next;
    umdev_irq *irq;
    uint64_t id; /* what epoll returns: never used twice, so an event of a closed watch finds nothing */
    int fd;
} irq_watch;

static pthread_mutex_t watch_mutex = PTHREAD_MUTEX_INITIALIZER; /* guards all below; taken before an irq's mutex */
static irq_watch *watches;
static uint64_t last_id;
static int epoll_fd = -1;

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
static umdev_irq *take(uint64_t id)
{
    umdev_irq *irq = NULL;

    pthread_mutex_lock(&watch_mutex);
    for (irq_watch *watch = watches; watch && !irq; watch = watch->next)
        if (watch->id == id) {
            consume(watch->fd);
            irq = watch->irq;
            atomic_fetch_add_explicit(&irq->references, 1, memory_order_relaxed);
        }
    pthread_mutex_unlock(&watch_mutex);
    return irq;
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
        }
    }
    return NULL;
}

/* The epoll descriptor and its thread, made at the first use and kept. 0 or a negative errno. */
static int start(void)
{
    pthread_t thread;

    if (epoll_fd >= 0)
        return 0;
    int fd = epoll_create1(EPOLL_CLOEXEC);
    if (fd < 0)
        return -errno;
    epoll_fd = fd;
    /* The program's signals are for its own threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread, NULL, watch_loop, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        close(fd);
        epoll_fd = -1;
        return -error;
    }
    pthread_detach(thread);
    return 0;
}

static void remove_watch(const umdev_irq *irq)
{
    for (irq_watch **link = &watches; *link; link = &(*link)->next)
        if ((*link)->irq == irq) {
            irq_watch *gone = *link;
            *link = gone->next;
            /* Closing is not enough: the client's descriptor keeps the eventfd in the epoll set. */
            epoll_ctl(epoll_fd, EPOLL_CTL_DEL, gone->fd, NULL);
            close(gone->fd);
            free(gone);
            return;
        }
}

static int add_watch(umdev_irq *irq, int fd)
{
    int error = start();
    if (error)
        return error;
    irq_watch *watch = malloc(sizeof *watch);
    if (!watch)
        return -ENOMEM;
    *watch = (irq_watch){.next = watches, .irq = irq, .id = ++last_id, .fd = fd};
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = watch->id};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event)) {
        error = -errno;
        free(watch);
        return error;
    }
    watches = watch;
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
