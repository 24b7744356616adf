/* The address space without Python: lookups, transfers, concurrent readers and publishers, the SIGBUS guard. */
#define _GNU_SOURCE
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "umdev.h"
#include "device_decls.h"
#include "memory_decls.h"
#include "check.h"

enum { PAGE = 4096 };

static umdev_map_entry entry(uint32_t space, uint64_t iova, uint64_t size, uint8_t *host)
{
    return (umdev_map_entry){.space = space,
                             .protection = UMDEV_READABLE | UMDEV_WRITABLE,
                             .iova = iova,
                             .size = size,
                             .host = host,
                             .guard = -1};
}

static void test_lookup(void)
{
    enum { MAPS = 1000 };
    umdev_memory *memory = umdev_memory_new();
    umdev_map_entry maps[MAPS];
    uint8_t *bytes = malloc(MAPS * 16);
    /* Three spaces, a gap after each map. */
    for (uint32_t i = 0; i < MAPS; i++)
        maps[i] = entry(i / 400, (i % 400) * 32 + 8, 16, bytes + i * 16);
    CHECK(umdev_memory_publish(memory, maps, MAPS) == 0);
    CHECK(umdev_memory_count(memory) == MAPS);
    uint32_t ticket;
    const umdev_table *table = umdev_memory_reader_enter(memory, &ticket);
    for (int turn = 0; turn < 2; turn++) {
        for (uint32_t i = 0; i < MAPS; i++) {
            umdev_span span;
            uint64_t start = (i % 400) * 32 + 8;
            CHECK(umdev_memory_lookup(table, i / 400, start + 5, &span) == 0);
            CHECK(span.host == bytes + i * 16 + 5 && span.length == 11 && span.protection == 3);
            CHECK(umdev_memory_lookup(table, i / 400, start - 1, &span) == -EFAULT);
            CHECK(umdev_memory_lookup(table, i / 400, start + 16, &span) == -EFAULT);
        }
    }
    umdev_span span;
    CHECK(umdev_memory_lookup(table, 3, 8, &span) == -EFAULT);
    CHECK(umdev_memory_lookup(table, 2, 399 * 32 + 8, &span) == -EFAULT);
    CHECK(umdev_memory_lookup(table, 0, UINT64_MAX, &span) == -EFAULT);
    /* Publishing from inside of a section would wait for itself. */
    CHECK(umdev_memory_publish(memory, NULL, 0) == -EDEADLK);
    CHECK(umdev_memory_drain(memory) == -EDEADLK);
    umdev_memory_reader_exit(memory, ticket);
    CHECK(umdev_memory_remove(memory, 1, 0, UINT64_MAX) == 400);
    CHECK(umdev_memory_remove(memory, 0, 9, 100) == 2); /* the map at 8 begins before, the one at 104 after it */
    CHECK(umdev_memory_count(memory) == MAPS - 402);
    CHECK(umdev_memory_publish(memory, NULL, 0) == 0);
    table = umdev_memory_reader_enter(memory, &ticket);
    CHECK(umdev_memory_lookup(table, 0, 8, &span) == -EFAULT);
    umdev_memory_reader_exit(memory, ticket);
    umdev_memory_free(memory);
    free(bytes);
}

static void test_refusals(void)
{
    uint8_t bytes[64];
    umdev_memory *memory = umdev_memory_new();
    umdev_map_entry overlap[] = {entry(0, 0, 16, bytes), entry(0, 15, 16, bytes)};
    umdev_map_entry unsorted[] = {entry(0, 16, 16, bytes), entry(0, 0, 16, bytes)};
    umdev_map_entry spaces[] = {entry(1, 0, 16, bytes), entry(0, 0, 16, bytes)};
    umdev_map_entry wraps = entry(0, UINT64_MAX - 14, 16, bytes);
    umdev_map_entry empty = entry(0, 0, 0, bytes);
    umdev_map_entry fits = entry(0, UINT64_MAX - 15, 16, bytes);
    CHECK(umdev_memory_publish(memory, overlap, 2) == -EINVAL);
    CHECK(umdev_memory_publish(memory, unsorted, 2) == -EINVAL);
    CHECK(umdev_memory_publish(memory, spaces, 2) == -EINVAL);
    CHECK(umdev_memory_insert(memory, &wraps) == -EINVAL);
    CHECK(umdev_memory_insert(memory, &empty) == -EINVAL);
    CHECK(umdev_memory_count(memory) == 0);
    CHECK(umdev_memory_insert(memory, &fits) == 0);
    CHECK(umdev_memory_insert(memory, &fits) == -EINVAL);
    CHECK(umdev_memory_write(memory, 0, UINT64_MAX - 3, "last", 4) == 0);
    CHECK(memcmp(bytes + 12, "last", 4) == 0);
    uint64_t failed = 1;
    char back[8];
    CHECK(umdev_memory_transfer(memory, 0, UINT64_MAX - 3, back, 8, 0, &failed) == -EFAULT && failed == 0);
    CHECK(umdev_memory_read(memory, 0, 5, back, 0) == 0);
    umdev_memory_free(memory);
}

