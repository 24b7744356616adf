/* Doorbells: signals become writes, none blocks, and nothing outlives its owner. */
#include <fcntl.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device_fixture.h"
#include "doorbell_decls.h"
#include "signals_check.h"

enum { BELL = 0, NUMBERED = 4, WIDE = 8 };

static void *run(void *doorbells)
{
    CHECK(umdev_doorbells_run(doorbells) == 0);
    return NULL;
}

struct watched {
    struct fixture f;
    umdev_doorbells *doorbells;
    pthread_t thread;
};

static struct watched watch(void)
{
    umdev_register registers[3] = {declare(WO, BELL, 4, 0), declare(RW, NUMBERED, 4, 4), declare(WO, WIDE, 8, 8)};
    int error;
    for (int i = 0; i < 3; i++)
        registers[i].on_write = UMDEV_CALL_VALUE;
    registers[0].flags = UMDEV_REGISTER_DOORBELL;
    registers[2].flags = UMDEV_REGISTER_DOORBELL;
    struct watched w = {.f = make(registers, 3, 0x1000)};
    w.doorbells = umdev_doorbells_new(w.f.device, &error);
    CHECK(w.doorbells && error == 0);
    CHECK(pthread_create(&w.thread, NULL, run, w.doorbells) == 0);
    return w;
}

static void stop(struct watched *w)
{
    umdev_doorbells_stop(w->doorbells);
    pthread_join(w->thread, NULL);
    umdev_doorbells_free(w->doorbells);
    drop(&w->f);
}

/* The watcher acts soon; how soon is not promised. */
static void await_writes(uint32_t count)
{
    for (int i = 0; i < 20000 && atomic_load(&seen.writes) < count; i++)
        usleep(1000);
    CHECK(atomic_load(&seen.writes) == count);
}

/* What the last handler saw, with the lock that it held. */
static uint64_t last_value(umdev_device *device)
{
    CHECK(umdev_device_lock(device) == 0);
    uint64_t value = seen.value;
    umdev_device_unlock(device);
    return value;
}

static uint64_t writes(umdev_device *device)
{
    umdev_counters counters;
    umdev_device_counters(device, &counters);
    return counters.writes;
}

static void test_values(void)
{
    struct watched w = watch();
    int bell = umdev_doorbells_add(w.doorbells, 0, BELL, 4, 0);
    int numbered = umdev_doorbells_add(w.doorbells, 0, NUMBERED, 4, 0xABCD);
    int wide = umdev_doorbells_add(w.doorbells, 0, WIDE, 8, 0);
    CHECK(bell >= 0 && numbered >= 0 && wide >= 0);
    CHECK(fcntl(bell, F_GETFD) & FD_CLOEXEC);

    CHECK(eventfd_write(numbered, 1) == 0);
    await_writes(1);
    CHECK(last_value(w.f.device) == 0xABCD && rd(w.f.device, NUMBERED, 4, NULL) == 0xABCD);
    CHECK(eventfd_write(bell, 7) == 0); /* seven signals that came together are one write */
    await_writes(2);
    CHECK(last_value(w.f.device) == 0);
    CHECK(eventfd_write(wide, 1) == 0);
    await_writes(3);

    /* A store in the usual way, whole or in part, is the same to the handler. */
    CHECK(wr(w.f.device, BELL, 0x12345678, 4) == UMDEV_OK && seen.value == 0);
    CHECK(wr(w.f.device, BELL + 2, 0x1234, 2) == UMDEV_OK && seen.value == 0);
    CHECK(wr(w.f.device, NUMBERED, 5, 4) == UMDEV_OK && seen.value == 5);
    CHECK(atomic_load(&seen.writes) == 6 && writes(w.f.device) == 6);
    CHECK(*(uint32_t *)w.f.state == 0);

    CHECK(umdev_doorbells_add(w.doorbells, 0, BELL, 3, 0) == -EINVAL);
    CHECK(umdev_doorbells_add(w.doorbells, 0, BELL, 0, 0) == -EINVAL);
    CHECK(umdev_doorbells_add(w.doorbells, 0, BELL, 16, 0) == -EINVAL);
    stop(&w);
}

