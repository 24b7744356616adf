/* The loop against a ring page that anything may stand on: every request ends, in bounds, and is answered.
 * Xen's libraries are the test's here, since no sanitizer runs in a dom0; the tests in dom0 use the real ones. */
#include "internal.h"
#include "umdev_check.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGES 4u
#define BAR 0xF0000000u

struct umdev_device {
    uint8_t bytes[256];
    _Atomic uint64_t accesses;
};

static uint8_t guest[PAGES * UMDEV_XEN_PAGE];
static _Atomic int mapped;
static uint64_t told_address;
static uint32_t told_data;
static _Atomic unsigned int line;

static int pending(void *handle)
{
    uint64_t count;
    return read(*(int *)handle, &count, sizeof count) == sizeof count ? 7 : -1;
}

static int unmask(void *handle, uint32_t port)
{
    (void)handle;
    return port == 7 ? 0 : -1;
}

static int notify(void *handle, uint32_t port)
{
    (void)handle;
    (void)port;
    return -1; /* as for a domain that has gone */
}

static int inject(void *handle, uint16_t domain, uint64_t address, uint32_t data)
{
    (void)handle;
    (void)domain;
    told_address = address;
    told_data = data;
    return 0;
}

static int set_level(void *handle, uint16_t domain, uint16_t segment, uint8_t bus, uint8_t device, uint8_t pin,
                     unsigned int level)
{
    (void)handle;
    CHECK(domain == 3 && segment == 0 && bus == 0 && device == 5 && pin == 1);
    line = level;
    return 0;
}

static void *map(void *handle, uint32_t domain, int protection, size_t pages, const unsigned long *frames, int *errors)
{
    (void)handle;
    CHECK(domain == 3 && pages == 1 && protection == (PROT_READ | PROT_WRITE));
    errors[0] = frames[0] < PAGES ? 0 : -ENOENT;
    mapped++;
    return frames[0] < PAGES ? guest + frames[0] * UMDEV_XEN_PAGE : guest;
}

static int unmap(void *handle, void *address, size_t pages)
{
    (void)handle;
    (void)address;
    mapped -= (int)pages;
    return 0;
}

static int serve(umdev_device *device, uint32_t region, uint64_t offset, void *bytes, uint32_t length, uint32_t flags,
                 uint32_t initiator, uint32_t space)
{
    (void)region;
    (void)initiator;
    (void)space;
    CHECK(length == 1 || length == 2 || length == 4 || length == 8);
    CHECK(region == UMDEV_REGION_CONFIG || offset + length <= sizeof device->bytes);
    device->accesses++;
    if (region == UMDEV_REGION_CONFIG)
        memset(bytes, 0x5A, flags & UMDEV_WRITE ? 0 : length);
    else if (flags & UMDEV_WRITE)
        memcpy(device->bytes + offset, bytes, length);
    else
        memcpy(bytes, device->bytes + offset, length);
    return UMDEV_OK;
}

static const umdev_api api = {.header = {sizeof api, 1, 0}, .access = serve};
static umdev_device device;
static int channel;
static uint8_t *page;

static umdev_xen *start(umdev_xen_vcpu **vcpu)
{
    const umdev_xen_calls calls = {pending, unmask, notify, inject, set_level, map, unmap, NULL, NULL};
    umdev_xen *domain = umdev_xen_new(&api, &calls, 3, page);
    const umdev_xen_range ranges[] = {{BAR, sizeof device.bytes, &device, 0, 0}, {0xC000, 16, &device, 1, 1}};
    CHECK(domain && umdev_xen_publish(domain, ranges, 2) == 0);
    const umdev_xen_range twice[] = {{BAR, 16, &device, 0, 0}, {BAR + 15, 1, &device, 1, 0}};
    CHECK(umdev_xen_publish(domain, twice, 2) == -EEXIST);
    CHECK(umdev_xen_set_function(domain, 5, &device) == 0 && umdev_xen_set_function(domain, 0, &device) == -EINVAL);
    *vcpu = umdev_xen_vcpu_new(domain, 0, &channel, channel, 7);
    CHECK(*vcpu && !umdev_xen_vcpu_new(domain, UMDEV_XEN_VCPUS, &channel, channel, 7));
    return domain;
}

struct fields {
    uint64_t address, data;
    uint32_t count, width, port;
    uint16_t pad;
    uint8_t flags, type;
};

static void put(const struct fields *fields)
{
    memcpy(page, fields, sizeof *fields);
}

static uint64_t data_now(void)
{
    uint64_t data;
    memcpy(&data, page + REQUEST_DATA, sizeof data);
    return data;
}

