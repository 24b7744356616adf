/* What the watcher's thread does with unmask eventfds, and all calls of umdev_irq from many threads at once. */
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>

#include "irq_fixture.h"

/* The watcher thread acts soon; how soon is not promised. */
static uint64_t await(int fd)
{
    struct pollfd in = {.fd = fd, .events = POLLIN};
    CHECK(poll(&in, 1, 20000) == 1);
    return take(fd);
}

static void test_unmask_eventfd(void)
{
    umdev_irq *irq = umdev_irq_new(1, 0, 0);
    int fd = new_event(), unmask = new_event(), second = new_event();

    CHECK(umdev_irq_connect(irq, INTX, 0, fd) == 0 && umdev_irq_connect_unmask(irq, INTX, 0, unmask) == 0);
    umdev_irq_set_level(irq, 0, 1);
    CHECK(take(fd) == 1);
    for (int i = 0; i < 100; i++) {
        CHECK(eventfd_write(unmask, 1) == 0);
        CHECK(await(fd) == 1);
    }
    /* One that is written already when it is connected counts; the one before is watched no more. */
    CHECK(eventfd_write(second, 1) == 0);
    CHECK(umdev_irq_connect_unmask(irq, INTX, 0, second) == 0);
    CHECK(await(fd) == 1);
    CHECK(umdev_irq_connect_unmask(irq, INTX, 0, -1) == 0);
    CHECK(eventfd_write(unmask, 1) == 0 && eventfd_write(second, 1) == 0);
    CHECK(umdev_irq_connect_unmask(irq, MSI, 0, unmask) == -EINVAL);
    umdev_irq_free(irq);
    eventfd_write(unmask, 1);
    close(fd), close(unmask), close(second);
}

typedef struct storm {
    umdev_irq *irq;
    int fd, unmask;
    atomic_int stop;
} storm;

static void *signal_storm(void *argument)
{
    storm *s = argument;
    for (uint32_t i = 0; !atomic_load(&s->stop); i++) {
        umdev_irq_signal(s->irq, i % 4);
        umdev_irq_raise(s->irq, i % 70);
        umdev_irq_set_level(s->irq, i % 64, (int)(i & 1));
    }
    return NULL;
}

static void *bus_storm(void *argument)
{
    storm *s = argument;
    for (uint32_t i = 0; i < 2000; i++) {
        uint32_t index = i % 3, vector = index ? i % 2 : 0, mask = i & 1;
        umdev_irq_connect(s->irq, index, vector, i % 5 ? s->fd : -1);
        umdev_irq_mask(s->irq, index, vector);
        umdev_irq_msix_table(s->irq, 12, &mask, 4, UMDEV_WRITE);
        umdev_irq_set_state(s->irq, i % 32);
        umdev_irq_unmask(s->irq, index, vector);
        umdev_irq_connect_unmask(s->irq, INTX, 0, i % 3 ? s->unmask : -1);
        eventfd_write(s->unmask, 1);
        if (i % 7 == 0)
            umdev_irq_reset(s->irq);
        if (i % 11 == 0)
            umdev_irq_disable(s->irq, index);
        if (i % 13 == 0)
            umdev_irq_set_policy(s->irq, (int)(i & 1));
    }
    return NULL;
}

/* Sanitizers judge this one; afterwards the object still works. */
static void test_threads(void)
{
    storm s = {.irq = umdev_irq_new(1, 4, 8), .fd = new_event(), .unmask = new_event()};
    pthread_t models[2], buses[2];

    for (int i = 0; i < 2; i++) {
        CHECK(pthread_create(&models[i], NULL, signal_storm, &s) == 0);
        CHECK(pthread_create(&buses[i], NULL, bus_storm, &s) == 0);
    }
    for (int i = 0; i < 2; i++)
        pthread_join(buses[i], NULL);
    atomic_store(&s.stop, 1);
    for (int i = 0; i < 2; i++)
        pthread_join(models[i], NULL);

    umdev_irq_disconnect_all(s.irq);
    umdev_irq_reset(s.irq);
    umdev_irq_set_policy(s.irq, UMDEV_IRQ_POLICY_CORE);
    umdev_irq_set_state(s.irq, 0);
    take(s.fd);
    CHECK(umdev_irq_connect(s.irq, INTX, 0, s.fd) == 0 && take(s.fd) == 0);
    umdev_irq_set_level(s.irq, 0, 1);
    CHECK(take(s.fd) == 1);
    umdev_irq_free(s.irq);
    close(s.fd), close(s.unmask);
}

/* An object may end while its unmask eventfd is being written. */
static void test_free_while_watched(void)
{
    int unmask = new_event();

    for (int i = 0; i < 500; i++) {
        umdev_irq *irq = umdev_irq_new(1, 0, 0);
        CHECK(umdev_irq_connect_unmask(irq, INTX, 0, unmask) == 0);
        CHECK(eventfd_write(unmask, 1) == 0);
        umdev_irq_free(irq);
    }
    close(unmask);
}

/* Whatever a child does with its copy, the parent's eventfd unmasks on. */
static void test_fork(void)
{
    umdev_irq *irq = umdev_irq_new(1, 0, 0);
    int fd = new_event(), unmask = new_event();

    CHECK(umdev_irq_connect(irq, INTX, 0, fd) == 0 && umdev_irq_connect_unmask(irq, INTX, 0, unmask) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        umdev_irq_disconnect_all(irq);
        umdev_irq_free(irq);
        _exit(0);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    umdev_irq_set_level(irq, 0, 1);
    CHECK(take(fd) == 1);
    CHECK(eventfd_write(unmask, 1) == 0);
    CHECK(await(fd) == 1);
    umdev_irq_free(irq);
    close(fd), close(unmask);
}

int main(void)
{
    test_unmask_eventfd();
    test_threads();
    test_free_while_watched();
    test_fork();
    puts("irq_threads: ok");
    return 0;
}
