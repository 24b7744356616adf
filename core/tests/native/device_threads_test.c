/* Dispatch with threads: native handlers, pending accesses, the lock, races. */
#include <pthread.h>
#include <unistd.h>

#include "device_fixture.h"

/* ---- native handlers, pending accesses ---- */

static int native(void *device, const umdev_access *access, uint64_t *value)
{
    CHECK(access->header.size == sizeof *access && access->space == 0);
    if (access->offset == 0) { /* counts, with the lock held */
        CHECK(umdev_device_held(device));
        CHECK(umdev_device_context(device) ==
              (access->flags & UMDEV_POSTED ? UMDEV_CONTEXT_POSTED : UMDEV_CONTEXT_WAITING));
        *value += 1;
        return UMDEV_OK;
    }
    if (access->offset == 4) { /* lock-free: index and byte mask */
        CHECK(!umdev_device_held(device));
        *value = access->byte_mask;
        return UMDEV_OK;
    }
    if (access->offset == 8) {
        *value = 0x70C0 + (access->flags & UMDEV_WRITE);
        return UMDEV_PENDING;
    }
    return (int)access->index; /* an array whose element n answers result n */
}

static const umdev_register natives[] = {
    {.offset = 0, .count = 1, .width = 4, .on_read = UMDEV_CALL_NATIVE, .on_write = UMDEV_CALL_NATIVE,
     .native = native},
    {.offset = 4, .count = 1, .width = 4, .cell = 4, .flags = UMDEV_REGISTER_LOCKLESS, .on_read = UMDEV_CALL_NATIVE,
     .on_write = UMDEV_CALL_NATIVE, .native = native},
    {.offset = 8, .count = 1, .width = 4, .cell = 8, .on_read = UMDEV_CALL_NATIVE, .on_write = UMDEV_CALL_NATIVE,
     .native = native},
    {.offset = 0x40, .stride = 4, .count = 8, .width = 4, .cell = 16, .on_read = UMDEV_CALL_NATIVE,
     .on_write = UMDEV_CALL_NATIVE, .native = native}};

static void *complete_soon(void *device)
{
    while (umdev_device_complete(device, 0x70C0, 0xCAFE) == -ENOENT)
        usleep(1000);
    return NULL;
}

static void *end_soon(void *device)
{
    usleep(20000);
    umdev_device_set_gone(device, 1);
    return NULL;
}

static atomic_int completions;
static atomic_int completion_result;

static void completed(void *context, int result)
{
    (void)context;
    atomic_store(&completion_result, result);
    atomic_fetch_add(&completions, 1);
}

static void test_native(void)
{
    struct fixture f = make(natives, 4, 0x1000);
    uint64_t value = 0;
    pthread_t thread;
    int result;
    CHECK(rd(f.device, 0, 4, &result) == 1 && result == UMDEV_OK);
    CHECK(umdev_device_access(f.device, 0, 0, &value, 4, UMDEV_WRITE | UMDEV_POSTED, 0, 0) == UMDEV_OK);
    CHECK(umdev_device_context(f.device) == UMDEV_CONTEXT_NONE);
    CHECK(rd(f.device, 4, 4, NULL) == 15 && rd(f.device, 6, 2, NULL) == 0 && rd(f.device, 4, 1, NULL) == 1);
    for (int n = 2; n < 8; n++) {
        int want = n <= UMDEV_GONE ? n : UMDEV_FAULT;
        uint64_t bytes = want == UMDEV_UNHANDLED ? 0 : ones(4);
        CHECK(rd(f.device, 0x40 + 4 * (uint64_t)n, 4, &result) == bytes && result == want);
        CHECK(wr(f.device, 0x40 + 4 * (uint64_t)n, 1, 4) == want);
    }

    pthread_create(&thread, NULL, complete_soon, f.device);
    CHECK(rd(f.device, 9, 2, &result) == 0xCA && result == UMDEV_OK);
    pthread_join(thread, NULL);
    CHECK(umdev_device_complete(f.device, 0x70C0, 0) == -ENOENT);

    CHECK(umdev_device_start(f.device, 0, 8, &value, 4, 0, 0, 0, completed, NULL) == UMDEV_PENDING && completions == 0);
    uint64_t other = 0;
    CHECK(umdev_device_start(f.device, 0, 8, &other, 4, 0, 0, 0, completed, NULL) == UMDEV_FAULT); /* token in use */
    CHECK(umdev_device_complete(f.device, 0x70C0, 0x1234) == 0 && completions == 1 && completion_result == UMDEV_OK);
    CHECK((uint32_t)value == 0x1234);
    CHECK(umdev_device_start(f.device, 0, 8, &value, 4, 0, 0, 0, completed, NULL) == UMDEV_PENDING);
    umdev_device_abort_pending(f.device);
    CHECK(completions == 2 && completion_result == UMDEV_ABORT && (uint32_t)value == UINT32_MAX);

    pthread_create(&thread, NULL, end_soon, f.device);
    CHECK(rd(f.device, 8, 4, &result) == ones(4) && result == UMDEV_GONE);
    pthread_join(thread, NULL);
    drop(&f);
}

