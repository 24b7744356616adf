/* Write-protection by userfaultfd without Python: TRAP, TRACK, several clients, and everything at once. */
#define _GNU_SOURCE
#include "protect_fixture.h"
#include "signals_check.h"

#include <poll.h>
#include <sched.h>
#include <sys/wait.h>

struct listener {
    struct guest *guest;
    umdev_protect_client *client;
    _Atomic unsigned calls;
    _Atomic uint64_t address;
    _Atomic uint64_t before;
    int rearm; /* what arming the page from inside answered */
};

static void listen(void *context, uint64_t address)
{
    struct listener *listener = context;
    check_signals();
    unsigned number = (unsigned)((address - page_of(listener->guest, 0)) / PAGE);
    atomic_store(&listener->address, address);
    atomic_store(&listener->before, device_load(listener->guest, number));
    uint64_t failed;
    listener->rearm = umdev_protect_client_arm(listener->client, &address, 1, &failed);
    atomic_fetch_add(&listener->calls, 1);
}

static void test_trap(void)
{
    struct guest guest;
    guest_open(&guest, 0);
    struct listener one = {.guest = &guest}, two = {.guest = &guest};
    one.client = umdev_protect_client_new(guest.protector, UMDEV_PROTECT_TRAP, NULL, listen, &one);
    two.client = umdev_protect_client_new(guest.protector, UMDEV_PROTECT_TRAP, NULL, listen, &two);
    CHECK(one.client && two.client);
    uint64_t failed = 0;
    uint64_t pages[] = {page_of(&guest, 4), page_of(&guest, 5), page_of(&guest, 9)};
    store(&guest, 5, 1111);
    CHECK(umdev_protect_client_arm(one.client, pages, 3, &failed) == 0);
    CHECK(umdev_protect_client_arm(two.client, pages + 1, 1, &failed) == 0);
    CHECK(umdev_protect_client_pages(one.client) == 3);
    store(&guest, 5, 2222);
    CHECK(one.calls == 1 && two.calls == 1);
    CHECK(one.address == pages[1] && one.before == 1111 && two.before == 1111);
    CHECK(one.rearm == -EBUSY);
    CHECK(device_load(&guest, 5) == 2222);
    store(&guest, 5, 3333);
    CHECK(one.calls == 1);
    CHECK(umdev_protect_client_disarm(one.client, pages, 3) == 0);
    store(&guest, 4, 1);
    store(&guest, 9, 1);
    CHECK(one.calls == 1 && umdev_protect_client_pages(one.client) == 0);
    uint64_t bad[] = {pages[0], page_of(&guest, PAGES)};
    CHECK(umdev_protect_client_arm(one.client, bad, 2, &failed) == -EFAULT && failed == bad[1]);
    bad[1] = pages[0] + 8;
    CHECK(umdev_protect_client_arm(one.client, bad, 2, &failed) == -EINVAL && failed == bad[1]);
    CHECK(umdev_protect_client_pages(one.client) == 0);
    CHECK(umdev_protector_register(guest.protector, page_of(&guest, 0) + 1, PAGE) == -EINVAL);
    CHECK(umdev_protector_faults(guest.protector) == 1);
    /* A discarded page is a changed one. */
    CHECK(umdev_protect_client_arm(one.client, pages, 1, &failed) == 0);
    CHECK(madvise((void *)(uintptr_t)pages[0], PAGE, MADV_REMOVE) == 0);
    store(&guest, 4, 5);
    CHECK(one.calls == 2);
    CHECK(umdev_protector_unregister(guest.protector, page_of(&guest, 0)) == 0);
    CHECK(umdev_protector_unregister(guest.protector, page_of(&guest, 0)) == -ENOENT);
    CHECK(umdev_protect_client_arm(one.client, pages, 1, &failed) == -EFAULT);
    umdev_protect_client_free(one.client);
    umdev_protect_client_free(two.client);
    guest_close(&guest);
}

