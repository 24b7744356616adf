/* The link by itself: accesses, batches, descriptors, hostile bytes, the log. */
#include <sys/resource.h>
#include <time.h>

#include "fake.h"

static void test_accesses(void)
{
    served s;
    serve_start(&s);
    uint32_t value = 0x12345678, back = 0;
    CHECK(access_once(s.client, WRITE, 0, 8, &value, 4) == 0);
    CHECK(access_once(s.client, READ, 0, 8, &back, 4) == 0 && back == value);
    CHECK(access_once(s.client, READ, 0, 256, &back, 0) == 0);
    CHECK(access_once(s.client, READ, 0, 253, &back, 4) == EINVAL);
    CHECK(access_once(s.client, READ, 0, UINT64_MAX, &back, 4) == EINVAL);
    CHECK(access_once(s.client, READ, 3, 0, &back, 4) == EINVAL);  /* no such region here */
    CHECK(access_once(s.client, READ, 77, 0, &back, 4) == EINVAL);
    CHECK(access_once(s.client, READ, UINT32_MAX, 0, &back, 4) == EINVAL);
    CHECK(access_once(s.client, WRITE, 6, 0, &value, 4) == EINVAL); /* read-only */
    CHECK(access_once(s.client, READ, 0, 0, &back, (1 << 20) + 1) == E2BIG);
    int reads = atomic_load(&fake_reads), writes = atomic_load(&fake_writes);
    /* Lengths that do not fit the command. */
    wire_header header;
    uint8_t payload[64] = {0};
    put(s.client, 1, READ, 0, payload, 15);
    CHECK(get(s.client, &header, payload, 64) == 0 && header.error == EINVAL);
    put(s.client, 1, READ, 0, payload, 17);
    CHECK(get(s.client, &header, payload, 64) == 0 && header.error == EINVAL);
    wire_access access = {0, 0, 9};
    memcpy(payload, &access, 16);
    put(s.client, 1, WRITE, 0, payload, 16 + 8);
    CHECK(get(s.client, &header, payload, 64) == 0 && header.error == EINVAL);
    put(s.client, 1, WRITE, 0, payload, 3);
    CHECK(get(s.client, &header, payload, 64) == 0 && header.error == EINVAL);
    CHECK(atomic_load(&fake_reads) == reads && atomic_load(&fake_writes) == writes);
    serve_end(&s);
    CHECK(s.event == UMDEV_LINK_CLOSED);
}

static void test_posted_batch(void)
{
    served s;
    serve_start(&s);
    enum { COUNT = 5000 };
    uint8_t batch[64 * 36];
    for (int i = 0; i < COUNT; i++) {
        wire_header header = {(uint16_t)i, WRITE, 36, NO_REPLY, 0};
        wire_access access = {(uint64_t)(i % 16) * 4, 0, 4};
        uint8_t *at = batch + (i % 64) * 36;
        memcpy(at, &header, 16);
        memcpy(at + 16, &access, 16);
        memcpy(at + 32, &i, 4);
        if (i % 64 == 63 || i == COUNT - 1)
            CHECK(send(s.client, batch, (size_t)(i % 64 + 1) * 36, 0) == (i % 64 + 1) * 36);
    }
    int last = 0;
    CHECK(access_once(s.client, READ, 0, (COUNT - 1) % 16 * 4, &last, 4) == 0 && last == COUNT - 1);
    CHECK(atomic_load(&fake_writes) == COUNT && atomic_load(&fake_posted) == COUNT);
    /* A posted write that is wrong is dropped without a word: the next reply belongs to the read. */
    wire_access wrong = {4096, 0, 4};
    uint8_t payload[20] = {0};
    memcpy(payload, &wrong, 16);
    put(s.client, 9, WRITE, NO_REPLY, payload, 20);
    CHECK(access_once(s.client, READ, 0, 0, &last, 4) == 0);
    CHECK(atomic_load(&fake_writes) == COUNT);
    serve_end(&s);
}

static void test_multi(void)
{
    served s;
    serve_start(&s);
    uint8_t payload[8 + 3 * 24] = {3};
    for (uint64_t i = 0; i < 3; i++) {
        wire_access access = {i * 8, 0, (uint32_t)(1 << i)};
        memcpy(payload + 8 + i * 24, &access, 16);
        memset(payload + 8 + i * 24 + 16, (int)i + 1, 8);
    }
    wire_header header;
    uint64_t done = 0;
    put(s.client, 1, MULTI, 0, payload, sizeof(payload));
    CHECK(get(s.client, &header, &done, 8) == 8 && done == 3 && header.error == 0);
    CHECK(fake_bytes[0] == 1 && fake_bytes[1] == 0 && fake_bytes[8] == 2 && fake_bytes[9] == 2 && fake_bytes[16] == 3);
    /* One bad entry: nothing is written. */
    memset(fake_bytes, 0, sizeof(fake_bytes));
    uint32_t nine = 9;
    memcpy(payload + 8 + 2 * 24 + 12, &nine, 4);
    put(s.client, 2, MULTI, 0, payload, sizeof(payload));
    CHECK(get(s.client, &header, &done, 8) == 0 && header.error == EINVAL && fake_bytes[0] == 0);
    uint64_t counts[] = {0, 2, 4, UINT64_MAX, (uint64_t)1 << 61};
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        memcpy(payload, &counts[i], 8);
        put(s.client, 3, MULTI, 0, payload, sizeof(payload));
        CHECK(get(s.client, &header, &done, 8) == 0 && header.error == EINVAL);
    }
    put(s.client, 4, MULTI, 0, payload, 7);
    CHECK(get(s.client, &header, &done, 8) == 0 && header.error == EINVAL);
    put(s.client, 4, MULTI, NO_REPLY, payload, 7);
    uint32_t back;
    CHECK(access_once(s.client, READ, 0, 0, &back, 4) == 0);
    serve_end(&s);
}

