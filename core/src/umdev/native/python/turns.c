/* python: whose turn the interpreter is, between a model's thread that computes and handlers of accesses.
 *
 * A thread that lets the GIL go for the length of a short call and takes it again is there first nearly every time: who
 * waits has to be woken, and finds it taken. Nor does it ever ask for the GIL, which CPython does when a wait of a
 * switch interval has brought no signal: each of those calls is a signal. So the thread that computes asks.
 */
#include "python_internal.h"

#include <sched.h>
#include <stdatomic.h>
#include <time.h>

enum {
    LONGEST_NS = 10000000, /* for handlers: they have the processor by then, or the machine has no time for them */
    REST_NS = 5000000,     /* as sys.getswitchinterval(): how long other threads wait for a thread that computes */
};

static atomic_uint asked, served; /* relaxed: who comes late is seen at the next call */

PyGILState_STATE umdev_python_enter(void)
{
    atomic_fetch_add_explicit(&asked, 1, memory_order_relaxed);
    if (!PyGILState_GetThisThreadState())
        umdev_python_adopt(); /* else the thread would get a new one for each access */
    PyGILState_STATE state = PyGILState_Ensure();
    atomic_fetch_add_explicit(&served, 1, memory_order_relaxed);
    return state;
}

int umdev_python_wanted(void)
{
    unsigned before = atomic_load_explicit(&served, memory_order_acquire); /* first, so it is never the larger one */
    return (int)(atomic_load_explicit(&asked, memory_order_relaxed) - before);
}

static int64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

void umdev_python_give_way(void)
{
    static _Thread_local int64_t rested;
    unsigned last = atomic_load_explicit(&asked, memory_order_relaxed);
    int64_t now = now_ns();
    /* As many as wait now, not those that come meanwhile: there may be no end of them. */
    for (int64_t until = now + LONGEST_NS;
         (int)(last - atomic_load_explicit(&served, memory_order_relaxed)) > 0 && now < until; now = now_ns())
        sched_yield();
    if (now - rested >= 2 * REST_NS) { /* it did something else */
        rested = now;
    } else if (now - rested >= REST_NS) {
        nanosleep(&(struct timespec){.tv_nsec = 1}, NULL); /* some 50 us: enough to wake up, which a yield is not */
        rested = now_ns();
    }
}