/* Serve until nothing is left; the last event. */
static umdev_xen_event go(umdev_xen_vcpu *vcpu)
{
    umdev_xen_event event, last = {0};
    while (umdev_xen_vcpu_run(vcpu, 0, &event) != UMDEV_XEN_IDLE) {
        last = event;
        CHECK(event.kind != UMDEV_XEN_FAILED);
    }
    CHECK((page[REQUEST_FLAGS] & 0xF) != STATE_READY && (page[REQUEST_FLAGS] & 0xF) != STATE_IN_PROCESS);
    return last;
}

static void test_requests(void)
{
    umdev_xen_vcpu *vcpu;
    umdev_xen *domain = start(&vcpu);
    umdev_xen_counters counters;

    put(&(struct fields){.address = BAR + 4, .data = 0x11223344, .count = 1, .width = 4, .flags = 1, .type = 1});
    go(vcpu);
    CHECK(!memcmp(device.bytes + 4, "\x44\x33\x22\x11", 4));
    put(&(struct fields){.address = BAR + 4, .data = ~0ull, .count = 1, .width = 2, .flags = 1 | 1 << 5, .type = 1});
    go(vcpu);
    CHECK(data_now() == 0x3344 && (page[REQUEST_FLAGS] & 0xF) == STATE_RESPONSE);

    for (int i = 0; i < 16; i++)
        guest[UMDEV_XEN_PAGE - 8 + i] = (uint8_t)(i + 1);
    put(&(struct fields){BAR, UMDEV_XEN_PAGE - 8, 4, 4, 0, 0, 1 | 1 << 4, 1}); /* over a page's end */
    go(vcpu);
    CHECK(!memcmp(device.bytes, "\1\2\3\4\5\6\7\10\11\12\13\14\15\16\17\20", 16));
    put(&(struct fields){0xC003, 2 * UMDEV_XEN_PAGE, 5, 1, 0, 0, 1 | 1 << 4 | 1 << 5, 0}); /* rep insb */
    go(vcpu);
    CHECK(!memcmp(guest + 2 * UMDEV_XEN_PAGE, "\4\4\4\4\4\0", 6));
    put(&(struct fields){BAR + 12, 2 * UMDEV_XEN_PAGE + 12, 4, 4, 0, 0, 1 | 1 << 4 | 1 << 5 | 1 << 6, 1}); /* down */
    go(vcpu);
    CHECK(!memcmp(guest + 2 * UMDEV_XEN_PAGE, device.bytes, 16));

    put(&(struct fields){.address = 5ull << 35 | 4, .data = 7, .count = 1, .width = 2, .flags = 1, .type = 2});
    umdev_xen_event event = go(vcpu);
    CHECK(event.kind == UMDEV_XEN_CONFIG && event.slot == 5 && event.address == 4);
    put(&(struct fields){.address = 6ull << 35, .count = 1, .width = 4, .flags = 1 | 1 << 5, .type = 2});
    go(vcpu);
    CHECK(data_now() == 0xFFFFFFFF);
    put(&(struct fields){.flags = 1, .type = 8});
    CHECK(mapped > 0 && go(vcpu).kind == UMDEV_XEN_INVALIDATE && mapped == 0);

    const uint64_t frames[] = {1, 3};
    CHECK(umdev_xen_set_emulated(domain, frames, 2) == 0);
    put(&(struct fields){3 * UMDEV_XEN_PAGE + 8, 0xABCD, 1, 2, 0, 0, 1, 1});
    event = go(vcpu);
    CHECK(event.kind == UMDEV_XEN_STORE && event.address == 3 * UMDEV_XEN_PAGE + 8 && event.value == 0xABCD);
    CHECK(guest[3 * UMDEV_XEN_PAGE + 8] == 0);
    CHECK(umdev_xen_set_emulated(domain, frames, 1) == 0); /* one that is under way lands */
    go((put(&(struct fields){3 * UMDEV_XEN_PAGE + 8, 0xABCD, 1, 2, 0, 0, 1, 1}), vcpu));
    CHECK(guest[3 * UMDEV_XEN_PAGE + 8] == 0xCD);

    put(&(struct fields){3 * UMDEV_XEN_PAGE + 8, 1, 1, 2, 0, 0, 1, 1});
    umdev_xen_hold(domain);
    CHECK(umdev_xen_is_busy(domain, 3) && !umdev_xen_is_busy(domain, 2));
    umdev_xen_unhold(domain);
    go(vcpu); /* answered: whether Xen fetches that at once or late, it has its time from then on */
    nanosleep(&(struct timespec){.tv_nsec = UMDEV_XEN_ENDING + 1}, NULL);
    umdev_xen_hold(domain);
    CHECK(umdev_xen_is_busy(domain, 3));
    page[REQUEST_FLAGS] = STATE_NONE;
    CHECK(umdev_xen_is_busy(domain, 3) && !umdev_xen_is_busy(domain, 2));
    nanosleep(&(struct timespec){.tv_nsec = UMDEV_XEN_ENDING + 1}, NULL);
    CHECK(!umdev_xen_is_busy(domain, 3));
    umdev_xen_unhold(domain);

    /* What a device gives is a store like any other: over a page's end, of which the first piece is emulated. */
    uint8_t bits[2] = {0xFF, 0xFF};
    memcpy(device.bytes, "\1\2\3\4\5\6\7\10", 8);
    CHECK(umdev_xen_set_tracked(domain, 1, PAGES - 1) == 0);
    put(&(struct fields){BAR, 2 * UMDEV_XEN_PAGE - 6, 2, 4, 0, 0, 1 | 1 << 4 | 1 << 5, 1});
    memset(guest + 2 * UMDEV_XEN_PAGE - 6, 0x99, 8);
    CHECK(umdev_xen_vcpu_run(vcpu, 0, &event) == UMDEV_XEN_STORE);
    CHECK(event.address == 2 * UMDEV_XEN_PAGE - 6 && event.value == 0x04030201 && event.length == 4);
    CHECK(umdev_xen_vcpu_run(vcpu, 0, &event) == UMDEV_XEN_STORE);
    CHECK(event.address == 2 * UMDEV_XEN_PAGE - 2 && event.value == 0x0605 && event.length == 2);
    CHECK(guest[2 * UMDEV_XEN_PAGE] == 0x99);
    CHECK(umdev_xen_vcpu_run(vcpu, 0, &event) == UMDEV_XEN_IDLE);
    CHECK(!memcmp(guest + 2 * UMDEV_XEN_PAGE - 6, "\x99\x99\x99\x99\x99\x99\7\10", 8));
    umdev_xen_take_landed(domain, bits);
    CHECK(bits[0] == 1 << 1 && bits[1] == 0xFF); /* the second page alone */
    const uint64_t second[] = {2}; /* and the other way round */
    CHECK(umdev_xen_set_emulated(domain, second, 1) == 0);
    put(&(struct fields){BAR, 2 * UMDEV_XEN_PAGE - 1, 1, 4, 0, 0, 1 | 1 << 4 | 1 << 5, 1});
    event = go(vcpu);
    CHECK(event.kind == UMDEV_XEN_STORE && event.address == 2 * UMDEV_XEN_PAGE && event.value == 0x040302);
    CHECK(guest[2 * UMDEV_XEN_PAGE - 1] == 1 && guest[2 * UMDEV_XEN_PAGE] == 7);
    umdev_xen_take_landed(domain, bits);
    CHECK(bits[0] == 1 << 0);

    umdev_xen_read_counters(domain, &counters);
    CHECK(counters.malformed == 0 && counters.unclaimed == 1 && counters.unreachable == 0 && counters.stores == 4);
    umdev_xen_free(domain);
    CHECK(mapped == 0);
}

