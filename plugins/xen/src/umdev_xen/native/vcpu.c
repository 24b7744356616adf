/* The loop of one virtual processor: a request, its accesses, the answer. */
#include "internal.h"

#include <poll.h>
#include <stdlib.h>

void umdev_xen_step_begin(umdev_xen_vcpu *vcpu);
void umdev_xen_step_end(umdev_xen_vcpu *vcpu);

umdev_xen_vcpu *umdev_xen_vcpu_new(umdev_xen *domain, uint32_t index, void *handle, int fd, uint32_t port)
{
    if (index >= UMDEV_XEN_VCPUS || domain->vcpu_count >= UMDEV_XEN_VCPUS)
        return NULL;
    umdev_xen_vcpu *vcpu = calloc(1, sizeof *vcpu);
    if (!vcpu)
        return NULL;
    vcpu->domain = domain;
    vcpu->index = index;
    vcpu->handle = handle;
    vcpu->fd = fd;
    vcpu->port = port;
    vcpu->slot = domain->page + index * REQUEST_SIZE;
    domain->vcpus[domain->vcpu_count++] = vcpu;
    return vcpu;
}

/* What a device gave goes to guest memory as a store of its processor: a page that is protected gets it by way of who
 * watches it, and each page its own piece. 0, or an event kind; the rest is then in `vcpu`. */
static int deliver(umdev_xen_vcpu *vcpu, uint64_t address, const uint8_t *bytes, uint32_t length,
                   umdev_xen_event *event)
{
    umdev_xen *domain = vcpu->domain;
    int kind = 0;
    while (length && !kind) {
        uint32_t part = UMDEV_XEN_PAGE - (uint32_t)(address % UMDEV_XEN_PAGE);
        part = part < length ? part : length;
        kind = umdev_xen_store(domain, address, bytes, part, event);
        if (!kind && umdev_xen_copy(domain, address, (void *)(uintptr_t)bytes, part, 1))
            umdev_xen_count(&domain->unreachable);
        address += part;
        bytes += part;
        length -= part;
    }
    vcpu->rest.address = address;
    vcpu->rest.length = length;
    if (length)
        memmove(vcpu->rest.bytes, bytes, length);
    return kind;
}

/* One of the request's repetitions. */
static int step(umdev_xen_vcpu *vcpu, umdev_xen_event *event)
{
    umdev_xen *domain = vcpu->domain;
    struct umdev_xen_request *request = &vcpu->request;
    uint64_t distance = (uint64_t)vcpu->done * request->width;
    if (request->down)
        distance = -distance;
    uint64_t pointer = request->data + distance;
    /* Memory moves along; a port or a configuration register stays. */
    uint64_t address = request->type == TYPE_MEMORY ? request->address + distance : request->address;
    uint8_t bytes[8] = {0};
    if (!request->read) {
        if (!request->by_pointer) {
            memcpy(bytes, &request->data, request->width);
        } else if (umdev_xen_copy(domain, pointer, bytes, request->width, 0)) {
            umdev_xen_count(&domain->unreachable);
            return 0;
        }
    }
    int kind = umdev_xen_dispatch(vcpu, request, address, bytes, event);
    if (request->read && request->by_pointer) {
        kind = deliver(vcpu, pointer, bytes, request->width, event);
    } else if (request->read) {
        request->data = 0;
        memcpy(&request->data, bytes, request->width);
    }
    return kind;
}

/* What is left of the request that `vcpu` is busy with; 0: it is answered. */
static int serve(umdev_xen_vcpu *vcpu, umdev_xen_event *event)
{
    umdev_xen *domain = vcpu->domain;
    struct umdev_xen_request *request = &vcpu->request;
    if (vcpu->done == 0) {
        if (request->type == TYPE_INVALIDATE) {
            umdev_xen_forget(domain);
            vcpu->done = request->count = 1;
            *event = (umdev_xen_event){.kind = UMDEV_XEN_INVALIDATE};
            return UMDEV_XEN_INVALIDATE;
        }
        if (!umdev_xen_request_sound(vcpu) || request->type == TYPE_TIME_OFFSET)
            request->count = 0;
    }
    if (vcpu->rest.length) {
        int kind = deliver(vcpu, vcpu->rest.address, vcpu->rest.bytes, vcpu->rest.length, event);
        if (kind)
            return kind;
    }
    while (vcpu->done < request->count) {
        if (atomic_load_explicit(&domain->stopping, memory_order_relaxed)) {
            request->data = UINT64_MAX;
            break;
        }
        umdev_xen_step_begin(vcpu);
        int kind = step(vcpu, event);
        umdev_xen_step_end(vcpu);
        vcpu->done++;
        if (kind)
            return kind;
    }
    umdev_xen_request_answer(vcpu);
    return 0;
}

/* Wait for the event channel. 0, or an event kind. */
static int await(umdev_xen_vcpu *vcpu, int patience, umdev_xen_event *event)
{
    struct pollfd ends[2] = {{.fd = vcpu->fd, .events = POLLIN}, {.fd = vcpu->domain->stop, .events = POLLIN}};
    int ready = poll(ends, 2, patience);
    if (ready < 0 && errno == EINTR)
        return 0;
    if (ends[1].revents)
        return UMDEV_XEN_STOPPED;
    if (ready == 0)
        return UMDEV_XEN_IDLE;
    int port = ready > 0 ? vcpu->domain->calls.evtchn_pending(vcpu->handle) : -1;
    if (port < 0) {
        event->detail = (uint32_t)errno;
        return UMDEV_XEN_FAILED;
    }
    vcpu->domain->calls.evtchn_unmask(vcpu->handle, (uint32_t)port);
    return 0;
}

int umdev_xen_vcpu_run(umdev_xen_vcpu *vcpu, int patience, umdev_xen_event *ret)
{
    *ret = (umdev_xen_event){0};
    for (;;) {
        /* Before any wait: a request may be there from before the channel was bound. */
        int kind = vcpu->busy || umdev_xen_request_take(vcpu) ? serve(vcpu, ret) : await(vcpu, patience, ret);
        if (kind) {
            ret->kind = (uint32_t)kind;
            return kind;
        }
        if (atomic_load_explicit(&vcpu->domain->stopping, memory_order_relaxed)) {
            ret->kind = UMDEV_XEN_STOPPED;
            return UMDEV_XEN_STOPPED;
        }
    }
}
