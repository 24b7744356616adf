/* Sockets: the echo floor, and the client loops that measure it and a vfio-user server alike. */
#include "umdev.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "bench_decls.h"
#include "clock.h"

enum { LARGEST_MESSAGE = 4096 };

/* 0, -EPIPE when the peer has closed, or another negative errno. */
static int receive_all(int socket, uint8_t *bytes, uint32_t length)
{
    uint32_t done = 0;

    while (done < length) {
        ssize_t got = recv(socket, bytes + done, length - done, 0);

        if (got == 0)
            return -EPIPE;
        if (got < 0 && errno != EINTR)
            return -errno;
        if (got > 0)
            done += (uint32_t)got;
    }
    return 0;
}

/* Messages are far smaller than a socket buffer, so a stream socket takes them whole or not at all. */
static int send_whole(int socket, const void *bytes, uint32_t length)
{
    ssize_t sent;

    do
        sent = send(socket, bytes, length, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0)
        return -errno;
    return (uint32_t)sent == length ? 0 : -EIO;
}

int umdev_bench_echo_serve(int socket, uint32_t request, uint32_t reply)
{
    uint8_t bytes[LARGEST_MESSAGE] = {0};
    int result;

    if (request > sizeof(bytes) || reply > sizeof(bytes))
        return -EINVAL;
    do {
        result = receive_all(socket, bytes, request);
        if (result == 0)
            result = send_whole(socket, bytes, reply);
    } while (result == 0);
    return result == -EPIPE ? 0 : result;
}

static int round_trip(int socket, const void *request, uint32_t request_length, uint8_t *reply, uint32_t reply_length)
{
    int result = send_whole(socket, request, request_length);

    return result ? result : receive_all(socket, reply, reply_length);
}

int umdev_bench_round_trips(int socket, const void *request, uint32_t request_length, uint32_t reply_length,
                            uint32_t count, uint64_t *times)
{
    uint8_t reply[LARGEST_MESSAGE];

    if (reply_length > sizeof(reply))
        return -EINVAL;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t start = umdev_bench_now();
        int result = round_trip(socket, request, request_length, reply, reply_length);

        if (result)
            return result;
        times[i] = umdev_bench_now() - start;
    }
    return 0;
}

int umdev_bench_posts(int socket, const void *post, uint32_t post_length, const void *request,
                      uint32_t request_length, uint32_t reply_length, uint32_t batch, uint32_t count, uint64_t *times)
{
    uint8_t reply[LARGEST_MESSAGE];

    if (reply_length > sizeof(reply))
        return -EINVAL;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t start = umdev_bench_now();
        int result = 0;

        for (uint32_t j = 0; j < batch && result == 0; j++)
            result = send_whole(socket, post, post_length);
        if (result == 0)
            result = round_trip(socket, request, request_length, reply, reply_length);
        if (result)
            return result;
        times[i] = umdev_bench_now() - start;
    }
    return 0;
}
