/* What the files of this module share. */
#ifndef UMDEV_XEN_INTERNAL_H
#define UMDEV_XEN_INTERNAL_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "umdev.h"

#include "xen_decls.h"

#define UMDEV_XEN_PAGE 4096u
#define UMDEV_XEN_VCPUS 128u /* slots of a ring page: HVM_MAX_VCPUS (xen/hvm/hvm_info_table.h) */
#define UMDEV_XEN_FUNCTIONS 32u
#define UMDEV_XEN_REPS 4096u /* a processor's request repeats at most within a page of bytes */
#define UMDEV_XEN_MAPPINGS 16u
/* Nanoseconds in which Xen ends an instruction whose answer it has fetched. It does so in one go, in microseconds: the
 * processor is in Xen and is not taken off there. An assumption where Xen itself is a guest, and loses its own
 * processor. */
#define UMDEV_XEN_ENDING 50000000u

/* Fields of struct ioreq and their values: xen/hvm/ioreq.h. 32 bytes for each processor. */
#define REQUEST_SIZE 32u
#define REQUEST_ADDRESS 0u
#define REQUEST_DATA 8u
#define REQUEST_COUNT 16u
#define REQUEST_WIDTH 20u
#define REQUEST_FLAGS 30u /* state in bits 3:0, data_is_ptr bit 4, dir bit 5 (1: read), df bit 6 */
#define REQUEST_TYPE 31u
enum { STATE_NONE = 0, STATE_READY = 1, STATE_IN_PROCESS = 2, STATE_RESPONSE = 3 };
enum { TYPE_PORT = 0, TYPE_MEMORY = 1, TYPE_CONFIG = 2, TYPE_TIME_OFFSET = 7, TYPE_INVALIDATE = 8 };

/* A request as it was once read: the page may change under us at any time. */
struct umdev_xen_request {
    uint64_t address;
    uint64_t data;
    uint32_t count;
    uint32_t width;
    uint8_t flags;
    uint8_t type;
    bool read;
    bool by_pointer;
    bool down;
};

struct umdev_xen_vcpu {
    umdev_xen *domain;
    uint32_t index;
    void *handle;
    int fd;
    uint32_t port;
    uint8_t *slot;
    struct umdev_xen_request request;
    uint32_t done;            /* of the request's repetitions */
    bool busy;                /* `request` is to be answered */
    struct {                  /* of a store over a page's end, the first piece of which was an event */
        uint64_t address;
        uint32_t length;
        uint8_t bytes[8];
    } rest;
    bool answered;            /* with `answers`, as the next two: it may still be ending the instruction */
    uint64_t answered_frame;
    uint64_t fetched;         /* when the answer was first seen to have been, in nanoseconds; 0: not yet */
    _Atomic uint64_t passes;  /* odd while it is inside a step */
};

struct umdev_xen_mapping {
    uint64_t frame;
    uint8_t *page; /* NULL: free */
    uint64_t used; /* when */
};

struct umdev_xen {
    const umdev_api *api;
    umdev_xen_calls calls;
    uint16_t id;
    uint8_t *page;
    int stop; /* eventfd, readable for good once it is written */
    _Atomic bool stopping;
    _Atomic uint32_t latch; /* port 0xCF8 */
    _Atomic bool bridge;
    _Atomic(umdev_device *) functions[UMDEV_XEN_FUNCTIONS];

    pthread_mutex_t tables; /* of the next two; held for a lookup, never during an access */
    struct {
        umdev_xen_range *items; /* ascending by start */
        uint32_t count;
    } ranges[2]; /* memory, I/O */
    struct {
        uint64_t *frames;
        uint32_t count;
    } emulated;
    _Atomic bool emulating; /* there have been emulated pages */
    pthread_mutex_t answers; /* held while one is given, and by who holds them back */

    pthread_mutex_t cache; /* of the mappings, held while their bytes are copied */
    struct umdev_xen_mapping mappings[UMDEV_XEN_MAPPINGS];
    uint64_t clock;
    struct { /* with the cache's mutex: tracked pages that the loop itself has stored to, a bit each */
        uint64_t first;
        uint32_t count;
        uint8_t *bits;
    } landed;

    uint32_t vcpu_count;
    umdev_xen_vcpu *vcpus[UMDEV_XEN_VCPUS];

    _Atomic uint64_t requests, accesses, unclaimed, malformed, unreachable, messages, lost, stores;
};

static inline void umdev_xen_count(_Atomic uint64_t *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

/* domain.c. Finds what decodes; false: nothing. */
bool umdev_xen_find(umdev_xen *domain, bool io, uint64_t address, uint32_t length, umdev_xen_range *ret);
bool umdev_xen_is_emulated(umdev_xen *domain, uint64_t address);
/* request.c. True: a request was there, and is in `vcpu->request`. */
bool umdev_xen_request_take(umdev_xen_vcpu *vcpu);
void umdev_xen_request_answer(umdev_xen_vcpu *vcpu);
/* Answers a request that no processor makes, and says so. */
bool umdev_xen_request_sound(umdev_xen_vcpu *vcpu);
/* dispatch.c. One access; 0, or an event kind that Python must see. */
int umdev_xen_dispatch(umdev_xen_vcpu *vcpu, const struct umdev_xen_request *request, uint64_t address, uint8_t *bytes,
                       umdev_xen_event *event);
/* A guest's store within one page: UMDEV_XEN_STORE and the event if the page is emulated, else 0 and nothing is
 * done. */
int umdev_xen_store(umdev_xen *domain, uint64_t address, const uint8_t *bytes, uint32_t length, umdev_xen_event *event);

#endif