static int intercept(void *context, uint32_t region, uint64_t offset, void *bytes, uint32_t length, uint32_t flags)
{
    (void)region, (void)length;
    if (offset != *(uint64_t *)context)
        return -1;
    if (!(flags & UMDEV_WRITE))
        memset(bytes, 0x42, length);
    return UMDEV_OK;
}

/* The second register of an access ends, in one way or another, what the first one left pending. */
enum ending { COMPLETE, ABORT, GONE };
static enum ending ending;

static int ends(void *device, const umdev_access *access, uint64_t *value)
{
    if (access->offset == 0) {
        *value = 0x70C0;
        return UMDEV_PENDING;
    }
    if (ending == COMPLETE)
        CHECK(umdev_device_complete(device, 0x70C0, 0xCAFE) == 0);
    else if (ending == ABORT)
        umdev_device_abort_pending(device);
    else
        umdev_device_set_gone(device, 1);
    *value = 0xBEEF;
    return UMDEV_OK;
}

static void test_ended_within(void)
{
    static const int results[] = {[COMPLETE] = UMDEV_OK, [ABORT] = UMDEV_ABORT, [GONE] = UMDEV_GONE};
    static const umdev_register both[] = {{.offset = 0, .count = 1, .width = 4, .on_read = UMDEV_CALL_NATIVE,
                                           .native = ends},
                                          {.offset = 4, .count = 1, .width = 4, .cell = 4, .on_read = UMDEV_CALL_NATIVE,
                                           .native = ends}};
    for (ending = COMPLETE; ending <= GONE; ending++) {
        uint64_t want = ending == COMPLETE ? 0xBEEF0000CAFEu : ones(8);
        for (int waits = 0; waits < 2; waits++) {
            struct fixture f = make(both, 2, 0x1000);
            uint64_t value = 0;
            int before = completions;
            int result = waits ? umdev_device_access(f.device, 0, 0, &value, 8, 0, 0, 0)
                               : umdev_device_start(f.device, 0, 0, &value, 8, 0, 0, 0, completed, NULL);
            CHECK(result == results[ending] && value == want);
            CHECK(completions == before); /* the call itself has told */
            CHECK(umdev_device_complete(f.device, 0x70C0, 0) == -ENOENT);
            drop(&f);
        }
    }
}