struct carrier {
    uint8_t bytes[3 * PAGE];
    int calls;
};

static int carry(void *context, uint64_t iova, void *bytes, uint64_t length, int write)
{
    struct carrier *carrier = context;
    carrier->calls++;
    if (iova + length > sizeof(carrier->bytes))
        return -EIO;
    if (write)
        memcpy(carrier->bytes + iova, bytes, length);
    else
        memcpy(bytes, carrier->bytes + iova, length);
    return 0;
}

static void test_messages(void)
{
    static struct carrier carrier;
    static uint8_t middle[PAGE];
    umdev_memory *memory = umdev_memory_new();
    umdev_map_entry maps[] = {entry(0, 0, PAGE, NULL), entry(0, PAGE, PAGE, middle),
                              entry(0, 2 * PAGE, 2 * PAGE, NULL)};
    CHECK(umdev_memory_publish(memory, maps, 3) == 0);
    uint8_t data[3 * PAGE];
    for (unsigned i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 7);
    CHECK(umdev_memory_write(memory, 0, 0, data, 16) == -ENOTCONN);
    umdev_memory_set_messages(memory, carry, NULL, &carrier);
    CHECK(umdev_memory_copy(memory, 0, 0, data, 16, 1) == 0 && carrier.calls == 0); /* it waits for nobody */
    CHECK(umdev_memory_copy(memory, 0, PAGE, data, PAGE, 1) == 1 && memcmp(middle, data, PAGE) == 0);
    CHECK(umdev_memory_copy(memory, 0, PAGE, data, PAGE + 1, 1) == 0);
    CHECK(umdev_memory_copy(memory, 1, PAGE, data, PAGE, 1) == 0);
    CHECK(umdev_memory_write(memory, 0, 0, data, sizeof(data)) == 0);
    CHECK(carrier.calls == 2);
    CHECK(memcmp(carrier.bytes, data, PAGE) == 0 && memcmp(middle, data + PAGE, PAGE) == 0);
    CHECK(memcmp(carrier.bytes + 2 * PAGE, data + 2 * PAGE, PAGE) == 0);
    uint8_t back[3 * PAGE];
    CHECK(umdev_memory_read(memory, 0, 0, back, sizeof(back)) == 0 && memcmp(back, data, sizeof(data)) == 0);
    uint64_t failed = 0;
    CHECK(umdev_memory_transfer(memory, 0, PAGE, back, 2 * PAGE + 1, 0, &failed) == -EIO && failed == 2 * PAGE);
    umdev_memory_cancel_messages(memory, 1); /* nobody to tell */
    umdev_memory_set_messages(memory, NULL, NULL, NULL);
    CHECK(umdev_memory_read(memory, 0, 2 * PAGE, back, 1) == -ENOTCONN);
    CHECK(umdev_memory_set_bus_master(memory, 0) == 0);
    CHECK(umdev_memory_read(memory, 0, PAGE, back, 1) == -EPERM);
    CHECK(umdev_memory_copy(memory, 0, PAGE, back, 1, 0) == 0);
    maps[1].protection = UMDEV_READABLE;
    CHECK(umdev_memory_set_bus_master(memory, 1) == 0 && umdev_memory_publish(memory, maps, 3) == 0);
    CHECK(umdev_memory_copy(memory, 0, PAGE, back, 1, 0) == 1 && umdev_memory_copy(memory, 0, PAGE, back, 1, 1) == 0);
    CHECK(umdev_memory_set_bus_master(memory, 0) == 0);
    umdev_span span;
    uint32_t ticket;
    CHECK(umdev_memory_lookup(umdev_memory_reader_enter(memory, &ticket), 0, PAGE, &span) == -EFAULT);
    umdev_memory_reader_exit(memory, ticket);
    umdev_memory_free(memory);
}

