/* DMA by message, from every thread that may ask for it. */
#include "fake.h"

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

/* The same as the core does it: the lock is free meanwhile. */
static void *unlocked_worker(void *context)
{
    (void)context;
    uint8_t bytes[64];
    return (void *)(intptr_t)umdev_link_transfer(dma_link, 100, bytes, sizeof(bytes), 0);
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
}

/* The loop thread serves the client's next message, so it can't wait for an answer that may come only after that. */
static void test_loop_never_waits(void)
{
    served s;
    serve_start(&s);
    dma_link = s.link;
    fake_doorbell = doorbell_reads;
    uint8_t bell[17] = {0};
    memcpy(bell, (wire_access[]){{0x80, 0, 1}}, 16);
    put(s.client, 1, WRITE, NO_REPLY, bell, sizeof(bell));
    put(s.client, 2, READ, 0, (wire_access[]){{0x10, 0, 4}}, 16);
    wire_header header;
    uint8_t payload[64];
    CHECK(get(s.client, &header, payload, 64) == 20 && header.id == 2 && header.command == READ);
    CHECK(atomic_load(&dma_result) == -EDEADLK);
    serve_end(&s);
}

/* A reset ends what waits: in the socket, and for its turn. */
static void test_cancel(void)
{
    served s;
    serve_start(&s);
    dma_link = s.link;
    pthread_t work[2];
    wire_header header;
    uint8_t payload[64];
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&work[i], NULL, unlocked_worker, NULL) == 0);
    CHECK(get(s.client, &header, payload, 64) == 16);
    umdev_link_cancel(s.link, 1);
    umdev_link_cancel(s.link, 1);
    for (int i = 0; i < 2; i++) {
        void *result;
        pthread_join(work[i], &result);
        CHECK((intptr_t)result == -ECANCELED);
    }
    umdev_link_cancel(s.link, 0);
    /* The late reply is nobody's, and the next request is served as ever. */
    put(s.client, header.id, header.command, REPLY, payload, 16);
    memory *m = calloc(1, sizeof(*m));
    m->fd = s.client;
    m->answers = 2;
    CHECK(pthread_create(&work[0], NULL, unlocked_worker, NULL) == 0);
    serve_memory(m);
    void *result;
    pthread_join(work[0], &result);
    CHECK(result == NULL);
    serve_end(&s);
    free(m);
}

/* While a transfer waits, it takes the client's next messages off the socket, but no more descriptors than it can
 * keep. */
static void test_many_descriptors_wait_their_turn(void)
{
    enum { MESSAGES = 20, EACH = UMDEV_LINK_MAX_FDS }; /* 320 descriptors; 256 are kept */
    served s;
    serve_connect(&s);
    dma_link = s.link;
    pthread_t work;
    wire_header header;
    uint8_t payload[64] = {0};
    int fds[EACH];
    CHECK(pthread_create(&work, NULL, unlocked_worker, NULL) == 0);
    CHECK(get(s.client, &header, payload, 64) == 16); /* the layout probe */
    for (int i = 0; i < EACH; i++)
        fds[i] = eventfd(0, 0);
    for (int i = 0; i < MESSAGES; i++)
        put_fds(s.client, (uint16_t)i, 2, payload, 32, fds, EACH);
    put(s.client, header.id, header.command, REPLY, payload, 16);
    for (int full = 0; !full; usleep(1000)) {
        pthread_mutex_lock(&s.link->mutex);
        full = s.link->fd_count > LINK_MAX_QUEUED_FDS - EACH || s.link->state != LINK_OPEN;
        pthread_mutex_unlock(&s.link->mutex);
    }
    for (int i = 0; i < MESSAGES; i++) {
        umdev_link_message message;
        CHECK(umdev_link_run(s.link, &message) == UMDEV_LINK_MESSAGE);
        CHECK(message.id == i && message.fd_count == EACH);
        for (uint32_t k = 0; k < message.fd_count; k++)
            close(message.fds[k]);
    }
    memory *m = calloc(1, sizeof(*m));
    m->fd = s.client;
    m->answers = 1;
    serve_memory(m);
    void *result;
    pthread_join(work, &result);
    CHECK(result == NULL);
    for (int i = 0; i < EACH; i++)
        close(fds[i]);
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

void test_transfers(void)
{
    test_transfer(0);
    test_transfer(1);
    test_loop_waits_for_the_lock();
    test_loop_never_waits();
    test_cancel();
    test_many_descriptors_wait_their_turn();
    test_transfer_failures();
    test_many_workers();
    test_stop_and_disconnect();
}