static void test_track(int asynchronous)
{
    struct guest guest;
    guest_open(&guest, asynchronous);
    umdev_protect_client *one = umdev_protect_client_new(guest.protector, UMDEV_PROTECT_TRACK, NULL, NULL, NULL);
    umdev_protect_client *two = umdev_protect_client_new(guest.protector, UMDEV_PROTECT_TRACK, NULL, NULL, NULL);
    uint64_t pages[PAGES], found[PAGES], failed;
    for (unsigned i = 0; i < PAGES; i++)
        pages[i] = page_of(&guest, i);
    CHECK(umdev_protect_client_arm(one, pages, PAGES, &failed) == 0);
    CHECK(umdev_protect_client_arm(two, pages + 8, 4, &failed) == 0);
    CHECK(umdev_protect_client_collect(one, found, PAGES) == 0);
    store(&guest, 9, 1);
    store(&guest, 3, 1);
    store(&guest, 31, 1);
    CHECK(umdev_protect_client_collect(one, found, 2) == 2); /* the third waits */
    CHECK(found[0] == pages[3] && found[1] == pages[9]);
    store(&guest, 3, 2);
    CHECK(umdev_protect_client_collect(one, found, PAGES) == 2);
    CHECK(found[0] == pages[3] && found[1] == pages[31]);
    CHECK(umdev_protect_client_collect(one, found, PAGES) == 0);
    /* What one has collected, the other has not. */
    CHECK(umdev_protect_client_collect(two, found, PAGES) == 1 && found[0] == pages[9]);
    if (asynchronous) {
        store(&guest, 10, 1);
        CHECK(umdev_protector_upgrade(guest.protector, open_userfault(0)) == 0);
        CHECK(umdev_protect_client_collect(two, found, PAGES) == 4); /* all of them may have changed */
        CHECK(umdev_protect_client_collect(two, found, PAGES) == 0);
        store(&guest, 11, 1);
        CHECK(umdev_protect_client_collect(two, found, PAGES) == 1 && found[0] == pages[11]);
    }
    umdev_protect_client_free(one);
    store(&guest, 0, 1);
    umdev_protect_client_free(two);
    guest_close(&guest);
}

/* Writers, a thread that arms and disarms, clients that come and go, and collections, all at once: every store lands,
 * and a page that is armed while nobody stores to it is told of the next store. */
struct storm {
    struct guest guest;
    umdev_protect_client *client; /* of test_close_in_use */
    _Atomic int stop;
    _Atomic unsigned told;
};

static void storm_told(void *context, uint64_t address)
{
    struct storm *storm = context;
    CHECK(address >= page_of(&storm->guest, 0) && address < page_of(&storm->guest, PAGES));
    atomic_fetch_add(&storm->told, 1);
}

static void *storm_writer(void *argument)
{
    struct storm *storm = argument;
    for (unsigned i = 0; i < 2000; i++)
        umdev_guest_add64(storm->guest.own + (i % 8) * PAGE, 1);
    return NULL;
}

static void *storm_clients(void *argument)
{
    struct storm *storm = argument;
    uint64_t pages[8], failed;
    for (unsigned i = 0; i < 8; i++)
        pages[i] = page_of(&storm->guest, i);
    while (!atomic_load(&storm->stop)) {
        umdev_protect_client *client =
            umdev_protect_client_new(storm->guest.protector, UMDEV_PROTECT_TRAP, NULL, storm_told, storm);
        for (unsigned i = 0; i < 20; i++) {
            CHECK(umdev_protect_client_arm(client, pages, 8, &failed) == 0);
            if (i % 5 == 0)
                CHECK(umdev_protect_client_disarm(client, pages + 2, 3) == 0);
        }
        umdev_protect_client_free(client);
    }
    return NULL;
}

static void test_storm(void)
{
    struct storm storm = {0};
    guest_open(&storm.guest, 0);
    umdev_protect_client *tracker =
        umdev_protect_client_new(storm.guest.protector, UMDEV_PROTECT_TRACK, NULL, NULL, NULL);
    uint64_t pages[8], found[8], failed;
    for (unsigned i = 0; i < 8; i++)
        pages[i] = page_of(&storm.guest, i);
    CHECK(umdev_protect_client_arm(tracker, pages, 8, &failed) == 0);
    pthread_t writers[3], clients[2];
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&clients[i], NULL, storm_clients, &storm) == 0);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&writers[i], NULL, storm_writer, &storm) == 0);
    uint64_t seen[8] = {0};
    for (int i = 0; i < 200; i++) {
        int64_t count = umdev_protect_client_collect(tracker, found, 8);
        CHECK(count >= 0);
        for (int64_t k = 0; k < count; k++)
            seen[(found[k] - pages[0]) / PAGE] = device_load(&storm.guest, (unsigned)((found[k] - pages[0]) / PAGE));
        usleep(100);
    }
    for (int i = 0; i < 3; i++)
        pthread_join(writers[i], NULL);
    atomic_store(&storm.stop, 1);
    for (int i = 0; i < 2; i++)
        pthread_join(clients[i], NULL);
    int64_t count = umdev_protect_client_collect(tracker, found, 8);
    for (int64_t k = 0; k < count; k++)
        seen[(found[k] - pages[0]) / PAGE] = device_load(&storm.guest, (unsigned)((found[k] - pages[0]) / PAGE));
    for (unsigned i = 0; i < 8; i++) {
        CHECK(device_load(&storm.guest, i) == 3 * 2000 / 8);
        CHECK(seen[i] == 3 * 2000 / 8); /* TRACK has missed none */
    }
    umdev_protect_client_free(tracker);
    guest_close(&storm.guest);
}