static void send_byte(int socket, uint8_t byte, int fd)
{
    struct iovec part = {&byte, 1};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes};
    message.msg_controllen = sizeof(control.bytes);
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof(int));
    CHECK(sendmsg(socket, &message, 0) == 1);
}

/* A, B+fd, C, D+2fd joined in the socket: each descriptor stays with its own message. */
static void test_descriptors(void)
{
    served s;
    serve_connect(&s);
    int fds[2] = {eventfd(0, 0), eventfd(0, 0)};
    uint8_t payload[32] = {0};
    put(s.client, 1, 2, 0, payload, 32);
    put_fds(s.client, 2, 2, payload, 32, fds, 1);
    put(s.client, 3, 2, 0, payload, 32);
    put_fds(s.client, 4, 2, payload, 32, fds, 2);
    put_fds(s.client, 5, READ, (wire_access[]){{0, 0, 4}}, 16, fds, 1); /* nobody takes these */
    put(s.client, 6, 2, 0, payload, 32);
    uint32_t expected[] = {0, 1, 0, 2, 0};
    uint16_t ids[] = {1, 2, 3, 4, 6};
    for (int i = 0; i < 5; i++) {
        umdev_link_message message;
        CHECK(umdev_link_run(s.link, &message) == UMDEV_LINK_MESSAGE);
        CHECK(message.id == ids[i] && message.fd_count == expected[i] && message.length == 32);
        for (uint32_t k = 0; k < message.fd_count; k++)
            CHECK(close(message.fds[k]) == 0);
    }
    close(fds[0]);
    close(fds[1]);
    /* Seventeen descriptors are more than we said we take. */
    int many[17];
    for (int i = 0; i < 17; i++)
        many[i] = eventfd(0, 0);
    put_fds(s.client, 7, 2, payload, 32, many, 17);
    umdev_link_message message;
    CHECK(umdev_link_run(s.link, &message) == UMDEV_LINK_BROKEN && message.error == EMSGSIZE);
    serve_end(&s);
    /* Nor does it help to send them one by one with the bytes of one message. */
    serve_connect(&s);
    for (int i = 0; i < 17; i++)
        send_byte(s.client, i == 4 ? 32 : 0, many[i]); /* the fifth byte begins the size */
    CHECK(umdev_link_run(s.link, &message) == UMDEV_LINK_BROKEN && message.error == EMSGSIZE);
    for (int i = 0; i < 17; i++)
        close(many[i]);
    serve_end(&s);
}

/* Descriptors that this process has no room for are not the client's mistake. */
static void test_no_descriptor_left(void)
{
    served s;
    serve_connect(&s);
    uint8_t payload[32] = {0};
    int one = eventfd(0, 0);
    put_fds(s.client, 1, 2, payload, 32, &one, 1);
    struct rlimit limit, none;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    none = limit;
    none.rlim_cur = 0;
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    umdev_link_message message;
    int event = umdev_link_run(s.link, &message);
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK(event == UMDEV_LINK_BROKEN && message.error == EMFILE);
    close(one);
    serve_end(&s);
}

static void test_broken(void)
{
    uint32_t sizes[] = {0, 15, UMDEV_LINK_MAX_MESSAGE + 1, UINT32_MAX};
    for (int i = 0; i < 5; i++) {
        served s;
        serve_start(&s);
        wire_header header = {1, READ, i < 4 ? sizes[i] : 32, i < 4 ? 0 : 2, 0};
        CHECK(send(s.client, &header, sizeof(header), 0) == sizeof(header));
        wait_until(&s.ended, 1);
        CHECK(s.event == UMDEV_LINK_BROKEN);
        serve_end(&s);
    }
    /* An end in the middle of a message, and replies to nothing. */
    served s;
    serve_start(&s);
    put(s.client, 1, DMA_READ, REPLY, NULL, 0);
    uint32_t back;
    CHECK(access_once(s.client, READ, 0, 0, &back, 4) == 0);
    CHECK(send(s.client, "half a header", 13, 0) == 13);
    serve_end(&s);
    CHECK(s.event == UMDEV_LINK_CLOSED);
}

