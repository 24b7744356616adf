/* No client can hold up who signals its eventfd: not with a full counter, from many threads, after a fork, or where the
 * kernel takes no asynchronous requests. */
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "umdev.h"

#include "irq_decls.h"
#include "check.h"

enum { THREADS = 4, SIGNALS = 2000 };

/* Whether this kernel, and what confines this process, let it have an asynchronous context. */
static int asynchronous(void)
{
    aio_context_t context = 0;
    if (syscall(SYS_io_setup, 1L, &context))
        return 0;
    syscall(SYS_io_destroy, context);
    return 1;
}

static int new_event(void)
{
    int fd = eventfd(0, EFD_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

static uint64_t take(int fd)
{
    uint64_t count = 0;
    CHECK(read(fd, &count, sizeof count) == sizeof count);
    return count;
}

/* What is left of a counter into which no write fits, after a signal. A write that waits would leave it as it was: only
 * the kernel's own signal can take the last step. */
static uint64_t full_and_signalled(umdev_irq *irq, int fd)
{
    CHECK(eventfd_write(fd, UINT64_MAX - 1) == 0);
    CHECK(umdev_irq_notify(irq, UMDEV_IRQ_ERR) == 0);
    return take(fd);
}

static void test_full(void)
{
    umdev_irq *irq = umdev_irq_new(0, 0, 0);
    int fd = new_event();
    uint64_t after = asynchronous() ? UINT64_MAX : UINT64_MAX - 1;

    CHECK(umdev_irq_connect(irq, UMDEV_IRQ_ERR, 0, fd) == 0);
    CHECK(full_and_signalled(irq, fd) == after);
    CHECK(umdev_irq_notify(irq, UMDEV_IRQ_ERR) == 0 && take(fd) == 1);
    /* The flag is the client's, whenever it likes. */
    CHECK(fcntl(fd, F_SETFL, O_NONBLOCK) == 0 && full_and_signalled(irq, fd) == after);
    CHECK(fcntl(fd, F_SETFL, 0) == 0 && full_and_signalled(irq, fd) == after);
    umdev_irq_free(irq);
    close(fd);
}

static void *signal_often(void *irq)
{
    for (int i = 0; i < SIGNALS; i++)
        CHECK(umdev_irq_notify(irq, UMDEV_IRQ_ERR) == 0);
    return NULL;
}

/* Each device has its own lock, and all share the kernel's ring of completions: none is lost when it is full. */
static void test_each_signal_counts(void)
{
    umdev_irq *irqs[THREADS];
    pthread_t threads[THREADS];
    int fds[THREADS];

    for (int i = 0; i < THREADS; i++) {
        irqs[i] = umdev_irq_new(0, 0, 0);
        fds[i] = new_event();
        CHECK(umdev_irq_connect(irqs[i], UMDEV_IRQ_ERR, 0, fds[i]) == 0);
        CHECK(pthread_create(&threads[i], NULL, signal_often, irqs[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        CHECK(take(fds[i]) == SIGNALS);
        umdev_irq_free(irqs[i]);
        close(fds[i]);
    }
}

/* As containers and services are confined. */
static void refuse_asynchronous(void)
{
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof rules / sizeof rules[0], rules};

    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

/* In a child: what was connected before still goes out, and what it connects itself. */
static void in_child(umdev_irq *old, int old_fd, int refused)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        if (refused)
            refuse_asynchronous();
        uint64_t after = asynchronous() ? UINT64_MAX : UINT64_MAX - 1;
        CHECK(!refused || after == UINT64_MAX - 1);
        CHECK(umdev_irq_notify(old, UMDEV_IRQ_ERR) == 0 && take(old_fd) == 1);
        umdev_irq *irq = umdev_irq_new(0, 0, 0);
        int fd = new_event();
        CHECK(umdev_irq_connect(irq, UMDEV_IRQ_ERR, 0, fd) == 0);
        CHECK(umdev_irq_notify(irq, UMDEV_IRQ_ERR) == 0 && take(fd) == 1);
        CHECK(full_and_signalled(irq, fd) == after);
        CHECK(full_and_signalled(old, old_fd) == after);
        _exit(0);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void test_children(void)
{
    umdev_irq *irq = umdev_irq_new(0, 0, 0);
    int fd = new_event();

    CHECK(umdev_irq_connect(irq, UMDEV_IRQ_ERR, 0, fd) == 0);
    in_child(irq, fd, 0);
    in_child(irq, fd, 1);
    /* The parent's is as it was. */
    CHECK(full_and_signalled(irq, fd) == (asynchronous() ? UINT64_MAX : UINT64_MAX - 1));
    umdev_irq_free(irq);
    close(fd);
}

int main(void)
{
    test_full();
    test_children();
    test_each_signal_counts();
    puts("irq_eventfd: ok");
    return 0;
}