static void test_declarations(void)
{
    int error;
    umdev_register bad = declare(WO, 0, 8, 0);
    bad.flags = UMDEV_REGISTER_DOORBELL | UMDEV_REGISTER_MASKED;
    CHECK(!umdev_layout_new(&bad, 1, 15, &error) && error == -EINVAL);
    bad.flags = UMDEV_REGISTER_DOORBELL | UMDEV_REGISTER_COMMIT_LOW;
    CHECK(!umdev_layout_new(&bad, 1, 15, &error) && error == -EINVAL);
}

static void test_gates(void)
{
    struct watched w = watch();
    int bell = umdev_doorbells_add(w.doorbells, 0, BELL, 4, 0);
    int nowhere = umdev_doorbells_add(w.doorbells, 0, 0x10000, 4, 0);
    int region = umdev_doorbells_add(w.doorbells, 5, 0, 4, 0);
    umdev_counters counters = {0};

    CHECK(umdev_device_set_region_enabled(w.f.device, 0, 0) == 0);
    CHECK(eventfd_write(bell, 1) == 0 && eventfd_write(nowhere, 1) == 0 && eventfd_write(region, 1) == 0);
    for (int i = 0; i < 20000 && counters.aborted < 3; i++) {
        usleep(1000);
        umdev_device_counters(w.f.device, &counters);
    }
    CHECK(counters.aborted == 3 && atomic_load(&seen.writes) == 0);
    CHECK(umdev_device_set_region_enabled(w.f.device, 0, 1) == 0);
    CHECK(eventfd_write(bell, 1) == 0);
    await_writes(1);
    umdev_device_set_gone(w.f.device, 1);
    CHECK(eventfd_write(bell, 1) == 0);
    for (int i = 0; i < 20000 && writes(w.f.device) < 5; i++)
        usleep(1000);
    CHECK(atomic_load(&seen.writes) == 1);
    stop(&w);
}

/* A peer holds the same open file: it may make it blocking and empty it, and keep it after the end. */
static void test_peer(void)
{
    struct watched w = watch();
    int bell = umdev_doorbells_add(w.doorbells, 0, BELL, 4, 0);
    int theirs = dup(bell);
    eventfd_t count;

    CHECK(fcntl(theirs, F_SETFL, 0) == 0);
    CHECK(eventfd_write(theirs, UINT64_MAX - 1) == 0);
    await_writes(1);
    CHECK(umdev_device_lock(w.f.device) == 0);
    CHECK(eventfd_write(theirs, 1) == 0); /* taken by the watcher, which waits for the lock, or still there */
    usleep(1000);
    CHECK(fcntl(theirs, F_SETFL, O_NONBLOCK) == 0);
    eventfd_write(theirs, 1);
    eventfd_read(theirs, &count); /* the watcher finds nothing there, or was faster */
    CHECK(fcntl(theirs, F_SETFL, 0) == 0);
    umdev_device_unlock(w.f.device);
    CHECK(eventfd_write(theirs, 1) == 0);
    for (int i = 0; i < 20000 && atomic_load(&seen.writes) < 2; i++)
        usleep(1000);
    CHECK(atomic_load(&seen.writes) >= 2);
    stop(&w);
    CHECK(eventfd_write(theirs, 1) == 0);
    close(theirs);
}

static atomic_uint last_asked;

/* Keeps what the driver's memory said when the handler began: after the last ring it must be the last value. */
static int look(void *device, const umdev_access *access, uint64_t *value)
{
    (void)device, (void)access, (void)value;
    check_signals();
    atomic_fetch_add(&seen.writes, 1);
    seen.answer = atomic_load(&last_asked);
    return UMDEV_OK;
}

