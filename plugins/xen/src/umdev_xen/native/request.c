/* A processor's slot of the ring page. Its content is the domain's word, so it is read once, and checked. */
#include "internal.h"

#include <time.h>

static uint64_t load64(const uint8_t *slot, uint32_t at)
{
    return __atomic_load_n((const uint64_t *)(const void *)(slot + at), __ATOMIC_RELAXED);
}

static uint32_t load32(const uint8_t *slot, uint32_t at)
{
    return __atomic_load_n((const uint32_t *)(const void *)(slot + at), __ATOMIC_RELAXED);
}

static void set_state(umdev_xen_vcpu *vcpu, uint8_t state, int order)
{
    uint8_t flags = (uint8_t)((vcpu->request.flags & 0xF0) | state);
    if (order == __ATOMIC_RELEASE)
        __atomic_store_n(vcpu->slot + REQUEST_FLAGS, flags, __ATOMIC_RELEASE);
    else
        __atomic_store_n(vcpu->slot + REQUEST_FLAGS, flags, __ATOMIC_RELAXED);
}

bool umdev_xen_request_take(umdev_xen_vcpu *vcpu)
{
    struct umdev_xen_request *request = &vcpu->request;
    /* Xen writes the state last: what is read after it belongs to it. */
    uint8_t flags = __atomic_load_n(vcpu->slot + REQUEST_FLAGS, __ATOMIC_ACQUIRE);
    if ((flags & 0xF) != STATE_READY)
        return false;
    *request = (struct umdev_xen_request){
        .address = load64(vcpu->slot, REQUEST_ADDRESS),
        .data = load64(vcpu->slot, REQUEST_DATA),
        .count = load32(vcpu->slot, REQUEST_COUNT),
        .width = load32(vcpu->slot, REQUEST_WIDTH),
        .flags = flags,
        .type = __atomic_load_n(vcpu->slot + REQUEST_TYPE, __ATOMIC_RELAXED),
        .read = flags >> 5 & 1,
        .by_pointer = flags >> 4 & 1,
        .down = flags >> 6 & 1,
    };
    set_state(vcpu, STATE_IN_PROCESS, __ATOMIC_RELAXED);
    vcpu->done = 0;
    vcpu->busy = true;
    umdev_xen_count(&vcpu->domain->requests);
    return true;
}

bool umdev_xen_request_sound(umdev_xen_vcpu *vcpu)
{
    struct umdev_xen_request *request = &vcpu->request;
    bool sound = request->width == 1 || request->width == 2 || request->width == 4 ||
                 (request->width == 8 && request->type == TYPE_MEMORY);
    switch (request->type) {
    case TYPE_TIME_OFFSET: /* of the guest's clock: nothing here keeps one */
    case TYPE_INVALIDATE:
        return true;
    case TYPE_PORT:
        sound = sound && request->address < 1u << 16 && request->width <= (1u << 16) - request->address;
        break;
    case TYPE_MEMORY:
    case TYPE_CONFIG:
        break;
    default:
        sound = false;
    }
    /* Many values can't come back in one. */
    sound = sound && request->count >= 1 && request->count <= UMDEV_XEN_REPS;
    sound = sound && (request->count == 1 || request->by_pointer || !request->read);
    if (!sound) {
        umdev_xen_count(&vcpu->domain->malformed);
        request->data = UINT64_MAX;
    }
    return sound;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void umdev_xen_hold(umdev_xen *domain)
{
    pthread_mutex_lock(&domain->answers);
}

void umdev_xen_unhold(umdev_xen *domain)
{
    pthread_mutex_unlock(&domain->answers);
}

/* Xen issues a store anew when it has been answered, and finds its answer by what the page is then: a page that has
 * become ordinary meanwhile leaves a repeated store's answer unclaimed, and its processor lost. When it fetches the
 * answer is up to its scheduler (the slot says so); from then on it is quick. */
int umdev_xen_is_busy(umdev_xen *domain, uint64_t frame)
{
    uint64_t now = now_ns();
    for (uint32_t i = 0; i < domain->vcpu_count; i++) {
        umdev_xen_vcpu *vcpu = domain->vcpus[i];
        uint8_t state = __atomic_load_n(vcpu->slot + REQUEST_FLAGS, __ATOMIC_ACQUIRE) & 0xF;
        if (state != STATE_NONE && load64(vcpu->slot, REQUEST_ADDRESS) / UMDEV_XEN_PAGE == frame &&
            __atomic_load_n(vcpu->slot + REQUEST_TYPE, __ATOMIC_RELAXED) == TYPE_MEMORY)
            return 1;
        if (!vcpu->answered || vcpu->answered_frame != frame)
            continue;
        if (!vcpu->fetched)
            vcpu->fetched = now;
        if (now - vcpu->fetched < UMDEV_XEN_ENDING)
            return 1;
    }
    return 0;
}

static void answer(umdev_xen_vcpu *vcpu)
{
    if (vcpu->request.read && !vcpu->request.by_pointer)
        __atomic_store_n((uint64_t *)(void *)(vcpu->slot + REQUEST_DATA), vcpu->request.data, __ATOMIC_RELAXED);
    /* The data, and what has been stored to guest memory, are there when the state is. */
    set_state(vcpu, STATE_RESPONSE, __ATOMIC_RELEASE);
    vcpu->domain->calls.evtchn_notify(vcpu->handle, vcpu->port); /* fails when the domain has gone: nobody waits then */
}

void umdev_xen_request_answer(umdev_xen_vcpu *vcpu)
{
    umdev_xen *domain = vcpu->domain;
    vcpu->busy = false;
    if (!atomic_load_explicit(&domain->emulating, memory_order_relaxed)) {
        answer(vcpu);
        return;
    }
    pthread_mutex_lock(&domain->answers);
    vcpu->answered = true;
    vcpu->fetched = 0;
    vcpu->answered_frame = vcpu->request.address / UMDEV_XEN_PAGE;
    answer(vcpu);
    pthread_mutex_unlock(&domain->answers);
}
