/* What a domain's processors share: tables of what decodes, and how all of it ends. */
#include "internal.h"

#include <sched.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

static _Thread_local const umdev_xen_vcpu *own; /* the processor whose step this thread is in */

void umdev_xen_step_begin(umdev_xen_vcpu *vcpu)
{
    own = vcpu;
    atomic_fetch_add(&vcpu->passes, 1);
}

void umdev_xen_step_end(umdev_xen_vcpu *vcpu)
{
    atomic_fetch_add(&vcpu->passes, 1);
    own = NULL;
}

umdev_xen *umdev_xen_new(const umdev_api *api, const umdev_xen_calls *calls, uint16_t id, void *page)
{
    umdev_xen *domain = calloc(1, sizeof *domain);
    if (!domain)
        return NULL;
    domain->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (domain->stop < 0) {
        free(domain);
        return NULL;
    }
    domain->api = api;
    domain->calls = *calls;
    domain->id = id;
    domain->page = page;
    pthread_mutex_init(&domain->tables, NULL);
    pthread_mutex_init(&domain->cache, NULL);
    pthread_mutex_init(&domain->answers, NULL);
    return domain;
}

void umdev_xen_free(umdev_xen *domain)
{
    if (!domain)
        return;
    umdev_xen_forget(domain);
    for (uint32_t i = 0; i < domain->vcpu_count; i++)
        free(domain->vcpus[i]);
    for (int io = 0; io < 2; io++)
        free(domain->ranges[io].items);
    free(domain->emulated.frames);
    free(domain->landed.bits);
    close(domain->stop);
    pthread_mutex_destroy(&domain->answers);
    pthread_mutex_destroy(&domain->cache);
    pthread_mutex_destroy(&domain->tables);
    free(domain);
}

void umdev_xen_read_counters(umdev_xen *domain, umdev_xen_counters *ret)
{
    *ret = (umdev_xen_counters){
        .requests = atomic_load(&domain->requests),
        .accesses = atomic_load(&domain->accesses),
        .unclaimed = atomic_load(&domain->unclaimed),
        .malformed = atomic_load(&domain->malformed),
        .unreachable = atomic_load(&domain->unreachable),
        .messages = atomic_load(&domain->messages),
        .lost = atomic_load(&domain->lost),
        .stores = atomic_load(&domain->stores),
    };
}

static int by_start(const void *left, const void *right)
{
    const umdev_xen_range *a = left, *b = right;
    return a->start < b->start ? -1 : a->start > b->start;
}

int umdev_xen_publish(umdev_xen *domain, const umdev_xen_range *ranges, uint32_t count)
{
    umdev_xen_range *items[2];
    uint32_t counts[2] = {0, 0};
    for (int io = 0; io < 2; io++) {
        items[io] = calloc(count + 1, sizeof **items);
        for (uint32_t i = 0; items[io] && i < count; i++)
            if ((ranges[i].io != 0) == io)
                items[io][counts[io]++] = ranges[i];
        if (items[io])
            qsort(items[io], counts[io], sizeof **items, by_start);
    }
    int result = items[0] && items[1] ? 0 : -ENOMEM;
    for (int io = 0; io < 2 && !result; io++)
        for (uint32_t i = 1; i < counts[io]; i++)
            if (items[io][i].start - items[io][i - 1].start < items[io][i - 1].length)
                result = -EEXIST;
    if (!result) {
        pthread_mutex_lock(&domain->tables);
        for (int io = 0; io < 2; io++) {
            umdev_xen_range *old = domain->ranges[io].items;
            domain->ranges[io].items = items[io];
            domain->ranges[io].count = counts[io];
            items[io] = old;
        }
        pthread_mutex_unlock(&domain->tables);
    }
    free(items[0]);
    free(items[1]);
    return result;
}

bool umdev_xen_find(umdev_xen *domain, bool io, uint64_t address, uint32_t length, umdev_xen_range *ret)
{
    pthread_mutex_lock(&domain->tables);
    const umdev_xen_range *items = domain->ranges[io].items;
    uint32_t low = 0, high = domain->ranges[io].count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (items[middle].start <= address)
            low = middle + 1;
        else
            high = middle;
    }
    bool found = low > 0;
    if (found) {
        uint64_t offset = address - items[low - 1].start;
        found = offset < items[low - 1].length && length <= items[low - 1].length - offset;
        *ret = items[low - 1];
    }
    pthread_mutex_unlock(&domain->tables);
    return found;
}

int umdev_xen_set_function(umdev_xen *domain, uint32_t slot, umdev_device *device)
{
    if (slot == 0 || slot >= UMDEV_XEN_FUNCTIONS)
        return -EINVAL;
    atomic_store(&domain->functions[slot], device);
    return 0;
}

void umdev_xen_set_bridge(umdev_xen *domain, int present)
{
    atomic_store(&domain->bridge, present != 0);
}

int umdev_xen_set_emulated(umdev_xen *domain, const uint64_t *frames, uint32_t count)
{
    uint64_t *copy = calloc(count + 1, sizeof *copy);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, frames, count * sizeof *copy);
    pthread_mutex_lock(&domain->tables);
    uint64_t *old = domain->emulated.frames;
    domain->emulated.frames = copy;
    domain->emulated.count = count;
    pthread_mutex_unlock(&domain->tables);
    if (count)
        atomic_store(&domain->emulating, true);
    free(old);
    return 0;
}

static int by_frame(const void *left, const void *right)
{
    const uint64_t *a = left, *b = right;
    return *a < *b ? -1 : *a > *b;
}

bool umdev_xen_is_emulated(umdev_xen *domain, uint64_t address)
{
    if (!atomic_load(&domain->emulating))
        return false;
    const uint64_t frame = address / UMDEV_XEN_PAGE;
    pthread_mutex_lock(&domain->tables);
    const void *found =
        domain->emulated.count
            ? bsearch(&frame, domain->emulated.frames, domain->emulated.count, sizeof frame, by_frame)
            : NULL;
    pthread_mutex_unlock(&domain->tables);
    return found != NULL;
}

void umdev_xen_drain(umdev_xen *domain)
{
    for (uint32_t i = 0; i < domain->vcpu_count; i++) {
        umdev_xen_vcpu *vcpu = domain->vcpus[i];
        uint64_t seen = atomic_load(&vcpu->passes);
        while (vcpu != own && (seen & 1) && atomic_load(&vcpu->passes) == seen)
            sched_yield();
    }
}

void umdev_xen_stop(umdev_xen *domain)
{
    const uint64_t one = 1;
    atomic_store(&domain->stopping, true);
    ssize_t written = write(domain->stop, &one, sizeof one);
    (void)written; /* EAGAIN: it has been written before, and nobody ever reads it */
}