/* The guest's end while a store is blocked, from another thread and from the notification itself. */
struct ending {
    struct guest guest;
    umdev_protect_client *client;
    int inside;
    _Atomic int entered;
    _Atomic int leave;
    _Atomic int left;
};

static void ending_told(void *context, uint64_t address)
{
    struct ending *ending = context;
    (void)address;
    atomic_store(&ending->entered, 1);
    if (ending->inside) {
        umdev_protect_client_free(ending->client);
        umdev_protector_free(ending->guest.protector);
    } else {
        while (!atomic_load(&ending->leave))
            usleep(100);
    }
    atomic_store(&ending->left, 1);
}

static void *ending_store(void *argument)
{
    struct ending *ending = argument;
    store(&ending->guest, 1, 77);
    return NULL;
}

static void test_ending(int inside)
{
    struct ending ending = {.inside = inside};
    guest_open(&ending.guest, 0);
    ending.client =
        umdev_protect_client_new(ending.guest.protector, UMDEV_PROTECT_TRAP, NULL, ending_told, &ending);
    uint64_t page = page_of(&ending.guest, 1), failed;
    CHECK(umdev_protect_client_arm(ending.client, &page, 1, &failed) == 0);
    pthread_t writer;
    CHECK(pthread_create(&writer, NULL, ending_store, &ending) == 0);
    while (!atomic_load(&ending.entered))
        usleep(100);
    if (!inside) {
        atomic_store(&ending.leave, 1);
        umdev_protector_free(ending.guest.protector);
        CHECK(umdev_protect_client_arm(ending.client, &page, 1, &failed) == -ESRCH);
        umdev_protect_client_free(ending.client);
    }
    pthread_join(writer, NULL);
    CHECK(atomic_load(&ending.left)); /* the store has waited for the notification */
    CHECK(device_load(&ending.guest, 1) == 77);
    guest_unmap(&ending.guest);
}

/* A client is closed while other threads are in calls with it. */
static void *closed_user(void *argument)
{
    struct storm *storm = argument;
    umdev_protect_client *client = storm->client;
    uint64_t pages[8], failed;
    for (unsigned i = 0; i < 8; i++)
        pages[i] = page_of(&storm->guest, i);
    for (;;) {
        int result = umdev_protect_client_arm(client, pages, 8, &failed);
        CHECK(result == 0 || result == -ESRCH);
        int64_t count = umdev_protect_client_collect(client, pages, 8);
        CHECK(count >= 0 || count == -ESRCH);
        umdev_protect_client_disarm(client, pages, 1);
        if (count < 0) {
            CHECK(umdev_protect_client_pages(client) == 0);
            return NULL;
        }
    }
}

static void test_close_in_use(void)
{
    struct storm used = {0};
    guest_open(&used.guest, 0);
    used.client = umdev_protect_client_new(used.guest.protector, UMDEV_PROTECT_TRACK, NULL, NULL, NULL);
    pthread_t users[2];
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&users[i], NULL, closed_user, &used) == 0);
    usleep(2000);
    umdev_protect_client_close(used.client);
    umdev_protect_client_close(used.client);
    for (int i = 0; i < 2; i++)
        pthread_join(users[i], NULL);
    umdev_protect_client_free(used.client);
    guest_close(&used.guest);
}