static void *post_for_ever(void *context)
{
    uint8_t message[36];
    memcpy(message, &(wire_header){0, WRITE, 36, NO_REPLY, 0}, 16);
    memcpy(message + 16, &(wire_access){4, 0, 4}, 16);
    memset(message + 32, 1, 4);
    while (send(*(int *)context, message, sizeof(message), MSG_NOSIGNAL) == (ssize_t)sizeof(message))
        ;
    return NULL;
}

/* A signal that finds C between two system calls wakes nobody: the loop comes back by itself, idle, busy, and while
 * another thread reads the socket. */
static void test_slices(void)
{
    served s;
    serve_connect(&s);
    umdev_link_message message;
    umdev_link_set_slice(s.link, 20);
    CHECK(umdev_link_run(s.link, &message) == UMDEV_LINK_INTERRUPTED); /* idle */
    s.link->receiving = 1; /* as if a transfer did */
    CHECK(umdev_link_run(s.link, &message) == UMDEV_LINK_INTERRUPTED);
    s.link->receiving = 0;
    pthread_t busy;
    CHECK(pthread_create(&busy, NULL, post_for_ever, &s.client) == 0);
    for (int i = 0; i < 3; i++)
        CHECK(umdev_link_run(s.link, &message) == UMDEV_LINK_INTERRUPTED);
    CHECK(atomic_load(&fake_writes) > 0);
    umdev_link_stop(s.link);
    pthread_join(busy, NULL);
    CHECK(umdev_link_run(s.link, &message) == UMDEV_LINK_STOPPED);
    serve_end(&s);
}

typedef struct slow_reader {
    int fd;
    size_t bytes;
} slow_reader;

/* Reads a little, again and again: each time there is room for a part of the message. */
static void *read_slowly(void *context)
{
    slow_reader *reader = context;
    char bytes[4096];
    ssize_t count;
    while ((count = read(reader->fd, bytes, sizeof(bytes))) > 0) {
        reader->bytes += (size_t)count;
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    }
    return NULL;
}

/* What a client leaves room for now and then does not buy it more time: the connection ends. */
static void test_a_slow_reader_has_one_deadline(void)
{
    served s;
    serve_connect(&s);
    s.link->send_timeout_ms = 200;
    uint8_t *message = calloc(1, UMDEV_LINK_MAX_MESSAGE); /* takes the reader five seconds at least */
    slow_reader reader = {.fd = s.client};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, read_slowly, &reader) == 0);
    CHECK(umdev_link_send(s.link, message, UMDEV_LINK_MAX_MESSAGE, NULL, 0) == -ETIMEDOUT);
    CHECK(umdev_link_send(s.link, message, LINK_HEADER, NULL, 0) == -ENOTCONN);
    pthread_join(thread, NULL);
    CHECK(reader.bytes > 0 && reader.bytes < UMDEV_LINK_MAX_MESSAGE);
    free(message);
    serve_end(&s);
}

static size_t read_all(int fd, char *text, size_t room)
{
    size_t length = 0;
    ssize_t count;
    while ((count = read(fd, text + length, room - 1 - length)) > 0)
        length += (size_t)count;
    text[length] = 0;
    return length;
}

static void test_log(void)
{
    served s;
    serve_connect(&s);
    char text[4096] = "";
    int ends[2];
    CHECK(pipe(ends) == 0);
    CHECK(umdev_link_set_log(s.link, ends[1]) == 0);
    close(ends[1]);
    wire_access read = {4, 0, 4};
    put(s.client, 1, READ, 0, &read, 16);
    uint8_t write[40] = {0};
    memcpy(write, (wire_access[]){{0, 0, 24}}, 16);
    put(s.client, 2, WRITE, NO_REPLY, write, 40);
    put(s.client, 3, READ, 0, (wire_access[]){{0, 5, 4}}, 16);
    put(s.client, 4, 99, 0, NULL, 0);
    umdev_link_message message;
    CHECK(umdev_link_run(s.link, &message) == UMDEV_LINK_MESSAGE);
    umdev_link_log(s.link, "control");
    serve_end(&s);
    CHECK(read_all(ends[0], text, sizeof(text)));
    CHECK(strcmp(text, "REGION_READ id=1 region=0 offset=0x4 count=4 data=00000000\n"
                       "REGION_WRITE id=2 region=0 offset=0x0 count=24 "
                       "data=00000000000000000000000000000000... no-reply\n"
                       "REGION_READ id=3 region=5 offset=0x0 count=4 error=22\n"
                       "control\n") == 0);
    close(ends[0]);
}

int main(void)
{
    test_accesses();
    test_posted_batch();
    test_multi();
    test_descriptors();
    test_no_descriptor_left();
    test_broken();
    test_slices();
    test_a_slow_reader_has_one_deadline();
    test_log();
    test_transfers();
    puts("ok");
    return 0;
}
