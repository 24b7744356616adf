/* DMA by message: one request under way at a time.
 *
 * Whoever waits for a reply may take over receiving: the loop thread may be busy in a handler meanwhile, with the reply
 * unread in the socket. Messages that come in between stay in the buffer for the loop thread.
 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "link.h"

typedef struct deadline {
    struct timespec at;
} deadline;

static deadline deadline_after(uint32_t milliseconds)
{
    deadline end;
    clock_gettime(CLOCK_MONOTONIC, &end.at);
    end.at.tv_sec += milliseconds / 1000;
    end.at.tv_nsec += (long)(milliseconds % 1000) * 1000000;
    if (end.at.tv_nsec >= 1000000000) {
        end.at.tv_sec++;
        end.at.tv_nsec -= 1000000000;
    }
    return end;
}

static int deadline_left_ms(const deadline *end)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long long left = (long long)(end->at.tv_sec - now.tv_sec) * 1000 + (end->at.tv_nsec - now.tv_nsec) / 1000000;
    return left < 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left;
}

static int wait_change(umdev_link *link, const deadline *end)
{
    link->waiting++;
    int failed = pthread_cond_timedwait(&link->changed, &link->mutex, &end->at);
    link->waiting--;
    return -failed;
}

/* The client's errno is data: only what could be an errno is believed, and what is ours to say is not. */
static int peer_error(uint32_t error)
{
    if (error == ECANCELED || error == EDEADLK)
        return -EIO;
    return error > 0 && error < 4096 ? -(int)error : -EIO;
}

void link_reply(umdev_link *link, const uint8_t *frame, const link_header *header)
{
    link_request *request = &link->request;
    if (!request->busy || request->answered || header->id != request->id || header->command != request->command)
        return; /* late: its request has timed out */
    request->reply_size = header->size;
    request->answered = 1;
    if (header->flags & LINK_FLAG_ERROR) {
        request->result = peer_error(header->error);
        return;
    }
    request->result = 0;
    if (!request->into)
        return;
    uint64_t address_and_count = 16;
    size_t data;
    if (header->size == LINK_HEADER + 12 + request->count)
        data = LINK_HEADER + 12; /* a packed 32-bit count */
    else if (header->size == LINK_HEADER + address_and_count + request->count)
        data = link->layout == UMDEV_LINK_QEMU ? LINK_HEADER + 12 : LINK_HEADER + 16;
    else {
        request->result = -EPROTO;
        return;
    }
    memcpy(request->into, frame + data, request->count);
}

/* With the mutex: until the request is answered. */
static int wait_reply(umdev_link *link, const deadline *end)
{
    link_request *request = &link->request;
    while (!request->answered) {
        if (link->state != LINK_OPEN || atomic_load_explicit(&link->stopping, memory_order_relaxed))
            return -ENOTCONN;
        if (link->cancelled)
            return -ECANCELED;
        int left = deadline_left_ms(end);
        if (left == 0)
            return -ETIMEDOUT;
        if (link->receiving) {
            wait_change(link, end);
            continue;
        }
        if (link->tail == LINK_CAPACITY || link->fd_count > LINK_MAX_QUEUED_FDS - UMDEV_LINK_MAX_FDS) {
            /* The loop thread makes room when it is not the one that waits here. */
            if (wait_change(link, end) == -ETIMEDOUT)
                return -ENOBUFS;
            continue;
        }
        link_received received = {0};
        struct pollfd ready[] = {{link->fd, POLLIN, 0}, {link->wake, POLLIN, 0}};
        link->receiving = 1;
        pthread_mutex_unlock(&link->mutex);
        int status = poll(ready, 2, left) < 0 ? -errno
                     : ready[0].revents       ? link_receive(link, MSG_DONTWAIT, &received)
                                              : -EAGAIN;
        pthread_mutex_lock(&link->mutex);
        link_absorb(link, status, &received);
    }
    return request->result;
}

