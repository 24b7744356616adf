/* The message loop. */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <time.h>

#include "link.h"

static int outcome(umdev_link *link, umdev_link_message *message)
{
    if (atomic_load_explicit(&link->stopping, memory_order_relaxed))
        return UMDEV_LINK_STOPPED;
    if (link->state == LINK_BROKEN) {
        message->error = link->error;
        return UMDEV_LINK_BROKEN;
    }
    return link->state == LINK_OPEN ? 0 : UMDEV_LINK_CLOSED;
}

/* A clock that costs next to nothing and is some milliseconds late. */
static int64_t coarse_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* With the mutex: while another thread receives. No signal ends this. */
static int wait_changed(umdev_link *link, int64_t slice_end)
{
    struct timespec end = {slice_end / 1000, (long)(slice_end % 1000) * 1000000};
    link->waiting++;
    int result = link->slice_ms ? pthread_cond_timedwait(&link->changed, &link->mutex, &end)
                                : pthread_cond_wait(&link->changed, &link->mutex);
    link->waiting--;
    return result;
}

/* With the mutex: until a whole message is there. 0, or an umdev_link_event. */
static int next_message(umdev_link *link, umdev_link_message *message, int64_t slice_end)
{
    for (;;) {
        if (link->slice_ms && coarse_ms() >= slice_end)
            return UMDEV_LINK_INTERRUPTED;
        /* What came before the end is still served: a client may write and leave. */
        if (link->scan > link->head && !atomic_load_explicit(&link->stopping, memory_order_relaxed))
            return 0;
        int event = outcome(link, message);
        if (event)
            return event;
        if (link->receiving) {
            if (wait_changed(link, slice_end) == ETIMEDOUT)
                return UMDEV_LINK_INTERRUPTED;
            continue;
        }
        link_compact(link);
        link_wake(link);
        link_received received = {0};
        link->receiving = 1;
        pthread_mutex_unlock(&link->mutex);
        if (atomic_load_explicit(&link->logging, memory_order_relaxed))
            link_log_flush(link);
        /* After posted writes more are likely: let a client on this CPU send them, so that one read brings many. */
        if (link->posted)
            sched_yield();
        int status = link_receive(link, 0, &received);
        pthread_mutex_lock(&link->mutex);
        link_absorb(link, status, &received);
        if (status == -EINTR || status == -EAGAIN)
            return UMDEV_LINK_INTERRUPTED;
    }
}

static int hand_up(umdev_link *link, const link_header *header, umdev_link_message *message)
{
    message->id = header->id;
    message->command = header->command;
    message->flags = header->flags;
    message->length = header->size - LINK_HEADER;
    message->payload = link->buffer + link->head + LINK_HEADER;
    pthread_mutex_lock(&link->mutex);
    message->fd_count = link_take_fds(link, link->head, link->head + header->size, message->fds);
    if (message->fd_count)
        link_wake(link); /* there is room for more */
    pthread_mutex_unlock(&link->mutex);
    link->current = header->size;
    return UMDEV_LINK_MESSAGE;
}

int umdev_link_run(umdev_link *link, umdev_link_message *message)
{
    int64_t slice_end = link->slice_ms ? coarse_ms() + link->slice_ms : 0;
    memset(message, 0, sizeof(*message));
    atomic_store_explicit(&link->loop, link_self(), memory_order_relaxed);
    pthread_mutex_lock(&link->mutex);
    link->head += link->current;
    link->current = 0;
    for (;;) {
        int event = next_message(link, message, slice_end);
        size_t whole = link->scan; /* bytes before it stay where they are */
        uint32_t fd_count = link->fd_count;
        pthread_mutex_unlock(&link->mutex);
        if (event)
            return event;
        while (link->head < whole && !atomic_load_explicit(&link->stopping, memory_order_relaxed)) {
            const uint8_t *frame = link->buffer + link->head;
            link_header header;
            memcpy(&header, frame, sizeof(header));
            link->posted = header.flags & LINK_FLAG_NO_REPLY;
            int status = link_dispatch(link, frame, &header);
            if (status == 0)
                return hand_up(link, &header, message);
            if (fd_count) {
                /* Descriptors that came with an access are nobody's. */
                pthread_mutex_lock(&link->mutex);
                link_close_fds(link, link->head, link->head + header.size);
                pthread_mutex_unlock(&link->mutex);
            }
            link->head += header.size;
            if (status < 0) {
                pthread_mutex_lock(&link->mutex);
                if (link->state == LINK_OPEN)
                    link->state = LINK_ENDED;
                link_wake(link);
                int ended = outcome(link, message);
                pthread_mutex_unlock(&link->mutex);
                return ended;
            }
        }
        pthread_mutex_lock(&link->mutex);
    }
}