static void test_lock_and_intercept(void)
{
    umdev_register r[] = {declare(RW, 0, 4, 0), declare(RW, 4, 4, 4)};
    r[1].on_write = UMDEV_CALL_VALUE;
    struct fixture f = make(r, 2, 64);
    CHECK(!umdev_device_held(f.device) && umdev_device_lock(f.device) == 0 && umdev_device_held(f.device));
    CHECK(umdev_device_lock(f.device) == -EDEADLK && umdev_device_trylock(f.device) == 0);
    CHECK(wr(f.device, 0, 5, 4) == UMDEV_OK && wr(f.device, 4, 5, 4) == -EDEADLK);
    umdev_device_unlock(f.device);
    CHECK(umdev_device_trylock(f.device) == 1);
    umdev_device_unlock(f.device);

    uint64_t at = 0;
    umdev_device_set_intercept(f.device, intercept, &at);
    CHECK(rd(f.device, 0, 4, NULL) == 0x42424242 && wr(f.device, 0, 9, 4) == UMDEV_OK && rd(f.device, 4, 4, NULL) == 0);
    umdev_device_set_intercept(f.device, NULL, NULL);
    CHECK(rd(f.device, 0, 4, NULL) == 5);
    drop(&f);
}

/* ---- work that waits for the client ---- */

/* One thread's work: it lets the lock go again and again, as DMA by message does, until it is told to end. */
struct work {
    umdev_device *device;
    atomic_int inside; /* of the suspension */
    atomic_int go;     /* its message is answered */
    int rounds;        /* finished */
    int result;
};

static void *suspend(void *context)
{
    struct work *work = context;
    CHECK(umdev_device_suspend(work->device) == 0); /* no lock, nothing to let go */
    CHECK(umdev_device_lock(work->device) == 0);
    for (;;) {
        work->result = umdev_device_suspend(work->device);
        if (work->result < 0)
            break;
        CHECK(!umdev_device_held(work->device));
        atomic_store(&work->inside, 1);
        while (!atomic_load(&work->go))
            usleep(100);
        umdev_device_resume(work->device);
        CHECK(umdev_device_held(work->device));
        work->rounds++;
    }
    umdev_device_unlock(work->device);
    return NULL;
}

static void *answer_soon(void *context)
{
    usleep(20000);
    atomic_store(&((struct work *)context)->go, 1);
    return NULL;
}

static void test_suspended(void)
{
    umdev_register r[] = {declare(RW, 0, 4, 0)};
    r[0].on_write = UMDEV_CALL_VALUE;
    struct fixture f = make(r, 1, 64);
    struct work work = {.device = f.device};
    pthread_t threads[2];
    CHECK(umdev_device_lock(f.device) == 0);
    umdev_device_settle(f.device, 1); /* nothing is */
    umdev_device_unlock(f.device);
    pthread_create(&threads[0], NULL, suspend, &work);
    while (!atomic_load(&work.inside))
        usleep(100);
    CHECK(wr(f.device, 0, 5, 4) == UMDEV_OK && seen.writes == 1); /* handlers run */
    CHECK(umdev_device_lock(f.device) == 0);
    pthread_create(&threads[1], NULL, answer_soon, &work);
    umdev_device_settle(f.device, 1);
    /* Its work is through: it has not let the lock go in between, and can't begin to wait again. */
    CHECK(work.rounds == 1 && work.result == -ECANCELED && umdev_device_held(f.device));
    CHECK(umdev_device_suspend(f.device) == 1);
    umdev_device_resume(f.device);
    umdev_device_unlock(f.device);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    drop(&f);
}

static void *write_soon(void *device)
{
    CHECK(wr(device, 12, 1, 4) == UMDEV_GONE);
    return NULL;
}

/* An access that has passed the gate, and waits for the lock, finds the device gone: no handler runs any more. */
static void test_gone_while_waiting(void)
{
    umdev_register r = declare(RW, 12, 4, 12);
    r.on_write = UMDEV_CALL_VALUE;
    struct fixture f = make(&r, 1, 64);
    pthread_t writer, ender;
    CHECK(umdev_device_lock(f.device) == 0);
    pthread_create(&writer, NULL, write_soon, f.device);
    usleep(50000); /* it waits by now, or meets the closed gate: the same end */
    pthread_create(&ender, NULL, end_soon, f.device);
    while (rd(f.device, 12, 4, NULL) != ones(4)) /* a plain read needs no lock */
        usleep(1000);
    umdev_device_unlock(f.device);
    pthread_join(writer, NULL);
    pthread_join(ender, NULL);
    CHECK(seen.writes == 0);
    drop(&f);
}

