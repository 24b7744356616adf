/* A link's life: made once per served device, connected once per client. */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "link.h"

enum {
    LINK_REPLY_SIZE = LINK_HEADER + 16 + UMDEV_LINK_MAX_TRANSFER,
    LINK_REPLY_TIMEOUT_MS = 5000
};

/* Pages of a mapping cost memory only once they are used, and can be given back. */
static uint8_t *map_buffer(size_t size)
{
    void *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return bytes == MAP_FAILED ? NULL : bytes;
}

/* The address of a thread-local variable: no system call, and unique while the thread lives. */
const void *link_self(void)
{
    static _Thread_local char identity;
    return &identity;
}

umdev_link *umdev_link_new(const umdev_api *api, umdev_device *device)
{
    if (!umdev_api_fits(api))
        return NULL;
    umdev_link *link = calloc(1, sizeof(*link));
    if (!link)
        return NULL;
    link->api = api;
    link->device = device;
    link->fd = -1;
    link->reply_timeout_ms = LINK_REPLY_TIMEOUT_MS;
    link->send_timeout_ms = LINK_SEND_TIMEOUT_MS;
    link->max_transfer = UMDEV_LINK_MAX_TRANSFER;
    link->buffer = map_buffer(LINK_CAPACITY);
    link->reply = map_buffer(LINK_REPLY_SIZE);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&link->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&link->mutex, NULL);
    pthread_mutex_init(&link->sending, NULL);
    pthread_mutex_init(&link->log_mutex, NULL);
    link->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!link->buffer || !link->reply || link->wake < 0) {
        umdev_link_free(link);
        return NULL;
    }
    return link;
}

void umdev_link_free(umdev_link *link)
{
    if (!link)
        return;
    umdev_link_disconnect(link);
    link_log_close(link);
    if (link->buffer)
        munmap(link->buffer, LINK_CAPACITY);
    if (link->reply)
        munmap(link->reply, LINK_REPLY_SIZE);
    if (link->wake >= 0)
        close(link->wake);
    pthread_cond_destroy(&link->changed);
    pthread_mutex_destroy(&link->mutex);
    pthread_mutex_destroy(&link->sending);
    pthread_mutex_destroy(&link->log_mutex);
    free(link);
}

int umdev_link_set_region(umdev_link *link, uint32_t index, uint64_t size, uint32_t flags)
{
    if (index >= UMDEV_REGION_COUNT)
        return -EINVAL;
    link->regions[index].size = size;
    link->regions[index].flags = flags;
    return 0;
}

int umdev_link_connect(umdev_link *link, int fd)
{
    pthread_mutex_lock(&link->mutex);
    int status = link->state == LINK_IDLE ? 0 : -EBUSY;
    if (status == 0) {
        link->fd = fd;
        link->state = LINK_OPEN;
        link->error = 0;
        link->head = link->scan = link->tail = link->current = 0;
        link->ready = 0;
        link->slice_ms = 0;
        link->layout = UMDEV_LINK_UNKNOWN;
        link->max_transfer = UMDEV_LINK_MAX_TRANSFER;
    }
    pthread_mutex_unlock(&link->mutex);
    return status;
}

void umdev_link_disconnect(umdev_link *link)
{
    pthread_mutex_lock(&link->mutex);
    if (link->state == LINK_IDLE) {
        pthread_mutex_unlock(&link->mutex);
        return;
    }
    if (link->state == LINK_OPEN)
        link->state = LINK_ENDED;
    shutdown(link->fd, SHUT_RDWR); /* wakes who receives or sends */
    pthread_cond_broadcast(&link->changed);
    while (link->users) {
        link->waiting++;
        pthread_cond_wait(&link->changed, &link->mutex);
        link->waiting--;
    }
    link_close_fds(link, 0, LINK_CAPACITY);
    close(link->fd);
    link->fd = -1;
    link->state = LINK_IDLE;
    pthread_mutex_unlock(&link->mutex);
    atomic_store(&link->loop, NULL);
    link_log_flush(link);
    /* A client that sent or read a lot leaves no memory behind. */
    madvise(link->buffer, LINK_CAPACITY, MADV_DONTNEED);
    madvise(link->reply, LINK_REPLY_SIZE, MADV_DONTNEED);
}