static uint64_t random_state = 88172645463325252ull;

static uint64_t chance(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    return random_state ^= random_state << 17;
}

static void test_anything(void)
{
    static const uint32_t widths[] = {0, 1, 2, 3, 4, 8, 16, 0xFFFFFFFF};
    static const uint32_t counts[] = {0, 1, 2, 7, 4096, 4097, 0xFFFFFFFF, 1};
    static const uint64_t places[] = {0, BAR, BAR + 250, 0xC000, 0xFFFF, UMDEV_XEN_PAGE - 3, ~0ull, ~0ull - 2};
    umdev_xen_vcpu *vcpu;
    umdev_xen *domain = start(&vcpu);
    const uint64_t frames[] = {0, 2};
    CHECK(umdev_xen_set_emulated(domain, frames, 2) == 0);
    umdev_xen_set_bridge(domain, 1);
    for (int i = 0; i < 20000; i++) {
        struct fields fields = {
            .address = chance() % 8 ? places[chance() % 8] : chance(),
            .data = chance() % 4 ? places[chance() % 8] : chance(),
            .count = counts[chance() % 8],
            .width = chance() % 8 ? widths[chance() % 8] : (uint32_t)chance(),
            .flags = (uint8_t)((chance() & 0xF0) | (chance() % 8 ? STATE_READY : chance() & 0xF)),
            .type = chance() % 4 ? (uint8_t)(chance() % 3) : (uint8_t)chance(),
        };
        put(&fields);
        if ((fields.flags & 0xF) == STATE_IN_PROCESS) /* nobody's */
            page[REQUEST_FLAGS] = STATE_NONE;
        go(vcpu);
    }
    umdev_xen_counters counters;
    umdev_xen_read_counters(domain, &counters);
    CHECK(counters.malformed > 1000 && counters.unclaimed && counters.unreachable && counters.stores);
    umdev_xen_free(domain);
    CHECK(mapped == 0);
}

