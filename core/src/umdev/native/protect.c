/* protect: who wants to know of stores to which page. */
#define _GNU_SOURCE
#include "protect_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

int umdev_protect_find(const umdev_protector *protector, uint64_t address)
{
    for (int slot = 0; slot < UMDEV_PROTECT_RANGES_MAX; slot++) {
        const struct umdev_protect_range *range = &protector->ranges[slot];
        if (address - range->address < range->pages * UMDEV_PAGE)
            return slot;
    }
    return -1;
}

bool umdev_protect_wanted(const umdev_protector *protector, int slot, uint64_t page)
{
    for (const umdev_protect_client *client = protector->clients; client; client = client->next)
        if (umdev_bit(client->bits[slot].watched, page) && !umdev_bit(client->bits[slot].dirty, page))
            return true;
    return false;
}

umdev_protector *umdev_protector_new(int userfault, int pagemap, int asynchronous)
{
    umdev_protector *protector = calloc(1, sizeof(*protector));
    int error = ENOMEM;
    if (protector) {
        pthread_mutex_init(&protector->lock, NULL);
        pthread_cond_init(&protector->quiet, NULL);
        protector->userfault = userfault;
        protector->pagemap = pagemap;
        protector->asynchronous = asynchronous;
        protector->references = 1;
        protector->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        protector->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
        error = protector->stop < 0 || protector->timer < 0 ? errno : 0;
        if (!error) {
            pthread_mutex_lock(&protector->lock);
            error = -umdev_protect_start(protector);
            pthread_mutex_unlock(&protector->lock);
        }
        if (!error) {
            umdev_protect_list(protector);
            return protector;
        }
        if (protector->stop >= 0)
            close(protector->stop);
        if (protector->timer >= 0)
            close(protector->timer);
        pthread_cond_destroy(&protector->quiet);
        pthread_mutex_destroy(&protector->lock);
        free(protector);
    }
    close(userfault);
    if (pagemap >= 0)
        close(pagemap);
    errno = error;
    return NULL;
}

void umdev_protect_unref(umdev_protector *protector)
{
    bool last = --protector->references == 0;
    pthread_mutex_unlock(&protector->lock);
    if (!last)
        return;
    umdev_protect_unlist(protector);
    close(protector->stop);
    close(protector->timer);
    pthread_cond_destroy(&protector->quiet);
    pthread_mutex_destroy(&protector->lock);
    free(protector);
}

void umdev_protect_let_go(umdev_protector *protector)
{
    if (protector->userfault >= 0)
        close(protector->userfault);
    if (protector->pagemap >= 0)
        close(protector->pagemap);
    protector->userfault = protector->pagemap = -1;
    protector->lost = true;
}

void umdev_protector_free(umdev_protector *protector)
{
    if (!protector)
        return;
    uint64_t page;
    bool inside = umdev_protect_inside(protector, &page);
    pthread_mutex_lock(&protector->lock);
    protector->lost = true;
    protector->free_later = inside;
    if (inside) {
        eventfd_write(protector->stop, 1);
        pthread_mutex_unlock(&protector->lock);
        return;
    }
    umdev_protect_stop(protector);
    umdev_protect_let_go(protector);
    umdev_protect_unref(protector);
}

int umdev_protector_asynchronous(umdev_protector *protector)
{
    pthread_mutex_lock(&protector->lock);
    int asynchronous = protector->asynchronous;
    pthread_mutex_unlock(&protector->lock);
    return asynchronous;
}

uint64_t umdev_protector_faults(umdev_protector *protector)
{
    pthread_mutex_lock(&protector->lock);
    uint64_t faults = protector->faults;
    pthread_mutex_unlock(&protector->lock);
    return faults;
}