static void test_none_is_lost(void)
{
    enum { RINGS = 10000 };
    umdev_register bell = declare(WO, 0, 4, 0);
    int error;
    bell.flags = UMDEV_REGISTER_DOORBELL;
    bell.on_read = bell.on_write = UMDEV_CALL_NATIVE;
    bell.native = look;
    struct watched w = {.f = make(&bell, 1, 0x1000)};
    w.doorbells = umdev_doorbells_new(w.f.device, &error);
    CHECK(pthread_create(&w.thread, NULL, run, w.doorbells) == 0);
    int fd = umdev_doorbells_add(w.doorbells, 0, 0, 4, 0);
    for (unsigned i = 1; i <= RINGS; i++) {
        atomic_store(&last_asked, i);
        CHECK(eventfd_write(fd, 1) == 0);
    }
    uint64_t reached = 0;
    for (int i = 0; i < 20000 && reached != RINGS; i++) {
        usleep(1000);
        CHECK(umdev_device_lock(w.f.device) == 0);
        reached = seen.answer;
        umdev_device_unlock(w.f.device);
    }
    CHECK(reached == RINGS && atomic_load(&seen.writes) <= RINGS);
    stop(&w);
}

static void *hammer(void *argument)
{
    int fd = *(int *)argument;
    for (int i = 0; i < 2000; i++)
        eventfd_write(fd, 1);
    return NULL;
}

/* Added, rung and stopped at the same time, and stopped before it ran. */
static void test_threads(void)
{
    for (int round = 0; round < 20; round++) {
        struct watched w = watch();
        pthread_t ringers[2];
        int fds[2], theirs[2];
        for (int i = 0; i < 2; i++) {
            fds[i] = umdev_doorbells_add(w.doorbells, 0, i ? NUMBERED : BELL, 4, 1);
            theirs[i] = dup(fds[i]);
            CHECK(pthread_create(&ringers[i], NULL, hammer, &theirs[i]) == 0);
        }
        for (int i = 0; i < 40; i++)
            CHECK(umdev_doorbells_add(w.doorbells, 0, BELL, 4, 0) >= 0);
        umdev_doorbells_stop(w.doorbells);
        pthread_join(w.thread, NULL);
        umdev_doorbells_free(w.doorbells);
        for (int i = 0; i < 2; i++) {
            pthread_join(ringers[i], NULL);
            close(theirs[i]);
        }
        drop(&w.f);
    }
    int error;
    umdev_doorbells *never = umdev_doorbells_new(NULL, &error);
    umdev_doorbells_stop(never);
    CHECK(umdev_doorbells_run(never) == 0);
    umdev_doorbells_free(never);
    umdev_doorbells_free(NULL);
}

/* Signals that nobody has taken down, in all eventfds of this process. */
static uint64_t waiting_signals(void)
{
    uint64_t sum = 0;
    for (int fd = 0; fd < 64; fd++) {
        char path[40], line[80];
        unsigned long long count;
        snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
        FILE *info = fopen(path, "r");
        while (info && fgets(line, sizeof line, info))
            if (sscanf(line, "eventfd-count: %llx", &count) == 1)
                sum += count;
        if (info)
            fclose(info);
    }
    return sum;
}

/* A forked child stops its copy by a descriptor that both have: the parent's loop goes on, and does not turn for
 * ever. */
static void test_fork(void)
{
    struct watched w = watch();
    int bell = umdev_doorbells_add(w.doorbells, 0, BELL, 4, 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        umdev_doorbells_stop(w.doorbells);
        umdev_doorbells_free(w.doorbells);
        _exit(0);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    for (int i = 0; i < 20000 && waiting_signals(); i++)
        usleep(1000);
    CHECK(waiting_signals() == 0);
    CHECK(eventfd_write(bell, 1) == 0);
    await_writes(1);
    stop(&w);
}

int main(void)
{
    test_values();
    test_declarations();
    test_gates();
    test_peer();
    test_none_is_lost();
    test_threads();
    test_fork();
    return 0;
}
