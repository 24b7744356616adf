/* Receiving: one read brings many messages; descriptors stay with the message that they came with. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "link.h"

void link_wake(umdev_link *link)
{
    if (link->waiting)
        pthread_cond_broadcast(&link->changed);
}

void link_broken(umdev_link *link, int error)
{
    if (link->state == LINK_OPEN) {
        link->state = LINK_BROKEN;
        link->error = error;
    }
    link_wake(link);
}

int link_receive(umdev_link *link, int flags, link_received *received)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * UMDEV_LINK_MAX_FDS)];
        struct cmsghdr align;
    } control;
    struct iovec vector = {link->buffer + link->tail, LINK_CAPACITY - link->tail};
    struct msghdr message = {0};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof(control.bytes);
    received->fd_count = 0;
    received->count = recvmsg(link->fd, &message, flags | MSG_CMSG_CLOEXEC);
    if (received->count < 0)
        return -errno;
    if (message.msg_controllen) {
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
            if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
                continue;
            uint32_t count = (uint32_t)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            for (uint32_t i = 0; i < count; i++) {
                int fd;
                memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
                if (received->fd_count < UMDEV_LINK_MAX_FDS)
                    received->fds[received->fd_count++] = fd;
                else
                    close(fd);
            }
        }
    }
    if (!(message.msg_flags & MSG_CTRUNC))
        return 0;
    /* Some descriptors are lost, so the message has lost its meaning: there are more than we said we take, or this
     * process has no room for them (unix(7) tells the two apart by nothing else). */
    return received->fd_count == UMDEV_LINK_MAX_FDS ? -EMSGSIZE : -EMFILE;
}

void link_close_fds(umdev_link *link, size_t start, size_t end)
{
    int32_t fds[UMDEV_LINK_MAX_FDS];
    uint32_t count;
    while ((count = link_take_fds(link, start, end, fds)) != 0)
        for (uint32_t i = 0; i < count; i++)
            close(fds[i]);
}

uint32_t link_take_fds(umdev_link *link, size_t start, size_t end, int32_t *fds)
{
    uint32_t taken = 0, kept = 0;
    for (uint32_t i = 0; i < link->fd_count; i++) {
        if (link->fd_at[i] >= start && link->fd_at[i] < end && taken < UMDEV_LINK_MAX_FDS) {
            fds[taken++] = link->fds[i];
        } else {
            link->fds[kept] = link->fds[i];
            link->fd_at[kept++] = link->fd_at[i];
        }
    }
    link->fd_count = kept;
    return taken;
}

static uint32_t fds_within(const umdev_link *link, size_t start, size_t end)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < link->fd_count; i++)
        count += link->fd_at[i] >= start && link->fd_at[i] < end;
    return count;
}

/* Take [start, start + size) out of the bytes that nobody holds a pointer into. */
static void remove_bytes(umdev_link *link, size_t start, size_t size)
{
    memmove(link->buffer + start, link->buffer + start + size, link->tail - start - size);
    link->tail -= size;
    for (uint32_t i = 0; i < link->fd_count; i++)
        if (link->fd_at[i] >= start + size)
            link->fd_at[i] -= size;
}

void link_compact(umdev_link *link)
{
    size_t head = link->head;
    if (head == 0)
        return;
    memmove(link->buffer, link->buffer + head, link->tail - head);
    for (uint32_t i = 0; i < link->fd_count; i++)
        link->fd_at[i] -= head;
    link->head = 0;
    link->scan -= head;
    link->tail -= head;
}

static void find_messages(umdev_link *link)
{
    while (link->tail - link->scan >= LINK_HEADER) {
        const uint8_t *frame = link->buffer + link->scan;
        link_header header;
        memcpy(&header, frame, sizeof(header));
        uint32_t type = header.flags & LINK_FLAG_TYPE;
        if (header.size < LINK_HEADER || header.size > UMDEV_LINK_MAX_MESSAGE || type > LINK_FLAG_REPLY) {
            link_broken(link, EPROTO);
            return;
        }
        if (link->tail - link->scan < header.size)
            break;
        size_t end = link->scan + header.size;
        if (link->fd_count && fds_within(link, link->scan, end) > UMDEV_LINK_MAX_FDS) {
            link_broken(link, EMSGSIZE);
            return;
        }
        if (type == LINK_FLAG_REPLY) {
            link_reply(link, frame, &header);
            link_close_fds(link, link->scan, end);
            remove_bytes(link, link->scan, header.size);
        } else {
            link->scan = end;
        }
    }
    /* Of a message that is not whole yet. So a client that only ever begins messages can't fill the queue. */
    if (link->fd_count && fds_within(link, link->scan, SIZE_MAX) > UMDEV_LINK_MAX_FDS)
        link_broken(link, EMSGSIZE);
}

void link_absorb(umdev_link *link, int status, const link_received *received)
{
    link->receiving = 0;
    if (received->count > 0) {
        link->tail += (size_t)received->count;
        for (uint32_t i = 0; i < received->fd_count; i++) {
            if (status < 0) {
                close(received->fds[i]);
                continue;
            }
            link->fds[link->fd_count] = received->fds[i];
            link->fd_at[link->fd_count++] = link->tail - 1;
        }
    }
    if (status == -EINTR || status == -EAGAIN) {
        link_wake(link); /* someone else may go on receiving */
    } else if (received->count <= 0) {
        if (link->state == LINK_OPEN)
            link->state = LINK_ENDED;
        link_wake(link);
    } else if (status < 0) {
        link_broken(link, -status);
    } else {
        find_messages(link);
        link_wake(link);
    }
}
