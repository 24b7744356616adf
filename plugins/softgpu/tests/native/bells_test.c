/* Bells alone, for the sanitizers: their order, their ends, and threads that ring while one waits. */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "softgpu.h"
#include "functions.h"

#include "check.h"

enum { RINGERS = 3, RINGS = 20000 };
#define HOUR (UINT64_C(3600) * 1000000000)

static void test_order(void)
{
    softgpu_bells *bells = softgpu_bells_new();
    softgpu_bell *bell[4];
    CHECK(bells);
    for (unsigned i = 0; i < 4; i++)
        CHECK((bell[i] = softgpu_bell_new(bells, i + 1)) != NULL);
    CHECK(!softgpu_bells_rung(bells) && softgpu_bells_take(bells) == 0);
    softgpu_bell_ring(bell[2]);
    softgpu_bell_ring(bell[0]);
    softgpu_bell_ring(bell[2]); /* it has rung already */
    CHECK(softgpu_bells_rung(bells) && softgpu_bells_take(bells) == 3);
    softgpu_bell_ring(bell[2]); /* and rings anew */
    CHECK(softgpu_bells_take(bells) == 1 && softgpu_bells_take(bells) == 3);
    CHECK(!softgpu_bells_rung(bells) && softgpu_bells_take(bells) == 0);

    for (unsigned i = 0; i < 4; i++)
        softgpu_bell_ring(bell[i]);
    softgpu_bell_free(bell[1]); /* in the middle, and at the end */
    softgpu_bell_free(bell[3]);
    CHECK(softgpu_bells_take(bells) == 1);
    softgpu_bell_ring(bell[0]);
    CHECK(softgpu_bells_take(bells) == 3 && softgpu_bells_take(bells) == 1 && softgpu_bells_take(bells) == 0);
    softgpu_bell_ring(bell[0]);
    softgpu_bells_free(bells); /* its owner may go before its bells */
    softgpu_bell_ring(bell[2]);
    softgpu_bell_free(bell[0]);
    softgpu_bell_free(bell[2]);
    softgpu_bell_free(NULL);
    softgpu_bells_free(NULL);
}

static void test_waits(void)
{
    softgpu_bells *bells = softgpu_bells_new();
    softgpu_bell *bell = softgpu_bell_new(bells, 9);
    CHECK(bells && bell);
    softgpu_bells_wait(bells, 0);
    softgpu_bells_wait(bells, 1000000);
    softgpu_bells_wake(bells); /* before the wait */
    softgpu_bells_wait(bells, HOUR);
    softgpu_bell_ring(bell); /* likewise, until it is taken */
    softgpu_bells_wait(bells, HOUR);
    softgpu_bells_wait(bells, HOUR);
    CHECK(softgpu_bells_take(bells) == 9);
    softgpu_bell_free(bell);
    softgpu_bells_free(bells);
}

typedef struct ringer {
    softgpu_bell *bell;
    atomic_uint work; /* what C keeps for the queue */
} ringer;

static void *ring(void *argument)
{
    ringer *mine = argument;
    for (unsigned i = 0; i < RINGS; i++) {
        atomic_fetch_add(&mine->work, 1);
        softgpu_bell_ring(mine->bell);
    }
    return NULL;
}

/* However rings and looks meet, none of the work is left when nothing rings any more. */
static void test_threads(void)
{
    softgpu_bells *bells = softgpu_bells_new();
    ringer ringers[RINGERS] = {0};
    pthread_t threads[RINGERS];
    unsigned done = 0;
    CHECK(bells);
    for (unsigned i = 0; i < RINGERS; i++) {
        ringers[i].bell = softgpu_bell_new(bells, i + 1);
        CHECK(ringers[i].bell && !pthread_create(&threads[i], NULL, ring, &ringers[i]));
    }
    while (done < RINGERS * RINGS) {
        softgpu_bells_wait(bells, HOUR);
        uint64_t number = softgpu_bells_take(bells);
        CHECK(number <= RINGERS);
        if (number)
            done += atomic_exchange(&ringers[number - 1].work, 0);
    }
    for (unsigned i = 0; i < RINGERS; i++) {
        pthread_join(threads[i], NULL);
        softgpu_bell_free(ringers[i].bell);
    }
    softgpu_bells_free(bells);
}

/* A kernel that has slices has this one now; before Linux 6.12 there is nothing to see. */
static void test_thread(void)
{
    enum { SLICE = 10000000, RUNTIME = 3 }; /* sched_runtime is the fourth of eight-byte words */
    uint64_t attributes[6] = {0};
    if (softgpu_thread_computes(SLICE) != 0)
        return; /* forbidden here: the thread goes on as it is */
    CHECK(syscall(SYS_sched_getattr, 0, attributes, sizeof attributes, 0) == 0);
    CHECK(attributes[RUNTIME] == 0 || attributes[RUNTIME] == SLICE);
}

void test_bells(void)
{
    test_order();
    test_waits();
    test_threads();
    test_thread();
}
