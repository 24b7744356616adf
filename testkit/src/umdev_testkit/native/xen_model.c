/* A device model with nothing but what Xen demands of one: the floor of the Xen row, and what ends a payload's run.
 *
 * Structures and states of a request: xen/hvm/ioreq.h. */
#define _GNU_SOURCE
#include <stdint.h>

#include "xen_decls.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <xen/hvm/ioreq.h>
#include <xen/memory.h>
#include <xendevicemodel.h>
#include <xenevtchn.h>
#include <xenforeignmemory.h>

enum { MOST_VCPUS = 4096 / sizeof(struct ioreq) };

struct umdev_xen_model {
    uint32_t domain, vcpus, reads;
    uint64_t port, mmio, size;
    xendevicemodel_handle *devices;
    xenforeignmemory_handle *memory;
    xenevtchn_handle *events;
    xenforeignmemory_resource_handle *resource;
    struct ioreq *slots;
    ioservid_t server;
    int created;
    int held; /* the processor whose write to the port waits for the next run; -1: none does */
    xenevtchn_port_or_error_t ports[MOST_VCPUS];
};

void umdev_xen_model_free(umdev_xen_model *model)
{
    if (!model)
        return;
    if (model->resource)
        xenforeignmemory_unmap_resource(model->memory, model->resource);
    if (model->created)
        xendevicemodel_destroy_ioreq_server(model->devices, (domid_t)model->domain, model->server);
    if (model->events)
        xenevtchn_close(model->events);
    if (model->memory)
        xenforeignmemory_close(model->memory);
    if (model->devices)
        xendevicemodel_close(model->devices);
    free(model);
}

static int build(umdev_xen_model *model)
{
    domid_t domain = (domid_t)model->domain;
    model->devices = xendevicemodel_open(NULL, 0);
    model->memory = xenforeignmemory_open(NULL, 0);
    model->events = xenevtchn_open(NULL, 0);
    if (!model->devices || !model->memory || !model->events ||
        xendevicemodel_create_ioreq_server(model->devices, domain, 0, &model->server))
        return -1;
    model->created = 1;
    void *page = NULL;
    model->resource = xenforeignmemory_map_resource(
        model->memory, domain, XENMEM_resource_ioreq_server, model->server,
        XENMEM_resource_ioreq_server_frame_ioreq(0), 1, &page, PROT_READ | PROT_WRITE, 0);
    if (!model->resource)
        return -1;
    model->slots = page;
    /* Enabled before the ports are bound: Xen fills in their numbers then. */
    if (xendevicemodel_map_io_range_to_ioreq_server(model->devices, domain, model->server, 0, model->port,
                                                    model->port + 3) ||
        (model->size &&
         xendevicemodel_map_io_range_to_ioreq_server(model->devices, domain, model->server, 1, model->mmio,
                                                     model->mmio + model->size - 1)) ||
        xendevicemodel_set_ioreq_server_state(model->devices, domain, model->server, 1))
        return -1;
    for (uint32_t i = 0; i < model->vcpus; i++) {
        model->ports[i] = xenevtchn_bind_interdomain(model->events, model->domain, model->slots[i].vp_eport);
        if (model->ports[i] < 0)
            return -1;
    }
    return 0;
}

umdev_xen_model *umdev_xen_model_new(uint32_t domain, uint32_t vcpus, uint64_t port, uint64_t mmio, uint64_t size,
                                     int *ret)
{
    umdev_xen_model *model = calloc(1, sizeof *model);
    *ret = vcpus > MOST_VCPUS ? -EINVAL : -ENOMEM;
    if (!model || vcpus > MOST_VCPUS) {
        free(model);
        return NULL;
    }
    model->domain = domain, model->vcpus = vcpus, model->held = -1;
    model->port = port, model->mmio = mmio, model->size = size;
    if (build(model) == 0) {
        *ret = 0;
        return model;
    }
    *ret = -errno;
    umdev_xen_model_free(model);
    return NULL;
}

static struct ioreq state_of(const struct ioreq *slot)
{
    struct ioreq copy;
    memcpy(&copy, slot, sizeof copy);
    atomic_thread_fence(memory_order_acquire); /* the state was seen: what stands beside it counts */
    return copy;
}

static void answer(umdev_xen_model *model, uint32_t vcpu)
{
    atomic_thread_fence(memory_order_release); /* the data is there before the state says so */
    model->slots[vcpu].state = STATE_IORESP_READY;
    xenevtchn_notify(model->events, model->ports[vcpu]);
}

/* 1 when the request was a write to the port, which stays unanswered. */
static int serve(umdev_xen_model *model, uint32_t vcpu, uint32_t *ret_value)
{
    struct ioreq *slot = &model->slots[vcpu], request = state_of(slot);
    if (request.state != STATE_IOREQ_READY)
        return 0;
    slot->state = STATE_IOREQ_INPROCESS;
    if (request.type == IOREQ_TYPE_PIO && request.dir == IOREQ_WRITE) {
        *ret_value = (uint32_t)request.data;
        model->held = (int)vcpu;
        return 1;
    }
    if (request.type == IOREQ_TYPE_COPY && request.dir == IOREQ_READ && !request.data_is_ptr)
        slot->data = model->reads++;
    else if (request.dir == IOREQ_READ && !request.data_is_ptr)
        slot->data = ~0ull;
    answer(model, vcpu);
    return 0;
}

static xenevtchn_port_or_error_t next_event(umdev_xen_model *model, int timeout)
{
    if (timeout >= 0) { /* without a limit the read itself waits, which is one system call less */
        struct pollfd ready = {.fd = xenevtchn_fd(model->events), .events = POLLIN};
        int count = poll(&ready, 1, timeout);
        if (count <= 0)
            return count < 0 ? -errno : -ETIMEDOUT;
    }
    xenevtchn_port_or_error_t port = xenevtchn_pending(model->events);
    return port < 0 || xenevtchn_unmask(model->events, (evtchn_port_t)port) < 0 ? -errno : port;
}

void umdev_xen_model_release(umdev_xen_model *model)
{
    if (model->held >= 0)
        answer(model, (uint32_t)model->held);
    model->held = -1;
}

int umdev_xen_model_run(umdev_xen_model *model, int timeout, uint32_t *ret_value)
{
    umdev_xen_model_release(model);
    for (;;) {
        xenevtchn_port_or_error_t port = next_event(model, timeout);
        if (port < 0)
            return port;
        for (uint32_t i = 0; i < model->vcpus; i++)
            if (model->ports[i] == port && serve(model, i, ret_value))
                return 0;
    }
}