/* Each generation of the map is a fresh allocation filled with one byte, freed as soon as publish has returned: a
 * reader that is not waited for reads freed memory (ASan), races with free (TSan), or sees two values. */
struct crowd {
    umdev_memory *memory;
    _Atomic int stop;
    _Atomic long reads;
};

static void *crowd_transfer(void *argument)
{
    struct crowd *crowd = argument;
    uint8_t bytes[512];
    while (!atomic_load(&crowd->stop)) {
        int result = umdev_memory_read(crowd->memory, 0, PAGE + 64, bytes, sizeof(bytes));
        CHECK(result == 0 || result == -EFAULT || result == -EPERM);
        for (unsigned i = 1; !result && i < sizeof(bytes); i++)
            CHECK(bytes[i] == bytes[0]);
        atomic_fetch_add(&crowd->reads, 1);
    }
    return NULL;
}

static void *crowd_lookup(void *argument)
{
    struct crowd *crowd = argument;
    while (!atomic_load(&crowd->stop)) {
        uint32_t outer, inner;
        const umdev_table *table = umdev_memory_reader_enter(crowd->memory, &outer);
        umdev_span span;
        if (umdev_memory_lookup(table, 0, PAGE, &span) == 0) {
            CHECK(span.length == PAGE);
            uint8_t first = span.host[0];
            uint8_t byte;
            /* A section inside of a section. */
            umdev_memory_reader_enter(crowd->memory, &inner);
            umdev_memory_read(crowd->memory, 0, PAGE, &byte, 1);
            umdev_memory_reader_exit(crowd->memory, inner);
            CHECK(span.host[PAGE - 1] == first);
        }
        umdev_memory_reader_exit(crowd->memory, outer);
        atomic_fetch_add(&crowd->reads, 1);
    }
    return NULL;
}

static void *crowd_visit(void *argument)
{
    struct crowd *crowd = argument;
    uint8_t byte;
    umdev_memory_read(crowd->memory, 0, PAGE, &byte, 1);
    return NULL;
}

static void test_readers_and_publisher(void)
{
    struct crowd crowd = {.memory = umdev_memory_new()};
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, i % 2 ? crowd_lookup : crowd_transfer, &crowd) == 0);
    for (unsigned turn = 0; turn < 300; turn++) {
        uint8_t *host = aligned_alloc(PAGE, PAGE);
        memset(host, (int)turn, PAGE);
        umdev_map_entry map = entry(0, PAGE, PAGE, host);
        CHECK(umdev_memory_insert(crowd.memory, &map) == 0);
        if (turn % 50 == 0) { /* threads come and go; their lines are used again */
            pthread_t visitor;
            CHECK(pthread_create(&visitor, NULL, crowd_visit, &crowd) == 0);
            CHECK(pthread_join(visitor, NULL) == 0);
        }
        long seen = atomic_load(&crowd.reads);
        while (turn % 10 == 0 && atomic_load(&crowd.reads) == seen)
            usleep(10);
        if (turn % 7 == 0)
            CHECK(umdev_memory_set_bus_master(crowd.memory, turn % 14 != 0) == 0);
        CHECK(umdev_memory_remove(crowd.memory, 0, PAGE, 2 * PAGE - 1) == 1);
        memset(host, 0xEE, PAGE);
        free(host);
    }
    atomic_store(&crowd.stop, 1);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    umdev_memory_free(crowd.memory);
}

/* Two publishers at once: both are seen, none is lost. */
static void *publish_space(void *argument)
{
    struct crowd *crowd = argument;
    static _Atomic uint32_t next;
    static uint8_t page[PAGE];
    uint32_t space = atomic_fetch_add(&next, 1);
    for (uint64_t i = 0; i < 100; i++) {
        umdev_map_entry map = entry(space, i * PAGE, PAGE, page);
        CHECK(umdev_memory_insert(crowd->memory, &map) == 0);
    }
    return NULL;
}

static void test_two_publishers(void)
{
    struct crowd crowd = {.memory = umdev_memory_new()};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, publish_space, &crowd) == 0);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    CHECK(umdev_memory_count(crowd.memory) == 200);
    umdev_memory_free(crowd.memory);
}

