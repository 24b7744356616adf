/* protect: a store waits here until the device's process has been told of it. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "remote_decls.h"

static int64_t now_ms(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* 1: answered. 0: the device has gone. -1: it took too long. */
static int wait_answer(const umdev_kvm_remote *remote, uint64_t address)
{
    struct pollfd ready[2] = {{.fd = remote->events, .events = POLLIN}, {.fd = remote->cancel, .events = POLLIN}};
    int64_t end = now_ms() + remote->patience;
    for (;;) {
        int64_t left = end - now_ms();
        int count = poll(ready, 2, left > 0 ? (int)left : 0);
        if (count == 0)
            return -1;
        if (count < 0 && errno != EINTR)
            return 0;
        if (count < 0)
            continue;
        if (ready[1].revents)
            return 0;
        uint64_t answer;
        ssize_t bytes = recv(remote->events, &answer, sizeof(answer), MSG_DONTWAIT);
        if (bytes == (ssize_t)sizeof(answer) && answer == address)
            return 1;
        if (bytes == 0 || (bytes < 0 && errno != EAGAIN && errno != EINTR))
            return 0;
    }
}

void umdev_kvm_remote_notify(void *context, uint64_t address)
{
    umdev_kvm_remote *remote = context;
    if (remote->silent)
        return;
    int answered = 0;
    if (send(remote->events, &address, sizeof(address), MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)sizeof(address))
        answered = wait_answer(remote, address);
    remote->told++;
    if (answered == 1)
        return;
    /* The store lands. What the device believes about its pages may be wrong from now on, so its connection ends. */
    remote->silent = 1;
    if (answered < 0)
        shutdown(remote->control, SHUT_RDWR);
}