/* ---- races ---- */

enum { ROUNDS = 20000, THREADS = 4 };

struct race {
    struct fixture *f;
    uint32_t number;
};

/* Thread n counts in byte n of a plain register by split writes, and stores all of another; both under fire. */
static void *hammer(void *context)
{
    const struct race *race = context;
    umdev_device *device = race->f->device;
    for (uint32_t i = 1; i <= ROUNDS; i++) {
        CHECK(wr(device, race->number, i & 0xFF, 1) == UMDEV_OK);
        CHECK(rd(device, race->number, 1, NULL) == (i & 0xFF));
        CHECK(wr(device, 4, i, 4) == UMDEV_OK);
        CHECK(wr(device, 8, UINT64_C(1) << race->number, 4) == UMDEV_OK); /* W1S */
        CHECK(wr(device, 12, i, 4) == UMDEV_OK);                          /* handler, counted under the lock */
    }
    /* Nobody else changes this byte: whatever takes it back shows in the value before the next update. */
    uintptr_t cell = (uintptr_t)&((uint32_t *)race->f->state)[4];
    for (uint32_t i = 1; i <= 50 * ROUNDS; i++) {
        uint64_t before = umdev_cell_update(cell, 4, UINT64_C(0xFF) << 8 * race->number,
                                            (uint64_t)(i & 0xFF) << 8 * race->number);
        CHECK(((before >> 8 * race->number) & 0xFF) == ((i - 1) & 0xFF));
    }
    return NULL;
}

static void *toggle(void *context)
{
    umdev_device *device = context;
    for (int i = 0; i < 200; i++) {
        umdev_counters counters;
        uint64_t lost;
        umdev_device_set_region_enabled(device, 1, i & 1);
        umdev_device_counters(device, &counters);
        umdev_device_unmodelled(device, NULL, 0, &lost);
    }
    return NULL;
}

static void test_race(void)
{
    umdev_register r[] = {declare(RW, 0, 4, 0), declare(RW, 4, 4, 4), declare(W1S, 8, 4, 8), declare(RW, 12, 4, 12),
                          declare(RO, 16, 4, 16)};
    r[3].on_write = UMDEV_CALL_OLD;
    struct fixture f = make(r, 5, 64);
    CHECK(umdev_device_add_region(f.device, 1, 64) == 0);
    pthread_t threads[THREADS + 1];
    struct race races[THREADS];
    for (uint32_t i = 0; i < THREADS; i++) {
        races[i] = (struct race){&f, i};
        pthread_create(&threads[i], NULL, hammer, &races[i]);
    }
    pthread_create(&threads[THREADS], NULL, toggle, f.device);
    for (uint32_t i = 0; i <= THREADS; i++)
        pthread_join(threads[i], NULL);
    CHECK(rd(f.device, 0, 4, NULL) == (ROUNDS & 0xFF) * UINT32_C(0x01010101));
    CHECK(rd(f.device, 16, 4, NULL) == (50 * ROUNDS & 0xFF) * UINT32_C(0x01010101));
    CHECK(rd(f.device, 8, 4, NULL) == 15 && seen.writes == THREADS * ROUNDS);
    umdev_counters counters;
    umdev_device_counters(f.device, &counters);
    CHECK(counters.writes == THREADS * ROUNDS * 4);
    drop(&f);
}

int main(void)
{
    test_native();
    test_ended_within();
    test_lock_and_intercept();
    test_suspended();
    test_gone_while_waiting();
    test_race();
    puts("ok");
    return 0;
}