/* A reader is told that it can't change the map, also while somebody who does waits for it. */
static void test_publisher_waits_for_who_would_publish(void)
{
    struct crowd crowd = {.memory = umdev_memory_new()};
    uint8_t page[PAGE];
    umdev_map_entry map = entry(1000, 0, PAGE, page);
    pthread_t thread;
    uint32_t ticket;
    umdev_memory_reader_enter(crowd.memory, &ticket);
    CHECK(pthread_create(&thread, NULL, publish_space, &crowd) == 0);
    usleep(20000); /* it is likely to wait by now; if not, less is tested */
    CHECK(umdev_memory_publish(crowd.memory, NULL, 0) == -EDEADLK);
    CHECK(umdev_memory_insert(crowd.memory, &map) == -EDEADLK);
    CHECK(umdev_memory_remove(crowd.memory, 1000, 0, PAGE) == -EDEADLK);
    umdev_memory_reader_exit(crowd.memory, ticket);
    pthread_join(thread, NULL);
    CHECK(umdev_memory_count(crowd.memory) == 100);
    umdev_memory_free(crowd.memory);
}

static int make_file(uint64_t size)
{
    int file = memfd_create("test", MFD_CLOEXEC);
    CHECK(file >= 0 && ftruncate(file, (off_t)size) == 0);
    return file;
}

static void test_backing(void)
{
    umdev_backing backing;
    int file = make_file(4 * PAGE);
    int ends[2];
    CHECK(pipe(ends) == 0);
    const uint32_t both = UMDEV_READABLE | UMDEV_WRITABLE;
    CHECK(umdev_memory_backing_open(ends[0], 0, PAGE, both, &backing) == -EMEDIUMTYPE);
    CHECK(umdev_memory_backing_open(-1, 0, PAGE, both, &backing) == -EBADF);
    CHECK(umdev_memory_backing_open(file, 0, 0, both, &backing) == -EINVAL);
    CHECK(umdev_memory_backing_open(file, PAGE, 4 * PAGE, both, &backing) == -EFBIG);
    CHECK(umdev_memory_backing_open(file, UINT64_MAX - PAGE + 1, PAGE, both, &backing) == -EFBIG);
    CHECK(umdev_memory_backing_open(file, PAGE, UINT64_MAX - PAGE, both, &backing) == -EFBIG);
    CHECK(umdev_memory_backing_open(file, PAGE, 2 * PAGE, both, &backing) == 0);
    backing.host[0] = 1;
    CHECK(umdev_memory_pin((uint64_t)(uintptr_t)backing.host, PAGE, 1) == 0);
    CHECK(umdev_memory_unpin((uint64_t)(uintptr_t)backing.host, PAGE) == 0);
    CHECK(umdev_memory_backing_detach(&backing) == 0);
    CHECK(backing.host[0] == 0);
    backing.host[0] = 2;
    uint8_t byte;
    CHECK(pread(file, &byte, 1, PAGE) == 1 && byte == 1);
    umdev_memory_backing_close(&backing);
    umdev_memory_backing_close(&backing);
    close(file);
    close(ends[0]);
    close(ends[1]);
}

/* Several threads run into a file that shrinks while they read and write it. */
struct shrink {
    umdev_memory *memory;
    pthread_barrier_t barrier;
    _Atomic uint64_t next; /* each thread has a page of its own */
};

static void *shrink_access(void *argument)
{
    struct shrink *shrink = argument;
    uint8_t bytes[PAGE] = {1};
    uint64_t page = atomic_fetch_add(&shrink->next, PAGE);
    CHECK(umdev_memory_write(shrink->memory, 0, page, bytes, PAGE) == 0);
    pthread_barrier_wait(&shrink->barrier);
    pthread_barrier_wait(&shrink->barrier);
    CHECK(umdev_memory_read(shrink->memory, 0, page, bytes, PAGE) == -UMDEV_MEMORY_POISONED);
    CHECK(umdev_memory_write(shrink->memory, 0, page + 2 * PAGE, bytes, PAGE) == -UMDEV_MEMORY_POISONED);
    return NULL;
}