static void test_interrupts(void)
{
    umdev_xen_vcpu *vcpu;
    umdev_xen *domain = start(&vcpu);
    umdev_xen_wire *wire = umdev_xen_wire_new(domain, 5, 2);
    umdev_xen_wire_level(wire, 1);
    CHECK(line == 1);
    umdev_xen_wire_level(wire, 0);
    CHECK(line == 0);
    umdev_xen_wire_message(wire, UMDEV_IRQ_MSIX, 1, 0xFEE01003, 0x4123);
    CHECK(told_address == 0xFEE01000 && told_data == 0x4123);
    umdev_xen_wire_set_msi(wire, 0xFEE02000, 0x40, 4);
    umdev_xen_wire_message(wire, UMDEV_IRQ_MSI, 3, 0, 0);
    CHECK(told_address == 0xFEE02000 && told_data == 0x43);
    umdev_xen_wire_message(wire, UMDEV_IRQ_MSIX, 1, 0x1000, 1);
    /* A guest that takes messages as event channels: interrupt 0x1234, and a vector where nobody is. */
    umdev_xen_wire_message(wire, UMDEV_IRQ_MSIX, 1, 0x12FEE34000, 0x300);
    CHECK(told_address == 0x12FEE34000 && told_data == 0x300);
    umdev_xen_wire_message(wire, UMDEV_IRQ_MSIX, 1, 0x12FEE34000, 0x341);
    CHECK(told_data == 0x300);
    umdev_xen_counters counters;
    umdev_xen_read_counters(domain, &counters);
    CHECK(counters.messages == 3 && counters.lost == 2);
    umdev_xen_wire_free(wire);
    umdev_xen_free(domain);
}

static void *run(void *vcpu)
{
    umdev_xen_event event;
    while (umdev_xen_vcpu_run(vcpu, -1, &event) != UMDEV_XEN_STOPPED)
        CHECK(event.kind == UMDEV_XEN_CONFIG);
    return NULL;
}

/* A guest that never rests, while its tables change and its device goes. */
static void test_threads(void)
{
    umdev_xen_vcpu *vcpu;
    umdev_xen *domain = start(&vcpu);
    pthread_t thread;
    const uint64_t one = 1;
    CHECK(pthread_create(&thread, NULL, run, vcpu) == 0);
    for (int i = 0; i < 2000; i++) {
        const struct fields fields = {BAR, 1, 1, 4, 0, 0, 0, 1};
        if ((__atomic_load_n(page + REQUEST_FLAGS, __ATOMIC_ACQUIRE) & 0xF) != STATE_READY &&
            (__atomic_load_n(page + REQUEST_FLAGS, __ATOMIC_ACQUIRE) & 0xF) != STATE_IN_PROCESS) {
            for (uint32_t at = 0; at < REQUEST_FLAGS; at += 2) /* as another machine's processor: word by word */
                __atomic_store_n((uint16_t *)(void *)(page + at), ((const uint16_t *)(const void *)&fields)[at / 2],
                                 __ATOMIC_RELAXED);
            __atomic_store_n(page + REQUEST_TYPE, 1, __ATOMIC_RELAXED);
            __atomic_store_n(page + REQUEST_FLAGS, STATE_READY, __ATOMIC_RELEASE);
            CHECK(write(channel, &one, sizeof one) == sizeof one);
        }
        const umdev_xen_range range = {BAR, sizeof device.bytes, &device, 0, 0};
        CHECK(umdev_xen_publish(domain, &range, i & 1) == 0);
        if (!(i & 1)) {
            umdev_xen_drain(domain);
            device.bytes[0] = (uint8_t)i; /* nobody is inside: no lock is needed */
        }
    }
    umdev_xen_stop(domain);
    CHECK(pthread_join(thread, NULL) == 0);
    umdev_xen_free(domain);
}

int main(void)
{
    page = mmap(NULL, UMDEV_XEN_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    channel = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK(page != MAP_FAILED && channel >= 0);
    test_requests();
    test_anything();
    test_interrupts();
    memset(page, 0, UMDEV_XEN_PAGE);
    test_threads();
    munmap(page, UMDEV_XEN_PAGE);
    close(channel);
    puts("loop: ok");
    return 0;
}
