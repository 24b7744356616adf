/* Stores that cause no exit: doorbells by eventfd, posted stores by KVM's ring. */
#define _GNU_SOURCE
#include "internal.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

static const void *self(void)
{
    static _Thread_local char identity;
    return &identity;
}

/* Everything in the ring, in order. A handler that comes back here while its own store is being done goes on. */
void umdev_kvm_drain(umdev_kvm *machine)
{
    if (!atomic_load_explicit(&machine->posting, memory_order_relaxed))
        return;
    struct kvm_coalesced_mmio_ring *ring = machine->ring;
    if (__atomic_load_n(&ring->first, __ATOMIC_ACQUIRE) == __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE))
        return;
    if (atomic_load(&machine->ring_owner) == self())
        return;
    pthread_mutex_lock(&machine->ring_mutex);
    atomic_store(&machine->ring_owner, self());
    uint32_t first = ring->first;
    /* The kernel writes `last` while processors run; indexes stay below the ring's size whatever it holds. */
    while (first != __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE)) {
        struct kvm_coalesced_mmio entry = ring->coalesced_mmio[first];
        umdev_kvm_event event;
        umdev_kvm_count(&machine->coalesced);
        if (entry.len <= sizeof entry.data)
            umdev_kvm_dispatch(machine, NULL, false, entry.phys_addr, entry.data, entry.len, true, &event);
        first = (first + 1) % machine->ring_slots;
        __atomic_store_n(&ring->first, first, __ATOMIC_RELEASE);
    }
    atomic_store(&machine->ring_owner, NULL);
    pthread_mutex_unlock(&machine->ring_mutex);
}

int umdev_kvm_set_posted(umdev_kvm *machine, uint64_t address, uint32_t length, int enabled)
{
    struct kvm_coalesced_mmio_zone zone = {.addr = address, .size = length};
    if (!machine->ring)
        return -ENOTSUP;
    if (enabled)
        atomic_store(&machine->posting, true);
    unsigned long request = enabled ? KVM_REGISTER_COALESCED_MMIO : KVM_UNREGISTER_COALESCED_MMIO;
    return ioctl(machine->vm, request, &zone) < 0 ? -errno : 0;
}

/* What this thread is telling devices of: a handler may come back here. */
struct telling {
    const struct umdev_kvm_listener *listener;
    const struct telling *outer;
};
static _Thread_local const struct telling *telling;

static uint32_t told_here(const struct umdev_kvm_listener *listener)
{
    uint32_t count = 0;
    for (const struct telling *each = telling; each; each = each->outer)
        count += each->listener == listener;
    return count;
}

/* With the mutex held, which is dropped while the device is told. */
static void answer(umdev_kvm *machine, struct umdev_kvm_doorbell bell)
{
    uint64_t rung = 0;
    if (read(bell.fd, &rung, sizeof rung) != sizeof rung)
        return;
    umdev_kvm_count(&machine->doorbells);
    umdev_device *device = bell.listener->device;
    const struct telling inner = {.listener = bell.listener, .outer = telling};
    telling = &inner;
    bell.listener->ringing++;
    pthread_mutex_unlock(&machine->bell_mutex);
    machine->api->access(device, bell.region, bell.offset, &bell.value, bell.kernel.len, UMDEV_WRITE | UMDEV_POSTED, 0,
                         0);
    pthread_mutex_lock(&machine->bell_mutex);
    bell.listener->ringing--;
    telling = inner.outer;
    pthread_cond_broadcast(&machine->bell_changed);
}

void umdev_kvm_ring(umdev_kvm *machine, const umdev_device *device)
{
    pthread_mutex_lock(&machine->bell_mutex);
    for (uint32_t i = 0; i < machine->listener_count; i++) {
        const struct umdev_kvm_listener *listener = &machine->listeners[i];
        if (device && listener->device != device)
            continue;
        for (uint32_t id = 0; id < UMDEV_KVM_DOORBELLS; id++)
            if (machine->bells[id].listener == listener)
                answer(machine, machine->bells[id]);
        while (listener->ringing > told_here(listener)) /* others have heard one, and its device has not yet */
            pthread_cond_wait(&machine->bell_changed, &machine->bell_mutex);
    }
    pthread_mutex_unlock(&machine->bell_mutex);
}

static void *listen_to_bells(void *argument)
{
    struct umdev_kvm_listener *listener = argument;
    umdev_kvm *machine = listener->machine;
    for (;;) {
        struct epoll_event ready;
        if (epoll_wait(listener->poll, &ready, 1, -1) != 1)
            continue;
        if (ready.data.u32 >= UMDEV_KVM_DOORBELLS)
            return NULL;
        umdev_kvm_drain(machine); /* what was stored before the bell comes before it */
        pthread_mutex_lock(&machine->bell_mutex);
        if (machine->bells[ready.data.u32].listener == listener) /* else it was removed meanwhile */
            answer(machine, machine->bells[ready.data.u32]);
        pthread_mutex_unlock(&machine->bell_mutex);
    }
}