int umdev_protector_upgrade(umdev_protector *protector, int userfault)
{
    pthread_mutex_lock(&protector->lock);
    int result = protector->lost ? -ESRCH : protector->asynchronous ? 0 : -EALREADY;
    if (result) {
        close(userfault);
        pthread_mutex_unlock(&protector->lock);
        return result;
    }
    /* A mapping has one userfaultfd at a time, and it has that until nobody polls it. No notification is waited for:
     * an asynchronous protector has none. */
    protector->pausing = true;
    umdev_protect_stop(protector);
    protector->pausing = false;
    close(protector->userfault);
    close(protector->pagemap);
    protector->userfault = userfault;
    protector->pagemap = -1;
    protector->asynchronous = false;
    for (int slot = 0; slot < UMDEV_PROTECT_RANGES_MAX && !result; slot++) {
        const struct umdev_protect_range *range = &protector->ranges[slot];
        if (range->pages)
            result = umdev_userfault_register(userfault, range->address, range->pages * UMDEV_PAGE);
        for (umdev_protect_client *client = protector->clients; client; client = client->next)
            if (client->bits[slot].watched)
                memcpy(client->bits[slot].dirty, client->bits[slot].watched, (range->pages + 63) / 64 * 8);
    }
    if (!result)
        result = umdev_protect_start(protector);
    if (result)
        umdev_protect_let_go(protector);
    pthread_mutex_unlock(&protector->lock);
    return result;
}

int umdev_protector_register(umdev_protector *protector, uint64_t address, uint64_t length)
{
    if (length == 0 || (address | length) % UMDEV_PAGE || address + length < address)
        return -EINVAL;
    pthread_mutex_lock(&protector->lock);
    int result = protector->lost ? -ESRCH : -ENOSPC;
    for (int slot = 0; slot < UMDEV_PROTECT_RANGES_MAX && result == -ENOSPC; slot++) {
        struct umdev_protect_range *range = &protector->ranges[slot];
        if (range->pages)
            continue;
        result = umdev_userfault_register(protector->userfault, address, length);
        if (!result)
            *range = (struct umdev_protect_range){.address = address, .pages = length / UMDEV_PAGE};
    }
    pthread_mutex_unlock(&protector->lock);
    return result;
}

static void client_forget(umdev_protect_client *client, int slot, uint64_t pages)
{
    struct umdev_protect_bits *bits = &client->bits[slot];
    for (uint64_t word = 0; bits->watched && word < (pages + 63) / 64; word++) {
        client->watching -= (uint64_t)__builtin_popcountll(bits->watched[word]);
        if (client->mode == UMDEV_PROTECT_TRAP)
            client->due.pages -= (uint64_t)__builtin_popcountll(bits->dirty[word]);
    }
    free(bits->watched);
    free(bits->dirty);
    *bits = (struct umdev_protect_bits){0};
}

int umdev_protector_unregister(umdev_protector *protector, uint64_t address)
{
    pthread_mutex_lock(&protector->lock);
    int slot = umdev_protect_find(protector, address);
    if (slot >= 0) {
        struct umdev_protect_range *range = &protector->ranges[slot];
        for (umdev_protect_client *client = protector->clients; client; client = client->next)
            client_forget(client, slot, range->pages);
        /* It fails when the mapping is gone already; that is what was asked for. Stores that wait go on in any case. */
        if (umdev_userfault_unregister(protector->userfault, range->address, range->pages * UMDEV_PAGE))
            umdev_userfault_wake(protector->userfault, range->address, range->pages * UMDEV_PAGE);
        *range = (struct umdev_protect_range){0};
    }
    pthread_mutex_unlock(&protector->lock);
    return slot < 0 ? -ENOENT : 0;
}

umdev_protect_client *umdev_protect_client_new(umdev_protector *protector, int mode, umdev_device *device,
                                               umdev_page_notify notify, void *context)
{
    umdev_protect_client *client = calloc(1, sizeof(*client));
    if (!client) {
        errno = ENOMEM;
        return NULL;
    }
    client->protector = protector;
    client->mode = mode;
    client->device = device;
    client->notify = notify;
    client->context = context;
    client->references = 1;
    pthread_mutex_lock(&protector->lock);
    protector->references++;
    client->next = protector->clients;
    protector->clients = client;
    pthread_mutex_unlock(&protector->lock);
    return client;
}