static void test_poison(void)
{
    struct shrink shrink = {.memory = umdev_memory_new()};
    int file = make_file(4 * PAGE);
    int other = make_file(PAGE);
    umdev_backing bad, good;
    const uint32_t both = UMDEV_READABLE | UMDEV_WRITABLE;
    CHECK(umdev_memory_backing_open(file, 0, 4 * PAGE, both, &bad) == 0);
    CHECK(umdev_memory_backing_open(other, 0, PAGE, both, &good) == 0);
    umdev_map_entry maps[] = {entry(0, 0, 4 * PAGE, bad.host), entry(0, 4 * PAGE, PAGE, good.host)};
    maps[0].guard = bad.guard;
    maps[1].guard = good.guard;
    CHECK(umdev_memory_publish(shrink.memory, maps, 2) == 0);
    pthread_barrier_init(&shrink.barrier, NULL, 3);
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, shrink_access, &shrink) == 0);
    pthread_barrier_wait(&shrink.barrier);
    CHECK(ftruncate(file, 0) == 0);
    pthread_barrier_wait(&shrink.barrier);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    CHECK(umdev_guard_poisoned(bad.guard) == 1 && umdev_guard_poisoned(good.guard) == 0);
    CHECK(umdev_guard_poisoned(-1) == 0);
    CHECK(umdev_memory_write(shrink.memory, 0, 4 * PAGE, "fine", 4) == 0);
    CHECK(umdev_memory_publish(shrink.memory, NULL, 0) == 0);
    int slot = bad.guard;
    umdev_memory_backing_close(&bad);
    umdev_memory_backing_close(&good);
    /* The slot is used again, and clean. */
    CHECK(umdev_memory_backing_open(other, 0, PAGE, both, &good) == 0);
    CHECK(good.guard == slot && umdev_guard_poisoned(slot) == 0);
    umdev_memory_backing_close(&good);
    umdev_memory_free(shrink.memory);
    pthread_barrier_destroy(&shrink.barrier);
    close(file);
    close(other);
}

/* A fault elsewhere is not ours: it reaches the handler that was there first, or ends the process. */
static int chained_signal;

static void chained(int number)
{
    (void)number;
    _exit(42);
}

static void *foreign_fault(void)
{
    int file = make_file(PAGE);
    volatile uint8_t *page = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, file, 0);
    CHECK(page != MAP_FAILED && ftruncate(file, 0) == 0);
    chained_signal = page[0];
    return NULL;
}

static void test_chain(int with_handler)
{
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        struct sigaction action = {.sa_handler = with_handler ? chained : SIG_DFL};
        CHECK(sigaction(SIGBUS, &action, NULL) == 0);
        umdev_backing backing;
        int file = make_file(PAGE);
        CHECK(umdev_memory_backing_open(file, 0, PAGE, UMDEV_READABLE, &backing) == 0);
        foreign_fault();
        _exit(1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    if (with_handler)
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42);
    else
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}

static struct sigaction before;
static volatile sig_atomic_t foreign; /* a fault that is not ours is about to come */

static void ends_all(int number)
{
    (void)number;
    _exit(foreign ? 42 : 1);
}

/* What a crash reporter does: step aside, and let the fault come again. */
static void step_aside(int number)
{
    if (!foreign)
        _exit(1);
    sigaction(number, &before, NULL);
}

/* A handler that the program installs later: the next map puts ours above it, and foreign faults still reach it. */
static void test_handler_above(void (*handler)(int), bool exits)
{
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(60); /* rather than handlers that call each other for ever */
        struct sigaction standard = {.sa_handler = SIG_DFL}, action = {.sa_handler = handler};
        umdev_backing first, backing;
        int file = make_file(PAGE);
        CHECK(sigaction(SIGBUS, &standard, NULL) == 0);
        CHECK(umdev_memory_backing_open(file, 0, PAGE, UMDEV_READABLE, &first) == 0);
        for (int i = 0; i < 10; i++) {
            int shrunk = make_file(PAGE);
            CHECK(sigaction(SIGBUS, &action, i ? NULL : &before) == 0);
            CHECK(umdev_memory_backing_open(shrunk, 0, PAGE, UMDEV_READABLE, &backing) == 0);
            CHECK(ftruncate(shrunk, 0) == 0);
            CHECK(*(volatile uint8_t *)backing.host == 0 && umdev_guard_poisoned(backing.guard) == 1);
            umdev_memory_backing_close(&backing);
            close(shrunk);
        }
        foreign = 1;
        foreign_fault();
        _exit(1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    if (exits)
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42);
    else
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}

int main(void)
{
    /* First, while no guard is installed yet. */
    test_chain(1);
    test_chain(0);
    test_handler_above(ends_all, true);
    test_handler_above(step_aside, false);
    test_lookup();
    test_refusals();
    test_messages();
    test_backing();
    test_poison();
    test_two_publishers();
    test_publisher_waits_for_who_would_publish();
    test_readers_and_publisher();
    puts("ok");
    return 0;
}
