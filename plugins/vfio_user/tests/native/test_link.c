/* The link by itself: accesses, batches, descriptors, DMA by message from every thread, and hostile bytes. */
#include "fake.h"

static void wait_until(atomic_int *value, int wanted)
{
    for (int i = 0; i < 5000 && atomic_load(value) != wanted; i++)
        usleep(1000);
    CHECK(atomic_load(value) == wanted);
}

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
    for (int i = 0; i < 17; i++)
        close(many[i]);
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

/* ---- DMA by message ---- */

static umdev_link *dma_link;
static uint8_t dma_bytes[200000];
static atomic_int dma_result, dma_done;

typedef struct memory {
    int fd;
    int qemu;       /* its layout: 32-bit count, data at 28 */
    int answers;    /* requests to answer; -1: all */
    uint8_t bytes[200000];
} memory;

/* What a client does with the server's requests until the socket ends or `answers` are given. */
static void serve_memory(memory *m)
{
    static _Thread_local uint8_t payload[70000], reply[70000];
    while (m->answers != 0) {
        wire_header header;
        ssize_t count = recv(m->fd, &header, sizeof(header), MSG_WAITALL);
        if (count <= 0)
            return;
        CHECK(count == 16);
        uint32_t length = header.size - 16;
        CHECK(length <= sizeof(payload) && recv(m->fd, payload, length, MSG_WAITALL) == (ssize_t)length);
        uint64_t address, wide;
        uint32_t narrow;
        memcpy(&address, payload, 8);
        memcpy(&wide, payload + 8, 8);
        memcpy(&narrow, payload + 8, 4);
        uint64_t n = m->qemu ? narrow : wide;
        size_t data = m->qemu ? 12 : 16;
        CHECK(length >= 16 && address + n <= sizeof(m->bytes));
        memset(reply, 0, sizeof(reply));
        memcpy(reply, payload, data);
        uint32_t size;
        if (header.command == DMA_READ) {
            memcpy(reply + data, m->bytes + address, n);
            size = (uint32_t)(16 + n);
        } else {
            CHECK(n == length - 16);
            memcpy(m->bytes + address, payload + data, n);
            size = m->qemu ? 0 : 16;
        }
        put(m->fd, header.id, header.command, REPLY, reply, size);
        if (m->answers > 0)
            m->answers--;
    }
}

static void *memory_thread(void *context)
{
    serve_memory(context);
    return NULL;
}

/* Deferred work: holds the device lock and waits for the client's memory. */
static void *worker(void *context)
{
    pthread_mutex_lock(&fake_lock);
    atomic_store(&dma_done, 0);
    int write = context != NULL;
    atomic_store(&dma_result, umdev_link_transfer(dma_link, 100, dma_bytes, sizeof(dma_bytes) - 100, write));
    pthread_mutex_unlock(&fake_lock);
    atomic_store(&dma_done, 1);
    return NULL;
}

static void start_worker(pthread_t *thread, int write)
{
    CHECK(pthread_create(thread, NULL, worker, write ? "write" : NULL) == 0);
}

static void test_transfer(int qemu)
{
    served s;
    serve_start(&s);
    dma_link = s.link;
    memory *m = calloc(1, sizeof(*m));
    m->fd = s.client;
    m->qemu = qemu;
    m->answers = -1;
    for (size_t i = 0; i < sizeof(m->bytes); i++)
        m->bytes[i] = (uint8_t)(i * 7 + i / 251);
    pthread_t client, work;
    pthread_create(&client, NULL, memory_thread, m);
    start_worker(&work, 0);
    pthread_join(work, NULL);
    CHECK(atomic_load(&dma_result) == 0);
    CHECK(umdev_link_layout(s.link) == (qemu ? UMDEV_LINK_QEMU : UMDEV_LINK_SPECIFIED));
    CHECK(memcmp(dma_bytes, m->bytes + 100, sizeof(dma_bytes) - 100) == 0);
    for (size_t i = 0; i < sizeof(dma_bytes); i++)
        dma_bytes[i] = (uint8_t)(i * 13 + 1);
    start_worker(&work, 1);
    pthread_join(work, NULL);
    CHECK(atomic_load(&dma_result) == 0);
    CHECK(memcmp(dma_bytes, m->bytes + 100, sizeof(dma_bytes) - 100) == 0);
    umdev_link_stop(s.link);
    pthread_join(client, NULL);
    serve_end(&s);
    CHECK(s.event == UMDEV_LINK_STOPPED);
    free(m);
}