/* With the lock held: pages that nobody else waits for become writable. */
static void client_drop(umdev_protect_client *client, int slot, uint64_t page, struct umdev_protect_run *run)
{
    umdev_protector *protector = client->protector;
    struct umdev_protect_bits *bits = &client->bits[slot];
    uint64_t address = protector->ranges[slot].address + page * UMDEV_PAGE;
    bool due = client->mode == UMDEV_PROTECT_TRAP && umdev_bit(bits->dirty, page);
    umdev_bit_clear(bits->watched, page);
    umdev_bit_clear(bits->dirty, page);
    client->watching--;
    if (due) {
        client->due.pages--;
        umdev_protect_settle(protector, address); /* a store waits for just this */
    } else if (!umdev_protect_held(protector, slot, page) && !umdev_protect_wanted(protector, slot, page)) {
        umdev_protect_run_add(run, address, 1);
    }
}

/* With the lock held, which is dropped while a notification runs. */
static void client_shut(umdev_protect_client *client)
{
    umdev_protector *protector = client->protector;
    uint64_t told;
    bool inside = umdev_protect_inside(protector, &told) == client;
    client->closed = true;
    /* A notification holds the device lock: whoever holds that lock has none to wait for. */
    while (client->due.telling && !inside)
        pthread_cond_wait(&protector->quiet, &protector->lock);
    struct umdev_protect_run run = {.protector = protector};
    for (int slot = 0; slot < UMDEV_PROTECT_RANGES_MAX; slot++) {
        const struct umdev_protect_range *range = &protector->ranges[slot];
        for (uint64_t page = 0; client->bits[slot].watched && page < range->pages; page++)
            if (umdev_bit(client->bits[slot].watched, page))
                client_drop(client, slot, page, &run);
        client_forget(client, slot, range->pages);
    }
    umdev_protect_run_flush(&run);
    umdev_protect_client **link = &protector->clients;
    while (*link && *link != client)
        link = &(*link)->next;
    if (*link)
        *link = client->next;
}

void umdev_protect_client_close(umdev_protect_client *client)
{
    pthread_mutex_lock(&client->protector->lock);
    client_shut(client);
    pthread_mutex_unlock(&client->protector->lock);
}

void umdev_protect_client_unref(umdev_protect_client *client)
{
    if (--client->references == 0)
        free(client);
}

void umdev_protect_client_free(umdev_protect_client *client)
{
    if (!client)
        return;
    umdev_protector *protector = client->protector;
    pthread_mutex_lock(&protector->lock);
    client_shut(client);
    umdev_protect_client_unref(client);
    umdev_protect_unref(protector);
}

static int client_bits(umdev_protect_client *client, int slot, uint64_t pages)
{
    struct umdev_protect_bits *bits = &client->bits[slot];
    if (bits->watched)
        return 0;
    bits->watched = calloc((pages + 63) / 64, 8);
    bits->dirty = calloc((pages + 63) / 64, 8);
    if (bits->watched && bits->dirty)
        return 0;
    client_forget(client, slot, 0);
    return -ENOMEM;
}

/* Pages of a list that are next to each other, in one range. */
struct stretch {
    uint32_t length; /* in the list */
    int slot;        /* -1: the first of them is in no range */
    uint64_t page;   /* of the range */
};

/* The stretch that a list begins with: a batch is mostly one. */
static struct stretch stretch_find(const umdev_protector *protector, const uint64_t *pages, uint32_t count)
{
    struct stretch found = {.length = 1, .slot = umdev_protect_find(protector, pages[0])};
    if (found.slot < 0)
        return found;
    const struct umdev_protect_range *range = &protector->ranges[found.slot];
    found.page = (pages[0] - range->address) / UMDEV_PAGE;
    uint32_t most = range->pages - found.page < count ? (uint32_t)(range->pages - found.page) : count;
    while (found.length < most && pages[found.length] == pages[0] + (uint64_t)found.length * UMDEV_PAGE)
        found.length++;
    return found;
}