/* One request and its reply. The caller owns the request. */
static int exchange(umdev_link *link, uint16_t command, uint64_t iova, uint8_t *bytes, uint32_t count,
                    const deadline *end)
{
    uint8_t message[LINK_HEADER + 16 + LINK_DMA_CHUNK];
    int write = command == LINK_COMMAND_DMA_WRITE;
    uint64_t wide = count;
    link_header header = {0};
    header.command = command;
    header.size = (uint32_t)(LINK_HEADER + 16 + (write ? count : 0));
    memcpy(message + LINK_HEADER, &iova, 8);
    memcpy(message + LINK_HEADER + 8, &wide, 8);
    pthread_mutex_lock(&link->mutex);
    if (write && count) {
        size_t data = link->layout == UMDEV_LINK_QEMU ? LINK_HEADER + 12 : LINK_HEADER + 16;
        memset(message + header.size - 4, 0, 4); /* QEMU's layout leaves four bytes at the end */
        memcpy(message + data, bytes, count);
    }
    header.id = link->next_id++;
    link->request.id = header.id;
    link->request.command = command;
    link->request.into = write ? NULL : bytes;
    link->request.count = count;
    link->request.answered = 0;
    pthread_mutex_unlock(&link->mutex);
    memcpy(message, &header, sizeof(header));
    int status = link_send_bytes(link, message, header.size, NULL, 0);
    pthread_mutex_lock(&link->mutex);
    if (status == 0)
        status = wait_reply(link, end);
    link->request.answered = 1; /* what comes now is late */
    link->request.into = NULL;
    pthread_mutex_unlock(&link->mutex);
    if (atomic_load_explicit(&link->logging, memory_order_relaxed))
        link_log_transfer(link, &header, iova, count, status);
    return status;
}

/* A write of nothing is harmless and tells the layouts apart: QEMU 10.1 answers with a bare header. */
static int find_layout(umdev_link *link, uint64_t iova, const deadline *end)
{
    uint8_t nothing = 0;
    int status = exchange(link, LINK_COMMAND_DMA_WRITE, iova, &nothing, 0, end);
    if (status == -ENOTCONN || status == -ETIMEDOUT || status == -ENOBUFS || status == -ECANCELED)
        return status;
    pthread_mutex_lock(&link->mutex);
    int bare = status == 0 && link->request.reply_size == LINK_HEADER;
    link->layout = bare ? UMDEV_LINK_QEMU : UMDEV_LINK_SPECIFIED;
    pthread_mutex_unlock(&link->mutex);
    return 0;
}

/* With the mutex. */
static int own_request(umdev_link *link, const deadline *end)
{
    while (link->state == LINK_OPEN && link->request.busy && !link->cancelled)
        if (wait_change(link, end) == -ETIMEDOUT)
            return -ETIMEDOUT;
    if (link->state != LINK_OPEN)
        return -ENOTCONN;
    if (link->cancelled)
        return -ECANCELED;
    link->request.busy = 1;
    return 0;
}

int umdev_link_transfer(void *context, uint64_t iova, void *bytes, uint64_t length, int write)
{
    umdev_link *link = context;
    uint16_t command = write ? LINK_COMMAND_DMA_WRITE : LINK_COMMAND_DMA_READ;
    /* relaxed: only this thread ever stores its own identity */
    if (atomic_load_explicit(&link->loop, memory_order_relaxed) == link_self())
        return -EDEADLK;
    pthread_mutex_lock(&link->mutex);
    deadline end = deadline_after(link->reply_timeout_ms);
    link->users++;
    int status = own_request(link, &end);
    int owned = status == 0;
    int layout = link->layout;
    uint32_t limit = link->max_transfer < LINK_DMA_CHUNK ? link->max_transfer : LINK_DMA_CHUNK;
    pthread_mutex_unlock(&link->mutex);
    if (status == 0 && layout == UMDEV_LINK_UNKNOWN)
        status = find_layout(link, iova, &end);
    for (uint64_t done = 0; status == 0 && done < length;) {
        uint32_t count = length - done < limit ? (uint32_t)(length - done) : limit;
        end = deadline_after(link->reply_timeout_ms);
        status = exchange(link, command, iova + done, (uint8_t *)bytes + done, count, &end);
        done += count;
    }
    pthread_mutex_lock(&link->mutex);
    if (owned)
        link->request.busy = 0;
    link->users--;
    link_wake(link);
    pthread_mutex_unlock(&link->mutex);
    return status;
}

void umdev_link_cancel(void *context, int cancelled)
{
    umdev_link *link = context;
    uint64_t count = 1;
    pthread_mutex_lock(&link->mutex);
    link->cancelled = cancelled;
    /* It can't fail: the counter is 0 or small, and nobody else reads it. */
    ssize_t done = cancelled ? write(link->wake, &count, sizeof(count)) : read(link->wake, &count, sizeof(count));
    (void)done;
    link_wake(link);
    pthread_mutex_unlock(&link->mutex);
}

uintptr_t umdev_link_transfer_address(void)
{
    return (uintptr_t)umdev_link_transfer;
}

uintptr_t umdev_link_cancel_address(void)
{
    return (uintptr_t)umdev_link_cancel;
}

int umdev_link_layout(umdev_link *link)
{
    pthread_mutex_lock(&link->mutex);
    int layout = link->layout;
    pthread_mutex_unlock(&link->mutex);
    return layout;
}
