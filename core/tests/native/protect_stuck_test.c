/* Write-protection by userfaultfd while a client takes its time. */
#define _GNU_SOURCE
#include "protect_fixture.h"

enum { MANY = 4 * UMDEV_PROTECT_MESSAGES_MAX };

/* A client whose notifications end when it is let go, and another one: stores to the pages of the second don't wait for
 * the first, and a page of both waits for both. */
struct stuck {
    struct guest guest;
    umdev_protect_client *client;
    _Atomic int leave;
    _Atomic unsigned entered, told;
    _Atomic unsigned counts[MANY];
};

static void stuck_told(void *context, uint64_t address)
{
    struct stuck *stuck = context;
    atomic_fetch_add(&stuck->entered, 1);
    while (!atomic_load(&stuck->leave))
        usleep(100);
    atomic_fetch_add(&stuck->counts[(address - page_of(&stuck->guest, 0)) / PAGE], 1);
    atomic_fetch_add(&stuck->told, 1);
}

struct stuck_store {
    struct guest *guest;
    unsigned page;
    _Atomic int landed;
    pthread_t thread;
};

static void *stuck_store(void *argument)
{
    struct stuck_store *self = argument;
    store(self->guest, self->page, 5);
    atomic_store(&self->landed, 1);
    return NULL;
}

static void begin_store(struct stuck_store *self, struct guest *guest, unsigned page)
{
    *self = (struct stuck_store){.guest = guest, .page = page};
    CHECK(pthread_create(&self->thread, NULL, stuck_store, self) == 0);
}

static void stuck_client(struct stuck *stuck, struct guest *guest, umdev_device *device, const unsigned *numbers,
                         unsigned count)
{
    uint64_t page, failed;
    stuck->guest = *guest;
    stuck->client = umdev_protect_client_new(guest->protector, UMDEV_PROTECT_TRAP, device, stuck_told, stuck);
    for (unsigned i = 0; i < count; i++) {
        page = page_of(guest, numbers[i]);
        CHECK(umdev_protect_client_arm(stuck->client, &page, 1, &failed) == 0);
    }
}

static void await(_Atomic unsigned *counter, unsigned value)
{
    while (atomic_load(counter) < value)
        usleep(100);
}

static void test_stuck_clients(void)
{
    enum { STUCK = 3, BOTH = 20, OWN = 21 };
    static struct stuck stuck[STUCK], quick;
    struct stuck_store stores[2 * STUCK + 1];
    struct guest guest;
    guest_open(&guest, 0);
    for (unsigned i = 0; i < STUCK; i++)
        stuck_client(&stuck[i], &guest, NULL, (unsigned[]){2 * i, 2 * i + 1, BOTH}, i ? 2 : 3);
    quick.leave = 1;
    stuck_client(&quick, &guest, NULL, (unsigned[]){BOTH, OWN}, 2);
    for (unsigned i = 0; i < STUCK; i++) {
        begin_store(&stores[2 * i], &guest, 2 * i);
        await(&stuck[i].entered, 1);
        begin_store(&stores[2 * i + 1], &guest, 2 * i + 1); /* for the same client: after the first */
        store(&guest, OWN, i + 1);
        CHECK(device_load(&guest, OWN) == i + 1);
        uint64_t page = page_of(&guest, OWN), failed;
        CHECK(umdev_protect_client_arm(quick.client, &page, 1, &failed) == 0);
    }
    CHECK(quick.told == STUCK && !stores[0].landed && !stores[4].landed);
    begin_store(&stores[2 * STUCK], &guest, BOTH);
    await(&quick.told, STUCK + 1);
    CHECK(device_load(&guest, BOTH) == 0 && !stores[2 * STUCK].landed);
    for (unsigned i = 0; i < STUCK; i++) {
        CHECK(stuck[i].entered == 1 && stuck[i].told == 0);
        stuck[i].leave = 1;
    }
    umdev_protect_client_close(stuck[2].client); /* it may be told of one store, while another one waits */
    for (unsigned i = 0; i < 2 * STUCK + 1; i++) {
        pthread_join(stores[i].thread, NULL);
        CHECK(device_load(&guest, stores[i].page) == 5);
    }
    CHECK(stuck[0].told == 3 && stuck[1].told == 2 && stuck[2].told >= 1);
    for (unsigned i = 0; i < STUCK; i++)
        umdev_protect_client_free(stuck[i].client);
    store(&guest, OWN, 9);
    CHECK(quick.told == STUCK + 2);
    umdev_protect_client_free(quick.client);
    guest_close(&guest);
}

/* A notification that waits for its device's lock. */
static void test_locked_device(void)
{
    static struct stuck locked, quick;
    struct stuck_store waiting;
    struct guest guest;
    umdev_device *device = umdev_device_new();
    guest_open(&guest, 0);
    locked.leave = quick.leave = 1;
    stuck_client(&locked, &guest, device, (unsigned[]){0}, 1);
    stuck_client(&quick, &guest, NULL, (unsigned[]){1}, 1);
    CHECK(umdev_device_lock(device) == 0);
    begin_store(&waiting, &guest, 0);
    while (!umdev_protector_faults(guest.protector))
        usleep(100);
    store(&guest, 1, 4);
    CHECK(quick.told == 1 && device_load(&guest, 1) == 4 && locked.entered == 0 && device_load(&guest, 0) == 0);
    umdev_device_unlock(device);
    pthread_join(waiting.thread, NULL);
    CHECK(locked.told == 1 && device_load(&guest, 0) == 5);
    umdev_protect_client_free(locked.client);
    umdev_protect_client_free(quick.client);
    guest_close(&guest);
    umdev_device_free(device);
}

/* More pages change at once than are queued: each is told of once, and what is disarmed before its turn is not. */
static void test_many_changes(void)
{
    static struct stuck stuck;
    struct guest guest;
    struct stuck_store waiting;
    uint64_t pages[MANY], failed;
    guest_open_size(&guest, 0, (size_t)MANY * PAGE);
    for (unsigned i = 0; i < MANY; i++)
        pages[i] = page_of(&guest, i);
    stuck_client(&stuck, &guest, NULL, NULL, 0);
    CHECK(umdev_protect_client_arm(stuck.client, pages, MANY, &failed) == 0);
    begin_store(&waiting, &guest, 7);
    await(&stuck.entered, 1);
    CHECK(madvise(guest.own, (size_t)MANY * PAGE, MADV_REMOVE) == 0);
    CHECK(umdev_protect_client_disarm(stuck.client, pages + 100, 3) == 0);
    CHECK(umdev_protect_client_pages(stuck.client) == MANY - 4);
    stuck.leave = 1;
    await(&stuck.told, MANY - 3);
    pthread_join(waiting.thread, NULL);
    for (unsigned i = 0; i < MANY; i++)
        CHECK(stuck.counts[i] == (i < 100 || i > 102));
    CHECK(umdev_protect_client_pages(stuck.client) == 0);
    CHECK(umdev_protect_client_collect(stuck.client, pages, MANY) == -EPERM);
    umdev_protect_client_free(stuck.client);
    guest_close(&guest);
}

int main(void)
{
    need_userfault();
    test_stuck_clients();
    test_locked_device();
    test_many_changes();
    puts("ok");
    return 0;
}
