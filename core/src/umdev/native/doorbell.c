/* Doorbells: eventfds whose signal is a write to a register. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include "umdev.h"

#include "device_decls.h"
#include "doorbell_decls.h"
#include "signals_internal.h"

enum { EVENTS = 16 };
#define WAKE UINT64_MAX

typedef struct doorbell {
    uint64_t offset;
    uint64_t value;
    uint32_t region;
    uint32_t width;
    int fd;
} doorbell;

struct umdev_doorbells {
    umdev_device *device;
    int epoll_fd;
    int wake_fd; /* nobody else has it, so that no peer can keep `run` from ending */
    atomic_int stopping;
    pthread_mutex_t mutex; /* guards what follows. Doorbells are added, never removed: an event's number stays right. */
    doorbell *bells;
    uint32_t count;
    uint32_t capacity;
};

static int watch(umdev_doorbells *doorbells, int fd, uint32_t events, uint64_t key)
{
    struct epoll_event event = {.events = events, .data.u64 = key};
    return epoll_ctl(doorbells->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

umdev_doorbells *umdev_doorbells_new(umdev_device *device, int *error)
{
    umdev_doorbells *doorbells = calloc(1, sizeof *doorbells);
    if (!doorbells) {
        *error = -ENOMEM;
        return NULL;
    }
    *error = 0;
    doorbells->device = device;
    pthread_mutex_init(&doorbells->mutex, NULL);
    doorbells->wake_fd = -1;
    doorbells->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (doorbells->epoll_fd >= 0)
        doorbells->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (doorbells->wake_fd < 0)
        *error = -errno;
    else
        *error = watch(doorbells, doorbells->wake_fd, EPOLLIN, WAKE);
    if (*error) {
        umdev_doorbells_free(doorbells);
        return NULL;
    }
    return doorbells;
}

void umdev_doorbells_free(umdev_doorbells *doorbells)
{
    if (!doorbells)
        return;
    /* The set first: what peers hold of the eventfds keeps them in it no longer. */
    if (doorbells->epoll_fd >= 0)
        close(doorbells->epoll_fd);
    if (doorbells->wake_fd >= 0)
        close(doorbells->wake_fd);
    for (uint32_t i = 0; i < doorbells->count; i++)
        close(doorbells->bells[i].fd);
    free(doorbells->bells);
    pthread_mutex_destroy(&doorbells->mutex);
    free(doorbells);
}

/* With the mutex. */
static int append(umdev_doorbells *doorbells, const doorbell *bell)
{
    if (doorbells->count == doorbells->capacity) {
        uint32_t capacity = doorbells->capacity ? 2 * doorbells->capacity : 16;
        doorbell *grown = realloc(doorbells->bells, capacity * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        doorbells->bells = grown;
        doorbells->capacity = capacity;
    }
    doorbells->bells[doorbells->count] = *bell;
    /* Edge-triggered: a counter that could not be taken down must not keep the loop busy. */
    int error = watch(doorbells, bell->fd, EPOLLIN | EPOLLET, doorbells->count);
    if (!error)
        doorbells->count++;
    return error;
}

int umdev_doorbells_add(umdev_doorbells *doorbells, uint32_t region, uint64_t offset, uint32_t width, uint64_t value)
{
    if (width == 0 || width > 8 || (width & (width - 1)))
        return -EINVAL;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return -errno;
    doorbell bell = {.offset = offset, .value = value, .region = region, .width = width, .fd = fd};
    pthread_mutex_lock(&doorbells->mutex);
    int error = append(doorbells, &bell);
    pthread_mutex_unlock(&doorbells->mutex);
    if (error)
        close(fd);
    return error ? error : fd;
}

/* Takes the counter down; false: another holder was faster, and had the signal. RWF_NOWAIT, because a peer may clear
 * O_NONBLOCK, which is the open file's and not ours alone; a kernel without it for eventfds leaves the counter. */
static bool consume(int fd)
{
    uint64_t count;
    struct iovec into = {.iov_base = &count, .iov_len = sizeof count};
    return preadv2(fd, &into, 1, -1, RWF_NOWAIT) >= 0 || errno != EAGAIN;
}

/* First the signal is taken, then its write begins: one that comes in between brings another write. */
static void ring(umdev_doorbells *doorbells, uint64_t number)
{
    pthread_mutex_lock(&doorbells->mutex);
    doorbell bell = doorbells->bells[number];
    pthread_mutex_unlock(&doorbells->mutex);
    if (consume(bell.fd))
        umdev_device_access(doorbells->device, bell.region, bell.offset, &bell.value, bell.width,
                            UMDEV_WRITE | UMDEV_POSTED, 0, 0);
}

static int loop(umdev_doorbells *doorbells)
{
    struct epoll_event events[EVENTS];
    while (!atomic_load(&doorbells->stopping)) {
        int count = epoll_wait(doorbells->epoll_fd, events, EVENTS, -1);
        if (count < 0 && errno != EINTR)
            return -errno;
        for (int i = 0; i < count && !atomic_load(&doorbells->stopping); i++) {
            eventfd_t woken;
            if (events[i].data.u64 != WAKE)
                ring(doorbells, events[i].data.u64);
            else /* by a child that was forked: it stopped its copy, and the counter is everybody's */
                eventfd_read(doorbells->wake_fd, &woken);
        }
    }
    return 0;
}

int umdev_doorbells_run(umdev_doorbells *doorbells)
{
    sigset_t before;
    umdev_signals_block(&before);
    int error = loop(doorbells);
    umdev_signals_restore(&before);
    return error;
}

void umdev_doorbells_stop(umdev_doorbells *doorbells)
{
    atomic_store(&doorbells->stopping, 1);
    eventfd_write(doorbells->wake_fd, 1);
}
