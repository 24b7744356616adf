#include "fake.h"

uint8_t fake_bytes[256];
atomic_int fake_reads, fake_writes, fake_posted;
void (*fake_doorbell)(uint32_t flags);
pthread_mutex_t fake_lock = PTHREAD_MUTEX_INITIALIZER;

static int fake_access(umdev_device *device, uint32_t region, uint64_t offset, void *bytes, uint32_t length,
                       uint32_t flags, uint32_t initiator, uint32_t space)
{
    (void)device, (void)region, (void)initiator, (void)space;
    pthread_mutex_lock(&fake_lock);
    if (flags & UMDEV_WRITE) {
        memcpy(fake_bytes + offset, bytes, length);
        atomic_fetch_add(&fake_writes, 1);
        atomic_fetch_add(&fake_posted, flags & UMDEV_POSTED ? 1 : 0);
        if (offset == 0x80 && fake_doorbell)
            fake_doorbell(flags);
    } else {
        memcpy(bytes, fake_bytes + offset, length);
        atomic_fetch_add(&fake_reads, 1);
    }
    pthread_mutex_unlock(&fake_lock);
    return UMDEV_OK;
}

umdev_api fake_api = {.header = {sizeof(umdev_api), UMDEV_ABI_MAJOR, UMDEV_ABI_MINOR}, .access = fake_access};

static void *loop(void *context)
{
    served *s = context;
    umdev_link_message message;
    int event;
    while ((event = umdev_link_run(s->link, &message)) == UMDEV_LINK_MESSAGE || event == UMDEV_LINK_INTERRUPTED) {
        if (event == UMDEV_LINK_INTERRUPTED)
            continue;
        atomic_fetch_add(&s->control, 1);
        atomic_fetch_add(&s->fds, (int)message.fd_count);
        for (uint32_t i = 0; i < message.fd_count; i++)
            close(message.fds[i]);
        wire_header reply = {message.id, message.command, sizeof(reply), REPLY, 0};
        if (!(message.flags & NO_REPLY) && !atomic_load(&s->silent))
            umdev_link_send(s->link, (const uint8_t *)&reply, sizeof(reply), NULL, 0);
    }
    atomic_store(&s->event, event);
    atomic_store(&s->ended, 1);
    return NULL;
}

void serve_connect(served *s)
{
    int ends[2];
    memset(s, 0, sizeof(*s));
    s->link = umdev_link_new(&fake_api, NULL);
    CHECK(s->link);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    s->client = ends[0];
    CHECK(umdev_link_set_region(s->link, 0, 256, UMDEV_LINK_READABLE | UMDEV_LINK_WRITABLE) == 0);
    CHECK(umdev_link_set_region(s->link, 6, 256, UMDEV_LINK_READABLE) == 0);
    CHECK(umdev_link_set_region(s->link, 9, 256, UMDEV_LINK_READABLE) == -EINVAL);
    CHECK(umdev_link_connect(s->link, ends[1]) == 0);
    umdev_link_set_ready(s->link, 1 << 20);
    atomic_store(&fake_reads, 0);
    atomic_store(&fake_writes, 0);
    atomic_store(&fake_posted, 0);
    fake_doorbell = NULL;
    memset(fake_bytes, 0, sizeof(fake_bytes));
}

void serve_start(served *s)
{
    serve_connect(s);
    CHECK(pthread_create(&s->thread, NULL, loop, s) == 0);
}

void serve_end(served *s)
{
    close(s->client);
    if (s->thread)
        pthread_join(s->thread, NULL);
    umdev_link_disconnect(s->link);
    umdev_link_free(s->link);
}

void put(int fd, uint16_t id, uint16_t command, uint32_t flags, const void *payload, uint32_t length)
{
    wire_header header = {id, command, (uint32_t)sizeof(header) + length, flags, 0};
    uint8_t *message = malloc(header.size);
    memcpy(message, &header, sizeof(header));
    if (length)
        memcpy(message + sizeof(header), payload, length);
    for (uint32_t sent = 0; sent < header.size;) {
        ssize_t count = send(fd, message + sent, header.size - sent, MSG_NOSIGNAL);
        CHECK(count > 0);
        sent += (uint32_t)count;
    }
    free(message);
}

void put_fds(int fd, uint16_t id, uint16_t command, const void *payload, uint32_t length, const int *fds, int count)
{
    wire_header header = {id, command, (uint32_t)sizeof(header) + length, 0, 0};
    struct iovec parts[2] = {{&header, sizeof(header)}, {(void *)(uintptr_t)payload, length}};
    union {
        char bytes[CMSG_SPACE(sizeof(int) * 64)];
        struct cmsghdr align;
    } control = {{0}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2, .msg_control = control.bytes};
    message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count);
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)count);
    memcpy(CMSG_DATA(c), fds, sizeof(int) * (size_t)count);
    CHECK(sendmsg(fd, &message, 0) == (ssize_t)header.size);
}

uint32_t get(int fd, wire_header *header, void *payload, uint32_t room)
{
    CHECK(recv(fd, header, sizeof(*header), MSG_WAITALL) == (ssize_t)sizeof(*header));
    uint32_t length = header->size - (uint32_t)sizeof(*header);
    CHECK(length <= room);
    if (length)
        CHECK(recv(fd, payload, length, MSG_WAITALL) == (ssize_t)length);
    return length;
}

uint32_t access_once(int fd, uint16_t command, uint32_t region, uint64_t offset, void *bytes, uint32_t count)
{
    uint8_t payload[16 + 4096];
    wire_header header;
    wire_access access = {offset, region, count};
    memcpy(payload, &access, sizeof(access));
    if (command == WRITE)
        memcpy(payload + 16, bytes, count);
    put(fd, 7, command, 0, payload, command == WRITE ? 16 + count : 16);
    uint32_t length = get(fd, &header, payload, sizeof(payload));
    CHECK(header.id == 7 && header.command == command && (header.flags & REPLY));
    if (header.flags & FAILED) {
        CHECK(length == 0);
        return header.error;
    }
    CHECK(memcmp(payload, &access, 16) == 0);
    CHECK(length == (command == READ ? 16 + count : 16));
    if (command == READ)
        memcpy(bytes, payload + 16, count);
    return 0;
}

void wait_until(atomic_int *value, int wanted)
{
    for (int i = 0; i < 5000 && atomic_load(value) != wanted; i++)
        usleep(1000);
    CHECK(atomic_load(value) == wanted);
}
