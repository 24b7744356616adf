/* The eventfds that interrupts go out by: taken from a client, and signalled without ever waiting for it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "irq_private.h"

/* A write to an eventfd waits while the counter is full, unless O_NONBLOCK is set; the flag belongs to the open file,
 * which the client shares, and pwritev2 refuses RWF_NOWAIT there. The kernel's own signal never waits and leaves a full
 * counter full (fs/eventfd.c, eventfd_signal_mask). It is sent for each asynchronous request that completes
 * (io_submit(2), IOCB_FLAG_RESFD), and a read of no bytes completes before io_submit returns (fs/aio.c). */
enum {
    SIGNALS_MAX = 64,  /* requests of the context, as fs.aio-nr counts them, and completions taken back at once */
    ATTEMPTS_MAX = 16, /* other threads may fill the room that one of them made */
};

static pthread_mutex_t setup_mutex = PTHREAD_MUTEX_INITIALIZER; /* a leaf; guards the two below */
static bool fork_handled;
static int nothing = -1;              /* what is read from; set before the context, kept */
static _Atomic aio_context_t context; /* one for the process, any thread may use it; 0: none */

static void before_fork(void)
{
    pthread_mutex_lock(&setup_mutex);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&setup_mutex);
}

/* A context stays with the address space that it was made in. The child makes its own when it connects a vector. */
static void after_fork_in_child(void)
{
    atomic_store_explicit(&context, 0, memory_order_relaxed);
    pthread_mutex_unlock(&setup_mutex);
}

/* Tried with each connection: what a full fs.aio-max-nr refuses may be granted later. */
static void set_up(void)
{
    if (atomic_load_explicit(&context, memory_order_relaxed))
        return;
    pthread_mutex_lock(&setup_mutex);
    if (!fork_handled)
        fork_handled = !pthread_atfork(before_fork, after_fork, after_fork_in_child);
    if (nothing < 0)
        nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    aio_context_t made = 0;
    if (fork_handled && nothing >= 0 && !atomic_load_explicit(&context, memory_order_relaxed) &&
        !syscall(SYS_io_setup, (long)SIGNALS_MAX, &made))
        atomic_store_explicit(&context, made, memory_order_release);
    pthread_mutex_unlock(&setup_mutex);
}

/* Whether the kernel has added 1 to the counter, or found it full. */
static bool signalled_by_kernel(int fd)
{
    aio_context_t own = atomic_load_explicit(&context, memory_order_acquire);
    if (!own)
        return false;
    struct iocb request = {.aio_lio_opcode = IOCB_CMD_PREAD,
                           .aio_fildes = (uint32_t)nothing,
                           .aio_flags = IOCB_FLAG_RESFD,
                           .aio_resfd = (uint32_t)fd};
    struct iocb *requests[] = {&request};
    for (int attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
        if (syscall(SYS_io_submit, own, 1L, requests) == 1)
            return true;
        if (errno != EAGAIN)
            return false;
        struct io_event done[SIGNALS_MAX];
        struct timespec now = {0};
        syscall(SYS_io_getevents, own, 0L, (long)SIGNALS_MAX, done, &now);
    }
    return false;
}

/* For where asynchronous requests are refused. Who fills its counter between the two calls makes the write wait until
 * somebody reads. */
static void write_if_room(int fd)
{
    const uint64_t one = 1;
    struct pollfd out = {.fd = fd, .events = POLLOUT};

    if (poll(&out, 1, 0) == 1 && (out.revents & POLLOUT)) {
        ssize_t written = write(fd, &one, sizeof one);
        (void)written; /* EAGAIN: the peer filled it just now */
    }
}

void umdev_eventfd_signal(int fd)
{
    if (!signalled_by_kernel(fd))
        write_if_room(fd);
}

/* The kernel names the descriptor's kind; anything else could block a write or end in a file. */
static bool is_eventfd(int fd)
{
    static const char kind[] = "anon_inode:[eventfd]";
    char path[32], target[sizeof kind + 1];

    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, target, sizeof target);
    return length == (ssize_t)sizeof kind - 1 && !memcmp(target, kind, sizeof kind - 1);
}

int umdev_eventfd_dup(int fd)
{
    /* The duplicate is what is checked: the caller's number may be closed and used again by another thread. */
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (copy < 0)
        return errno == EBADF ? -EINVAL : -errno;
    if (!is_eventfd(copy)) {
        close(copy);
        return -EINVAL;
    }
    set_up();
    return copy;
}