/* The trap: the worker holds the device lock and waits for its reply; the loop thread has an access and waits for the
 * lock; the reply comes behind it in the socket. */
static void test_loop_waits_for_the_lock(void)
{
    served s;
    serve_start(&s);
    dma_link = s.link;
    memory *m = calloc(1, sizeof(*m));
    m->fd = s.client;
    pthread_t work;
    start_worker(&work, 0);
    m->answers = 1; /* the layout probe */
    serve_memory(m);
    /* Now a read by the driver, which must wait for the worker, then the answers. */
    put(s.client, 42, READ, 0, (wire_access[]){{0, 0, 4}}, 16);
    usleep(20000);
    m->answers = (int)((sizeof(dma_bytes) - 100 + 65535) / 65536);
    serve_memory(m);
    pthread_join(work, NULL);
    CHECK(atomic_load(&dma_result) == 0);
    wire_header header;
    uint8_t payload[32];
    CHECK(get(s.client, &header, payload, sizeof(payload)) == 20 && header.id == 42);
    serve_end(&s);
    free(m);
}

static void doorbell_reads(uint32_t flags)
{
    uint32_t value = 0;
    CHECK(flags & UMDEV_POSTED);
    atomic_store(&dma_result, umdev_link_transfer(dma_link, 0, &value, 4, 0));
    memcpy(fake_bytes + 0x10, &value, 4);
}

/* The handler of a posted write reads the client's memory on the loop thread, while more messages come in. */
static void test_posted_write_reads_memory(void)
{
    served s;
    serve_start(&s);
    dma_link = s.link;
    fake_doorbell = doorbell_reads;
    umdev_link_set_answer_first(s.link, 1);
    memory *m = calloc(1, sizeof(*m));
    m->fd = s.client;
    memcpy(m->bytes, "DMA!", 4);
    uint8_t bell[17] = {0};
    memcpy(bell, (wire_access[]){{0x80, 0, 1}}, 16);
    put(s.client, 1, WRITE, 0, bell, sizeof(bell));
    wire_header header;
    uint8_t payload[64];
    CHECK(get(s.client, &header, payload, 64) == 16 && header.id == 1); /* answered first */
    int fd = eventfd(0, 0);
    for (uint16_t i = 0; i < 100; i++)
        put(s.client, (uint16_t)(100 + i), READ, 0, (wire_access[]){{0x10, 0, 4}}, 16);
    put_fds(s.client, 200, 2, payload, 32, &fd, 1);
    close(fd);
    m->answers = 2;
    serve_memory(m);
    for (uint16_t i = 0; i < 100; i++) {
        CHECK(get(s.client, &header, payload, 64) == 20 && header.id == 100 + i);
        CHECK(memcmp(payload + 16, "DMA!", 4) == 0);
    }
    CHECK(get(s.client, &header, payload, 64) == 0 && header.id == 200);
    CHECK(atomic_load(&s.fds) == 1 && atomic_load(&dma_result) == 0);
    serve_end(&s);
    free(m);
}

