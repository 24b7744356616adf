/* softgpu: the port, the only code that touches guest memory. */
#include "internal.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

softgpu_port *softgpu_port_new(const umdev_api *api, umdev_device *device)
{
    softgpu_port *port = calloc(1, sizeof(*port));
    if (port) {
        port->api = api;
        port->memory = api->memory(device);
    }
    return port;
}

void softgpu_port_free(softgpu_port *port)
{
    free(port);
}

int softgpu_port_set_memory(softgpu_port *port, uint32_t target, uint8_t *host, uint64_t size, int writable)
{
    if (target == SOFTGPU_SYSTEM || target >= SOFTGPU_TARGETS || (!host && size))
        return SOFTGPU_INVALID;
    port->memories[target].host = host;
    port->memories[target].size = size;
    port->memories[target].writable = writable != 0;
    return SOFTGPU_OK;
}

void softgpu_port_close(softgpu_port *port)
{
    atomic_store(&port->closed, 1);
    for (unsigned tries = 0; atomic_load(&port->inside); tries++) {
        if (tries < 64) {
            sched_yield();
        } else {
            struct timespec pause = {.tv_nsec = 50000};
            nanosleep(&pause, NULL);
        }
    }
}

int section_enter(section *s, softgpu_port *port)
{
    /* Counted before `closed` is looked at: whoever closes either sees the count or is seen here. */
    atomic_fetch_add(&port->inside, 1);
    if (UNLIKELY(atomic_load(&port->closed))) {
        atomic_fetch_sub(&port->inside, 1);
        return SOFTGPU_CLOSED;
    }
    s->port = port;
    s->found.length = 0;
    s->table = port->api->reader_enter(port->memory, &s->ticket);
    return SOFTGPU_OK;
}

void section_exit(section *s)
{
    s->port->api->reader_exit(s->port->memory, s->ticket);
    atomic_fetch_sub(&s->port->inside, 1);
}

int section_reach(section *s, const softgpu_run *run, uint32_t needed, uint8_t **host, uint64_t *length)
{
    softgpu_port *port = s->port;
    uint64_t left;
    if (run->target == SOFTGPU_SYSTEM) {
        if (run->address - s->found_at >= s->found.length) {
            s->found.length = 0;
            if (UNLIKELY(port->api->lookup(s->table, 0, run->address, &s->found)))
                return SOFTGPU_UNREACHABLE;
            s->found_at = run->address;
        }
        uint64_t offset = run->address - s->found_at;
        if (UNLIKELY((s->found.protection & needed) != needed))
            return SOFTGPU_NOT_PERMITTED;
        if (UNLIKELY(!s->found.host))
            return BY_MESSAGE;
        *host = s->found.host + offset;
        left = s->found.length - offset;
    } else {
        if (UNLIKELY(run->target >= SOFTGPU_TARGETS || run->address >= port->memories[run->target].size))
            return SOFTGPU_OUT_OF_RANGE;
        if (UNLIKELY((needed & WRITE) && !port->memories[run->target].writable))
            return SOFTGPU_NOT_PERMITTED;
        *host = port->memories[run->target].host + run->address;
        left = port->memories[run->target].size - run->address;
    }
    *length = run->length < left ? run->length : left;
    return SOFTGPU_OK;
}

/* Rings, fences and page tables rely on aligned scalars that are never torn. */
static void copy(void *to, const void *from, uint64_t length, const void *shared, bool write)
{
    if (((uintptr_t)shared & (length - 1)) == 0) {
        uint64_t whole8;
        uint32_t whole4;
        uint16_t whole2;
        switch (length) {
        case 8:
            if (write) {
                memcpy(&whole8, from, 8);
                __atomic_store_n((uint64_t *)to, whole8, __ATOMIC_RELEASE);
            } else {
                whole8 = __atomic_load_n((const uint64_t *)from, __ATOMIC_ACQUIRE);
                memcpy(to, &whole8, 8);
            }
            return;
        case 4:
            if (write) {
                memcpy(&whole4, from, 4);
                __atomic_store_n((uint32_t *)to, whole4, __ATOMIC_RELEASE);
            } else {
                whole4 = __atomic_load_n((const uint32_t *)from, __ATOMIC_ACQUIRE);
                memcpy(to, &whole4, 4);
            }
            return;
        case 2:
            if (write) {
                memcpy(&whole2, from, 2);
                __atomic_store_n((uint16_t *)to, whole2, __ATOMIC_RELEASE);
            } else {
                whole2 = __atomic_load_n((const uint16_t *)from, __ATOMIC_ACQUIRE);
                memcpy(to, &whole2, 2);
            }
            return;
        default:
            break;
        }
    }
    memcpy(to, from, length);
}

static int result_of(int error)
{
    switch (error) {
    case 0:
        return SOFTGPU_OK;
    case -EACCES:
        return SOFTGPU_NOT_PERMITTED;
    case -EDEADLK:
        return SOFTGPU_WOULD_DEADLOCK;
    default: /* not mapped, no bus mastering, a file that shrank, a client that is gone */
        return SOFTGPU_UNREACHABLE;
    }
}

static void (*_Atomic wait_begins)(void);
static void (*_Atomic wait_ends)(void);

void softgpu_on_wait(void (*begins)(void), void (*ends)(void))
{
    atomic_store(&wait_begins, begins);
    atomic_store(&wait_ends, ends);
}

/* The client answers when it likes, or never: whoever shares this thread must not wait with us. */
static int transfer_by_message(softgpu_port *port, uint64_t address, uint8_t *bytes, uint64_t length, bool write)
{
    if (atomic_load(&port->closed))
        return SOFTGPU_CLOSED;
    void (*begins)(void) = atomic_load(&wait_begins);
    void (*ends)(void) = atomic_load(&wait_ends);
    if (begins)
        begins();
    int error = write ? port->api->dma_write(port->memory, 0, address, bytes, length)
                      : port->api->dma_read(port->memory, 0, address, bytes, length);
    if (ends)
        ends();
    return result_of(error);
}

int port_transfer(softgpu_port *port, const softgpu_run *run, void *bytes, uint64_t length, bool write, uint64_t *moved)
{
    enum { SECTION_BYTES = 1 << 20 };
    softgpu_run rest = *run;
    uint8_t *cursor = bytes;
    *moved = 0;
    while (length) {
        section s;
        uint8_t *host;
        uint64_t part;
        rest.length = length < SECTION_BYTES ? length : SECTION_BYTES;
        int result = section_enter(&s, port);
        if (UNLIKELY(result))
            return result;
        result = section_reach(&s, &rest, write ? WRITE : READ, &host, &part);
        if (LIKELY(!result)) {
            if (write)
                copy(host, cursor, part, host, true);
            else
                copy(cursor, host, part, host, false);
        }
        section_exit(&s);
        if (UNLIKELY(result == BY_MESSAGE)) {
            part = rest.length;
            result = transfer_by_message(port, rest.address, cursor, part, write);
        }
        if (UNLIKELY(result))
            return result;
        rest.address += part;
        cursor += part;
        length -= part;
        *moved += part;
    }
    return SOFTGPU_OK;
}
