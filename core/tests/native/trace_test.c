/* The trace rings of two threads. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "device_fixture.h"
#include "trace_decls.h"

static void *trace_some(void *device)
{
    for (uint64_t i = 0; i < 100; i++)
        wr(device, 0, i, 4);
    return NULL;
}

static void test_trace(void)
{
    umdev_register r = declare(RW, 0, 4, 0);
    struct fixture f = make(&r, 1, 64);
    pthread_t thread;
    int descriptors[8];
    CHECK(umdev_trace_start(0) == -EINVAL && umdev_trace_start(60) == 0 && umdev_trace_start(60) == -EBUSY);
    trace_some(f.device);
    pthread_create(&thread, NULL, trace_some, f.device);
    pthread_join(thread, NULL);
    umdev_trace_stop();
    trace_some(f.device);
    CHECK(umdev_trace_rings(descriptors, 8) == 2 && umdev_trace_dropped() == 0);
    for (int i = 0; i < 2; i++) {
        CHECK(ftruncate(descriptors[i], 0) == -1);
        const umdev_trace_header *header = mmap(NULL, 8192, PROT_READ, MAP_SHARED, descriptors[i], 0);
        CHECK(header != MAP_FAILED && header->capacity == 64 && header->head == 100 && header->lost == 36);
        const umdev_trace_record *records = (const void *)((const uint8_t *)header + header->first);
        for (uint64_t n = 36; n < 100; n++)
            CHECK(records[n & 63].sequence == n + 1 && records[n & 63].value == n && records[n & 63].length == 4);
        munmap((void *)(uintptr_t)header, 8192);
    }
    CHECK(umdev_trace_start(16) == 0 && umdev_trace_rings(descriptors, 8) == 0);
    trace_some(f.device);
    CHECK(umdev_trace_rings(descriptors, 8) == 1);
    umdev_trace_stop();
    umdev_trace_drop();
    CHECK(umdev_trace_rings(descriptors, 8) == 0);
    drop(&f);
}

int main(void)
{
    test_trace();
    puts("ok");
    return 0;
}