static void test_transfer_failures(void)
{
    served s;
    serve_start(&s);
    dma_link = s.link;
    pthread_t work;
    wire_header header;
    uint8_t payload[64];
    /* No answer in time; the late one changes nothing. */
    umdev_link_set_reply_timeout(s.link, 30);
    start_worker(&work, 0);
    get(s.client, &header, payload, 64);
    pthread_join(work, NULL);
    CHECK(atomic_load(&dma_result) == -ETIMEDOUT);
    put(s.client, header.id, header.command, REPLY, payload, 16);
    umdev_link_set_reply_timeout(s.link, 5000);
    /* Refused: what the client says, if it is an errno. The probe's refusal only means "as specified". */
    uint32_t said[] = {EFAULT, 0, 70000};
    int heard[] = {-EFAULT, -EIO, -EIO};
    for (int i = 0; i < 3; i++) {
        start_worker(&work, 0);
        for (int messages = i == 0 ? 2 : 1; messages; messages--) {
            get(s.client, &header, payload, 64);
            wire_header refusal = {header.id, header.command, 16, REPLY | FAILED, said[i]};
            CHECK(send(s.client, &refusal, 16, 0) == 16);
        }
        pthread_join(work, NULL);
        CHECK(atomic_load(&dma_result) == heard[i]);
    }
    /* A reply of the wrong length is no data. */
    start_worker(&work, 0);
    get(s.client, &header, payload, 64);
    put(s.client, header.id, header.command, REPLY, payload, 40);
    pthread_join(work, NULL);
    CHECK(atomic_load(&dma_result) == -EPROTO);
    /* The client goes while a worker waits. */
    start_worker(&work, 0);
    get(s.client, &header, payload, 64);
    shutdown(s.client, SHUT_RDWR);
    pthread_join(work, NULL);
    CHECK(atomic_load(&dma_result) == -ENOTCONN);
    serve_end(&s);
}

/* Many workers and a driver at once. */
static void *hammer(void *context)
{
    uint8_t bytes[64], back[64];
    uint64_t address = 1000 + 64 * (uint64_t)(uintptr_t)context;
    for (int i = 0; i < 200; i++) {
        memset(bytes, i + (int)(uintptr_t)context, sizeof(bytes));
        CHECK(umdev_link_transfer(dma_link, address, bytes, sizeof(bytes), 1) == 0);
        CHECK(umdev_link_transfer(dma_link, address, back, sizeof(back), 0) == 0);
        CHECK(memcmp(bytes, back, sizeof(bytes)) == 0);
    }
    return NULL;
}

static void test_many_workers(void)
{
    served s;
    serve_start(&s);
    dma_link = s.link;
    memory *m = calloc(1, sizeof(*m));
    m->fd = s.client;
    m->answers = -1;
    pthread_t client, workers[4];
    pthread_create(&client, NULL, memory_thread, m);
    for (uintptr_t i = 0; i < 4; i++)
        pthread_create(&workers[i], NULL, hammer, (void *)i);
    /* Posted writes from the driver's side all the while. */
    uint8_t payload[20] = {0};
    memcpy(payload, (wire_access[]){{4, 0, 4}}, 16);
    for (int i = 0; i < 2000; i++) {
        wire_header header = {0, WRITE, 36, NO_REPLY, 0};
        uint8_t whole[36];
        memcpy(whole, &header, 16);
        memcpy(whole + 16, payload, 20);
        /* One send per message: the memory thread's replies go between whole messages. */
        CHECK(send(s.client, whole, 36, 0) == 36);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(workers[i], NULL);
    wait_until(&fake_writes, 2000);
    umdev_link_stop(s.link);
    pthread_join(client, NULL);
    serve_end(&s);
    free(m);
}

static void test_stop_and_disconnect(void)
{
    served s;
    serve_start(&s);
    dma_link = s.link;
    pthread_t work;
    start_worker(&work, 1);
    wire_header header;
    uint8_t payload[64];
    get(s.client, &header, payload, 64);
    umdev_link_stop(s.link);
    pthread_join(work, NULL);
    CHECK(atomic_load(&dma_result) == -ENOTCONN);
    pthread_join(s.thread, NULL);
    s.thread = 0;
    CHECK(s.event == UMDEV_LINK_STOPPED);
    umdev_link_disconnect(s.link);
    CHECK(umdev_link_transfer(s.link, 0, payload, 4, 0) == -ENOTCONN);
    CHECK(umdev_link_send(s.link, payload, 16, NULL, 0) == -ENOTCONN);
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
                       "REGION_WRITE id=2 region=0 offset=0x0 count=24 data=00000000000000000000000000000000... no-reply\n"
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
    test_broken();
    test_transfer(0);
    test_transfer(1);
    test_loop_waits_for_the_lock();
    test_posted_write_reads_memory();
    test_transfer_failures();
    test_many_workers();
    test_stop_and_disconnect();
    test_log();
    puts("ok");
    return 0;
}