/* Nothing has changed unless all pages can be armed. */
static int client_check(umdev_protect_client *client, const uint64_t *pages, uint32_t count, uint64_t *failed)
{
    umdev_protector *protector = client->protector;
    if (protector->lost || client->closed)
        return -ESRCH;
    uint64_t told, forbidden = UINT64_MAX; /* that is in no range */
    if (client->mode == UMDEV_PROTECT_TRAP && umdev_protect_inside(protector, &told))
        forbidden = told;
    for (uint32_t i = 0; i < count;) {
        struct stretch stretch = stretch_find(protector, pages + i, count - i);
        bool stuck = forbidden - pages[i] < (uint64_t)stretch.length * UMDEV_PAGE; /* a store that could never land */
        int result = pages[i] % UMDEV_PAGE ? -EINVAL
                     : stretch.slot < 0    ? -EFAULT
                     : stuck               ? -EBUSY
                                           : client_bits(client, stretch.slot, protector->ranges[stretch.slot].pages);
        if (result) {
            *failed = stuck ? forbidden : pages[i];
            return result;
        }
        i += stretch.length;
    }
    return 0;
}

int umdev_protect_client_arm(umdev_protect_client *client, const uint64_t *pages, uint32_t count, uint64_t *failed)
{
    umdev_protector *protector = client->protector;
    pthread_mutex_lock(&protector->lock);
    int result = client_check(client, pages, count, failed);
    struct umdev_protect_run run = {.protector = protector, .on = 1};
    for (uint32_t i = 0; i < count && !result;) {
        struct stretch stretch = stretch_find(protector, pages + i, count - i);
        const uint64_t *watched = client->bits[stretch.slot].watched;
        uint64_t end = stretch.page + stretch.length;
        /* What is watched is armed, or tracked and waiting to be collected. */
        for (uint64_t first = umdev_bit_next_clear(watched, stretch.page, end); first < end && !result;) {
            uint64_t last = umdev_bit_next_set(watched, first, end);
            result = umdev_protect_run_add(&run, pages[i] + (first - stretch.page) * UMDEV_PAGE, last - first);
            first = umdev_bit_next_clear(watched, last, end);
        }
        i += stretch.length;
    }
    if (!result)
        result = umdev_protect_run_flush(&run);
    /* Only now: what could not be armed is not called armed, and what the kernel protects in vain it gives up again. */
    for (uint32_t i = 0; i < count && !result;) {
        struct stretch stretch = stretch_find(protector, pages + i, count - i);
        client->watching += umdev_bit_set_run(client->bits[stretch.slot].watched, stretch.page,
                                              stretch.page + stretch.length);
        i += stretch.length;
    }
    pthread_mutex_unlock(&protector->lock);
    return result;
}

int umdev_protect_client_disarm(umdev_protect_client *client, const uint64_t *pages, uint32_t count)
{
    umdev_protector *protector = client->protector;
    pthread_mutex_lock(&protector->lock);
    struct umdev_protect_run run = {.protector = protector};
    for (uint32_t i = 0; i < count; i++) {
        int slot = umdev_protect_find(protector, pages[i]);
        if (slot < 0)
            continue;
        uint64_t page = (pages[i] - protector->ranges[slot].address) / UMDEV_PAGE;
        if (umdev_bit(client->bits[slot].watched, page))
            client_drop(client, slot, page, &run);
    }
    int result = protector->lost ? 0 : umdev_protect_run_flush(&run);
    pthread_mutex_unlock(&protector->lock);
    return result;
}

uint64_t umdev_protect_client_pages(umdev_protect_client *client)
{
    pthread_mutex_lock(&client->protector->lock);
    uint64_t pages = client->watching;
    pthread_mutex_unlock(&client->protector->lock);
    return pages;
}