/* The guest ends while a notification waits for a device lock that the one who ends it holds. */
static void test_free_under_lock(void)
{
    struct ending ending = {0};
    umdev_device *device = umdev_device_new();
    guest_open(&ending.guest, 0);
    ending.client =
        umdev_protect_client_new(ending.guest.protector, UMDEV_PROTECT_TRAP, device, ending_told, &ending);
    uint64_t page = page_of(&ending.guest, 1), failed;
    CHECK(umdev_protect_client_arm(ending.client, &page, 1, &failed) == 0);
    CHECK(umdev_device_lock(device) == 0);
    pthread_t writer;
    CHECK(pthread_create(&writer, NULL, ending_store, &ending) == 0);
    while (!umdev_protector_faults(ending.guest.protector))
        usleep(100);
    umdev_protector_free(ending.guest.protector);
    pthread_join(writer, NULL);
    umdev_device_unlock(device);
    CHECK(!atomic_load(&ending.entered) && device_load(&ending.guest, 1) == 77);
    umdev_protect_client_free(ending.client);
    umdev_device_free(device);
    guest_unmap(&ending.guest);
}

/* The kernel refuses a page: nothing is armed, and nothing that was stored to is forgotten. */
static void test_refused(void)
{
    struct guest guest;
    guest_open(&guest, 0);
    struct listener one = {.guest = &guest};
    one.client = umdev_protect_client_new(guest.protector, UMDEV_PROTECT_TRAP, NULL, listen, &one);
    umdev_protect_client *track = umdev_protect_client_new(guest.protector, UMDEV_PROTECT_TRACK, NULL, NULL, NULL);
    uint64_t pages[] = {page_of(&guest, 2), page_of(&guest, 20), page_of(&guest, 30)}, found[PAGES], failed;
    CHECK(umdev_protect_client_arm(track, pages, 3, &failed) == 0);
    store(&guest, 2, 1);
    store(&guest, 20, 1);
    CHECK(munmap((void *)(uintptr_t)pages[1], PAGE) == 0);
    CHECK(umdev_protect_client_arm(one.client, pages, 3, &failed) < 0);
    CHECK(umdev_protect_client_pages(one.client) == 0);
    store(&guest, 2, 2);
    CHECK(one.calls == 0);
    CHECK(umdev_protect_client_arm(one.client, pages, 1, &failed) == 0);
    store(&guest, 2, 3);
    CHECK(one.calls == 1);
    CHECK(umdev_protect_client_collect(track, found, PAGES) < 0);
    CHECK(umdev_protect_client_disarm(track, pages + 1, 1) <= 0);
    CHECK(umdev_protect_client_collect(track, found, PAGES) == 1 && found[0] == pages[0]);
    umdev_protect_client_free(one.client);
    umdev_protect_client_free(track);
    guest_close(&guest);
}

/* Memory is being discarded: the thread that does it waits for its message to be read, and the kernel arms nothing
 * meanwhile. Here nobody but the one who arms can read it. */
static void *discard(void *argument)
{
    CHECK(madvise(argument, PAGE, MADV_REMOVE) == 0);
    return NULL;
}

static void test_discarded_meanwhile(int asynchronous)
{
    struct guest guest;
    pthread_t discarder;
    guest_open(&guest, asynchronous);
    umdev_protector *protector = guest.protector;
    int mode = asynchronous ? UMDEV_PROTECT_TRACK : UMDEV_PROTECT_TRAP;
    struct listener one = {.guest = &guest};
    one.client = umdev_protect_client_new(protector, mode, NULL, listen, &one);
    uint64_t pages[] = {page_of(&guest, 4), page_of(&guest, 5)}, found[PAGES], failed;
    CHECK(umdev_protect_client_arm(one.client, pages, 1, &failed) == 0);
    pthread_mutex_lock(&protector->lock);
    CHECK(pthread_create(&discarder, NULL, discard, (void *)(uintptr_t)pages[0]) == 0);
    struct pollfd waiting = {.fd = protector->userfault, .events = POLLIN};
    CHECK(poll(&waiting, 1, -1) == 1);
    CHECK(umdev_protect_set(protector, pages[1], PAGE, 1) == 0);
    CHECK(umdev_bit(one.client->bits[0].dirty, 4));
    pthread_mutex_unlock(&protector->lock);
    pthread_join(discarder, NULL);
    if (asynchronous) {
        CHECK(umdev_protect_client_collect(one.client, found, PAGES) == 1 && found[0] == pages[0]);
    } else {
        while (!atomic_load(&one.calls))
            usleep(100);
        CHECK(one.address == pages[0]);
    }
    umdev_protect_client_free(one.client);
    guest_close(&guest);
}