void umdev_link_set_ready(umdev_link *link, uint32_t max_transfer)
{
    pthread_mutex_lock(&link->mutex);
    link->ready = 1;
    link->max_transfer = max_transfer < 1 ? 1 : max_transfer;
    pthread_mutex_unlock(&link->mutex);
}

void umdev_link_set_slice(umdev_link *link, uint32_t milliseconds)
{
    struct timeval wait = {milliseconds / 1000, (suseconds_t)(milliseconds % 1000) * 1000};
    link->slice_ms = milliseconds;
    /* Ends the loop's read; who waits for DMA polls. It can't fail: this is a socket. */
    setsockopt(link->fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
}

void umdev_link_set_reply_timeout(umdev_link *link, uint32_t milliseconds)
{
    pthread_mutex_lock(&link->mutex);
    link->reply_timeout_ms = milliseconds;
    pthread_mutex_unlock(&link->mutex);
}

void umdev_link_stop(umdev_link *link)
{
    atomic_store(&link->stopping, 1);
    pthread_mutex_lock(&link->mutex);
    if (link->fd >= 0)
        shutdown(link->fd, SHUT_RDWR);
    pthread_cond_broadcast(&link->changed);
    pthread_mutex_unlock(&link->mutex);
}

static int64_t monotonic_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Return when there may be room, or a signal came; -ETIMEDOUT at `end`. */
static int wait_for_room(const umdev_link *link, int64_t end)
{
    struct pollfd out = {.fd = link->fd, .events = POLLOUT};
    int64_t left = end - monotonic_ms();
    if (left <= 0)
        return -ETIMEDOUT;
    poll(&out, 1, left > INT_MAX ? INT_MAX : (int)left);
    return 0;
}

/* A client that reads nothing, or a byte now and then, must not hold a thread, which may hold the device lock, for
 * long: the whole message has one deadline. SO_SNDTIMEO would begin anew with each part that goes out. */
int link_send_bytes(umdev_link *link, const uint8_t *bytes, size_t length, const int32_t *fds, uint32_t fd_count)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * UMDEV_LINK_MAX_FDS)];
        struct cmsghdr align;
    } control;
    size_t sent = 0;
    int status = 0;
    pthread_mutex_lock(&link->sending);
    int64_t end = monotonic_ms() + link->send_timeout_ms;
    while (status == 0 && sent < length) {
        ssize_t count;
        if (fd_count && sent == 0) {
            struct iovec vector = {(void *)(uintptr_t)bytes, length};
            struct msghdr message = {0};
            memset(&control, 0, sizeof(control));
            message.msg_iov = &vector;
            message.msg_iovlen = 1;
            message.msg_control = control.bytes;
            message.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
            struct cmsghdr *c = CMSG_FIRSTHDR(&message);
            c->cmsg_level = SOL_SOCKET;
            c->cmsg_type = SCM_RIGHTS;
            c->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
            memcpy(CMSG_DATA(c), fds, sizeof(int) * fd_count);
            count = sendmsg(link->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        } else {
            count = send(link->fd, bytes + sent, length - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        }
        if (count > 0)
            sent += (size_t)count;
        else if (errno == EAGAIN)
            status = wait_for_room(link, end);
        else if (errno != EINTR)
            status = errno == EPIPE || errno == ECONNRESET ? -ENOTCONN : -errno;
    }
    pthread_mutex_unlock(&link->sending);
    if (status < 0 && sent) /* half a message: nothing that follows could be understood */
        shutdown(link->fd, SHUT_RDWR);
    return status;
}

int umdev_link_send(umdev_link *link, const uint8_t *bytes, uint32_t length, const int32_t *fds, uint32_t fd_count)
{
    if (length < LINK_HEADER || length > UMDEV_LINK_MAX_MESSAGE || fd_count > UMDEV_LINK_MAX_FDS)
        return -EINVAL;
    pthread_mutex_lock(&link->mutex);
    int open = link->fd >= 0;
    pthread_mutex_unlock(&link->mutex);
    return open ? link_send_bytes(link, bytes, length, fds, fd_count) : -ENOTCONN;
}