/* After an error there is nothing of it: the guest may have it tried again as often as it likes. */
static int listener_open(umdev_kvm *machine, struct umdev_kvm_listener *listener)
{
    if (machine->bell_end < 0 && (machine->bell_end = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        return -errno;
    *listener = (struct umdev_kvm_listener){.machine = machine, .poll = epoll_create1(EPOLL_CLOEXEC)};
    if (listener->poll < 0)
        return -errno;
    struct epoll_event end = {.events = EPOLLIN, .data.u32 = UMDEV_KVM_DOORBELLS};
    int code = epoll_ctl(listener->poll, EPOLL_CTL_ADD, machine->bell_end, &end)
                   ? errno
                   : pthread_create(&listener->thread, NULL, listen_to_bells, listener);
    if (code)
        close(listener->poll);
    return -code;
}

/* The device's own; else one that has nothing to hear or to tell, or a new one. There are as many as PCI slots. */
static int find_listener(umdev_kvm *machine, umdev_device *device, struct umdev_kvm_listener **ret)
{
    struct umdev_kvm_listener *found = NULL;
    for (uint32_t i = 0; i < machine->listener_count; i++) {
        struct umdev_kvm_listener *each = &machine->listeners[i];
        if (each->device == device) {
            found = each;
            break;
        }
        if (!each->bells && !each->ringing)
            found = each;
    }
    if (!found) {
        if (machine->listener_count == UMDEV_KVM_FUNCTIONS)
            return -ENOSPC;
        found = &machine->listeners[machine->listener_count];
        int code = listener_open(machine, found);
        if (code)
            return code;
        machine->listener_count++;
    }
    found->device = device;
    *ret = found;
    return 0;
}

int umdev_kvm_add_doorbell(umdev_kvm *machine, uint32_t id, int io, uint64_t address, uint32_t length, uint64_t value,
                           int any, umdev_device *device, uint32_t region, uint64_t offset)
{
    if (id >= UMDEV_KVM_DOORBELLS)
        return -EINVAL;
    pthread_mutex_lock(&machine->bell_mutex);
    struct umdev_kvm_doorbell *bell = &machine->bells[id];
    struct umdev_kvm_listener *listener = NULL;
    int result = bell->listener ? -EEXIST : find_listener(machine, device, &listener);
    int fd = -1;
    if (!result && (fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        result = -errno;
    if (!result) {
        *bell = (struct umdev_kvm_doorbell){.fd = fd, .value = value, .region = region, .offset = offset};
        bell->kernel = (struct kvm_ioeventfd){.datamatch = value, .addr = address, .len = length, .fd = fd};
        bell->kernel.flags = (any ? 0 : 1u << kvm_ioeventfd_flag_nr_datamatch) |
                             (io ? 1u << kvm_ioeventfd_flag_nr_pio : 0);
        struct epoll_event ready = {.events = EPOLLIN, .data.u32 = id};
        if (epoll_ctl(listener->poll, EPOLL_CTL_ADD, fd, &ready) ||
            ioctl(machine->vm, KVM_IOEVENTFD, &bell->kernel) < 0)
            result = -errno; /* closing it ends the first */
    }
    if (!result) {
        bell->listener = listener;
        listener->bells++;
    } else if (fd >= 0) {
        close(fd);
    }
    pthread_mutex_unlock(&machine->bell_mutex);
    return result;
}

int umdev_kvm_remove_doorbell(umdev_kvm *machine, uint32_t id)
{
    if (id >= UMDEV_KVM_DOORBELLS)
        return -EINVAL;
    pthread_mutex_lock(&machine->bell_mutex);
    struct umdev_kvm_doorbell *bell = &machine->bells[id];
    int result = -ENOENT;
    if (bell->listener) {
        bell->kernel.flags |= 1u << kvm_ioeventfd_flag_nr_deassign;
        result = ioctl(machine->vm, KVM_IOEVENTFD, &bell->kernel) < 0 ? -errno : 0;
        close(bell->fd); /* epoll forgets it */
        bell->listener->bells--;
        bell->listener = NULL;
    }
    pthread_mutex_unlock(&machine->bell_mutex);
    return result;
}

void umdev_kvm_bells_close(umdev_kvm *machine)
{
    const uint64_t one = 1;
    ssize_t written = machine->bell_end < 0 ? 0 : write(machine->bell_end, &one, sizeof one); /* nobody reads it */
    (void)written;
    for (uint32_t i = 0; i < machine->listener_count; i++) {
        pthread_join(machine->listeners[i].thread, NULL);
        close(machine->listeners[i].poll);
    }
    for (uint32_t id = 0; id < UMDEV_KVM_DOORBELLS; id++)
        if (machine->bells[id].listener)
            close(machine->bells[id].fd);
    if (machine->bell_end >= 0)
        close(machine->bell_end);
}