/* One thread arms and disarms, another one discards: each discarded page is told of, whoever has read of it. */
static void *arm_often(void *argument)
{
    struct storm *storm = argument;
    uint64_t page = page_of(&storm->guest, 5), failed;
    while (!atomic_load(&storm->stop)) {
        CHECK(umdev_protect_client_arm(storm->client, &page, 1, &failed) == 0);
        CHECK(umdev_protect_client_disarm(storm->client, &page, 1) == 0);
    }
    return NULL;
}

static void test_discards_are_told(void)
{
    struct storm storm = {0};
    pthread_t armer;
    guest_open(&storm.guest, 0);
    storm.client = umdev_protect_client_new(storm.guest.protector, UMDEV_PROTECT_TRAP, NULL, storm_told, &storm);
    CHECK(pthread_create(&armer, NULL, arm_often, &storm) == 0);
    uint64_t page = page_of(&storm.guest, 4), failed;
    for (unsigned i = 0; i < 300; i++) {
        CHECK(umdev_protect_client_arm(storm.client, &page, 1, &failed) == 0);
        CHECK(madvise((void *)(uintptr_t)page, PAGE, MADV_REMOVE) == 0);
        while (atomic_load(&storm.told) == i)
            sched_yield();
    }
    atomic_store(&storm.stop, 1);
    pthread_join(armer, NULL);
    umdev_protect_client_free(storm.client);
    guest_close(&storm.guest);
}

/* A child of the process has no part in the protection, and lets go of nothing. One thread is in a notification. */
static void in_child(struct ending *ending)
{
    umdev_protector *protector = ending->guest.protector;
    uint64_t page = page_of(&ending->guest, 2), failed;
    alarm(60); /* it would wait for ever */
    CHECK(fcntl(protector->userfault, F_GETFD) == -1 && protector->stop == -1);
    CHECK(umdev_protect_client_arm(ending->client, &page, 1, &failed) == -ESRCH);
    CHECK(umdev_protect_client_disarm(ending->client, &page, 1) == 0);
    CHECK(umdev_protector_register(protector, page, PAGE) == -ESRCH);
    umdev_protect_client_close(ending->client);
    umdev_protector_free(protector);
    umdev_protect_client_free(ending->client);
    _exit(0);
}

static void test_fork(void)
{
    struct ending ending = {0};
    guest_open(&ending.guest, 0);
    ending.client =
        umdev_protect_client_new(ending.guest.protector, UMDEV_PROTECT_TRAP, NULL, ending_told, &ending);
    uint64_t pages[] = {page_of(&ending.guest, 1), page_of(&ending.guest, 2)}, failed;
    CHECK(umdev_protect_client_arm(ending.client, pages, 2, &failed) == 0);
    pthread_t writer;
    CHECK(pthread_create(&writer, NULL, ending_store, &ending) == 0);
    while (!atomic_load(&ending.entered))
        usleep(100);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        in_child(&ending);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(umdev_protect_client_pages(ending.client) == 1 && !atomic_load(&ending.left));
    atomic_store(&ending.leave, 1);
    pthread_join(writer, NULL);
    atomic_store(&ending.left, 0);
    store(&ending.guest, 2, 5);
    CHECK(atomic_load(&ending.left));
    umdev_protect_client_free(ending.client);
    guest_close(&ending.guest);
}

static void test_busy(void)
{
    struct guest guest;
    guest_open(&guest, 0);
    umdev_protector *second = umdev_protector_new(open_userfault(0), -1, 0);
    CHECK(second);
    CHECK(umdev_protector_register(second, page_of(&guest, 0), PAGES * PAGE) == -EBUSY);
    umdev_protector_free(second);
    guest_close(&guest);
}

int main(void)
{
    need_userfault();
    test_trap();
    test_track(0);
    int userfault = open_userfault(1);
    if (userfault >= 0) {
        close(userfault);
        test_track(1);
        test_discarded_meanwhile(1);
    }
    test_discarded_meanwhile(0);
    test_discards_are_told();
    test_close_in_use();
    test_free_under_lock();
    test_refused();
    test_busy();
    test_fork();
    test_ending(0);
    test_ending(1);
    test_storm();
    puts("ok");
    return 0;
}
