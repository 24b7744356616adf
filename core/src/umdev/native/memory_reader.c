/* memory: readers and how a publisher waits for them. */
#define _GNU_SOURCE
#include "memory_internal.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

_Thread_local umdev_reader *umdev_reader_own __attribute__((tls_model("initial-exec")));
_Atomic uint64_t umdev_reader_epoch = 1;
bool umdev_reader_fences;

static _Atomic(umdev_reader *) readers; /* grows at its head, never shrinks */
static pthread_key_t reader_key;
static pthread_once_t reader_once = PTHREAD_ONCE_INIT;

static void reader_leave(void *line)
{
    umdev_reader *reader = line;
    umdev_reader_own = NULL;
    reader->depth = 0;
    atomic_store_explicit(&reader->epoch, 0, memory_order_release);
    atomic_store_explicit(&reader->claimed, 0, memory_order_release);
}

/* Threads other than the caller of fork(2) do not exist in the child, so nobody would end their sections. */
static void reader_forked(void)
{
    for (umdev_reader *reader = atomic_load(&readers); reader; reader = reader->next)
        if (reader != umdev_reader_own) {
            reader->depth = 0;
            atomic_store(&reader->epoch, 0);
            atomic_store(&reader->claimed, 0);
        }
}

static int reader_barrier(int command)
{
    return (int)syscall(SYS_membarrier, command, 0, 0);
}

static void reader_start(void)
{
    if (pthread_key_create(&reader_key, reader_leave)) {
        fputs("umdev: no thread-specific key is left\n", stderr);
        abort();
    }
    pthread_atfork(NULL, NULL, reader_forked);
    umdev_reader_fences = reader_barrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) != 0;
}

umdev_reader *umdev_reader_register(void)
{
    pthread_once(&reader_once, reader_start);
    umdev_reader *reader = atomic_load(&readers);
    for (; reader; reader = reader->next) {
        uint32_t unclaimed = 0;
        if (atomic_compare_exchange_strong(&reader->claimed, &unclaimed, 1))
            break;
    }
    if (!reader) {
        reader = aligned_alloc(sizeof(*reader), sizeof(*reader));
        if (!reader) {
            /* 64 bytes: entering a section can't fail by contract, and nothing else would work either. */
            fputs("umdev: out of memory\n", stderr);
            abort();
        }
        *reader = (umdev_reader){.claimed = 1, .next = atomic_load(&readers)};
        while (!atomic_compare_exchange_weak(&readers, &reader->next, reader))
            ;
    }
    umdev_reader_own = reader;
    pthread_setspecific(reader_key, reader);
    return reader;
}

int umdev_reader_synchronize(void)
{
    pthread_once(&reader_once, reader_start);
    if (umdev_reader_own && umdev_reader_own->depth)
        return -EDEADLK;
    uint64_t epoch = atomic_fetch_add(&umdev_reader_epoch, 1) + 1;
    if (!umdev_reader_fences)
        reader_barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED);
    for (umdev_reader *reader = atomic_load(&readers); reader; reader = reader->next) {
        for (unsigned tries = 0;; tries++) {
            uint64_t shown = atomic_load(&reader->epoch);
            if (shown == 0 || shown >= epoch)
                break;
            if (tries < 64) {
                sched_yield();
            } else {
                struct timespec pause = {.tv_nsec = 50000};
                nanosleep(&pause, NULL);
            }
        }
    }
    return 0;
}
