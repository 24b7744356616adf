/* The trace of accesses: a ring per thread, written without locks, overwritten when full. */
#define _GNU_SOURCE /* memfd_create, sealing */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "umdev.h"
#include "device_decls.h"
#include "trace_decls.h"
#include "trace_internal.h"

enum { RINGS_LIMIT = 256, FIRST = 4096 };
_Static_assert(sizeof(umdev_trace_record) == 64, "records are cache lines");
_Static_assert(sizeof(umdev_trace_header) <= FIRST, "records begin after the header");

static const char fields[] = "sequence:Q time:Q offset:Q value:Q duration:Q device:I length:I initiator:I space:I "
                             "region:H flags:H result:i";

/* Held by the list (until dropped) and by its thread (until that ends or meets a newer trace). */
struct ring {
    atomic_int holders;
    uint64_t generation;
    int descriptor;
    size_t bytes;
    uint64_t capacity;
    umdev_trace_header *header;
    umdev_trace_record *records;
};

atomic_int umdev_trace_on;
_Static_assert(sizeof(atomic_int) == sizeof(int), "umdev_trace_flag gives it away as an int");

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* the list, start and stop */
static struct ring *rings[RINGS_LIMIT];
static uint32_t ring_count;
static uint64_t ring_capacity;
static atomic_ullong generation; /* of the newest trace */
static atomic_ullong dropped;

static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static pthread_key_t key; /* the thread's ring; its destructor runs when the thread ends */

static void ring_release(void *pointer)
{
    struct ring *ring = pointer;
    if (!ring || atomic_fetch_sub(&ring->holders, 1) != 1)
        return;
    munmap(ring->header, ring->bytes);
    close(ring->descriptor);
    free(ring);
}

static void key_create(void)
{
    pthread_key_create(&key, ring_release);
}

static struct ring *ring_create(uint64_t capacity)
{
    struct ring *ring = calloc(1, sizeof *ring);
    if (!ring)
        return NULL;
    ring->capacity = capacity;
    ring->bytes = FIRST + capacity * sizeof(umdev_trace_record);
    ring->descriptor = memfd_create("umdev trace", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    void *memory = MAP_FAILED;
    if (ring->descriptor >= 0 && ftruncate(ring->descriptor, (off_t)ring->bytes) == 0 &&
        fcntl(ring->descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
        memory = mmap(NULL, ring->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring->descriptor, 0);
    if (memory == MAP_FAILED) {
        if (ring->descriptor >= 0)
            close(ring->descriptor);
        free(ring);
        return NULL;
    }
    ring->header = memory;
    ring->records = (umdev_trace_record *)((uint8_t *)memory + FIRST);
    *ring->header = (umdev_trace_header){
        .header = {.size = sizeof(umdev_trace_header), .major = UMDEV_ABI_MAJOR, .minor = UMDEV_ABI_MINOR},
        .first = FIRST,
        .record_size = sizeof(umdev_trace_record),
        .capacity = capacity,
        .process = (uint32_t)getpid(),
        .thread = (uint32_t)syscall(SYS_gettid)};
    memcpy(ring->header->magic, "UMDEVTRC", sizeof ring->header->magic);
    memcpy(ring->header->fields, fields, sizeof fields);
    return ring;
}

/* The calling thread's ring of the newest trace, or NULL. */
static struct ring *ring_get(void)
{
    pthread_once(&key_once, key_create);
    struct ring *ring = pthread_getspecific(key);
    if (ring && ring->generation == atomic_load_explicit(&generation, memory_order_relaxed))
        return ring;
    ring_release(ring);
    ring = NULL;
    pthread_mutex_lock(&lock);
    if (ring_count < RINGS_LIMIT && ring_capacity)
        ring = ring_create(ring_capacity);
    if (ring) {
        ring->generation = atomic_load(&generation);
        atomic_store(&ring->holders, 2);
        rings[ring_count++] = ring;
    }
    pthread_mutex_unlock(&lock);
    pthread_setspecific(key, ring);
    return ring;
}

void umdev_trace_add(const umdev_trace_record *record)
{
    struct ring *ring = ring_get();
    if (!ring) {
        atomic_fetch_add_explicit(&dropped, 1, memory_order_relaxed);
        return;
    }
    uint64_t head = __atomic_load_n(&ring->header->head, __ATOMIC_RELAXED); /* only this thread writes it */
    umdev_trace_record *place = &ring->records[head & (ring->capacity - 1)];
    /* An exchange, for its acquire half: no member's store moves before it (TSan knows no fences). */
    __atomic_exchange_n(&place->sequence, 0, __ATOMIC_ACQ_REL);
    memcpy((uint8_t *)place + sizeof place->sequence, (const uint8_t *)record + sizeof record->sequence,
           sizeof *record - sizeof record->sequence);
    __atomic_store_n(&place->sequence, head + 1, __ATOMIC_RELEASE);
    if (head >= ring->capacity)
        __atomic_store_n(&ring->header->lost, head + 1 - ring->capacity, __ATOMIC_RELAXED);
    __atomic_store_n(&ring->header->head, head + 1, __ATOMIC_RELEASE);
}

/* With the lock held. */
static void rings_drop(void)
{
    for (uint32_t i = 0; i < ring_count; i++)
        ring_release(rings[i]);
    ring_count = 0;
}

int umdev_trace_start(uint64_t capacity)
{
    if (capacity == 0 || capacity > UINT64_C(1) << 24)
        return -EINVAL;
    uint64_t rounded = 1;
    while (rounded < capacity)
        rounded <<= 1;
    pthread_mutex_lock(&lock);
    int error = atomic_load(&umdev_trace_on) ? -EBUSY : 0;
    if (!error) {
        rings_drop();
        ring_capacity = rounded;
        atomic_fetch_add(&generation, 1);
        atomic_store(&dropped, 0);
        atomic_store(&umdev_trace_on, 1);
    }
    pthread_mutex_unlock(&lock);
    return error;
}

void umdev_trace_stop(void)
{
    atomic_store(&umdev_trace_on, 0);
}

void umdev_trace_drop(void)
{
    pthread_mutex_lock(&lock);
    if (!atomic_load(&umdev_trace_on)) {
        rings_drop();
        ring_capacity = 0;
        atomic_fetch_add(&generation, 1);
    }
    pthread_mutex_unlock(&lock);
}

int umdev_trace_enabled(void)
{
    return atomic_load(&umdev_trace_on);
}

const int *umdev_trace_flag(void)
{
    return (const int *)&umdev_trace_on;
}

uint32_t umdev_trace_rings(int *descriptors, uint32_t capacity)
{
    pthread_mutex_lock(&lock);
    uint32_t count = ring_count;
    for (uint32_t i = 0; i < count && i < capacity; i++)
        descriptors[i] = rings[i]->descriptor;
    pthread_mutex_unlock(&lock);
    return count;
}

uint64_t umdev_trace_dropped(void)
{
    return atomic_load(&dropped);
}
