/* One domain's device model by an ioreq server: no directives, cffi reads this too.
 *
 * Functions that return int give 0 or a negative errno, unless said otherwise. The caller keeps umdev_device objects
 * alive as long as a range or slot names them (and until umdev_xen_drain has returned after it), and frees the object
 * when no other call is under way.
 */
typedef struct umdev_xen umdev_xen;
typedef struct umdev_xen_vcpu umdev_xen_vcpu;
typedef struct umdev_xen_wire umdev_xen_wire;

/* What the loop calls of Xen's stable libraries (xenevtchn.h, xendevicemodel.h, xenforeignmemory.h): they are loaded at
 * run time, so their addresses come from there. */
typedef struct umdev_xen_calls {
    int (*evtchn_pending)(void *handle);
    int (*evtchn_unmask)(void *handle, uint32_t port);
    int (*evtchn_notify)(void *handle, uint32_t port);
    int (*inject_msi)(void *handle, uint16_t domain, uint64_t address, uint32_t data);
    int (*set_pci_intx_level)(void *handle, uint16_t domain, uint16_t segment, uint8_t bus, uint8_t device,
                              uint8_t pin, unsigned int level);
    void *(*foreign_map)(void *handle, uint32_t domain, int protection, size_t pages, const unsigned long *frames,
                         int *errors);
    int (*foreign_unmap)(void *handle, void *address, size_t pages);
    void *device_model; /* the handles, borrowed */
    void *foreign_memory;
} umdev_xen_calls;

/* What umdev_xen_vcpu_run comes back for; all but STOPPED: call it again, and the request goes on. */
enum umdev_xen_event_kind {
    UMDEV_XEN_STOPPED = 1,    /* umdev_xen_stop was called */
    UMDEV_XEN_CONFIG = 2,     /* the guest wrote to configuration space of `slot`, which has been done */
    UMDEV_XEN_INVALIDATE = 3, /* it gave memory back: every mapping of its memory must be dropped */
    UMDEV_XEN_STORE = 4,      /* it stores `length` bytes of `value` to an emulated page, by itself or with what a
                               * device gave; the store has not landed */
    UMDEV_XEN_IDLE = 5,       /* nothing has come for the time given */
    UMDEV_XEN_FAILED = 6      /* the event channel failed: errno in `detail` */
};

typedef struct umdev_xen_event {
    uint32_t kind;
    uint32_t detail;
    uint64_t address;
    uint64_t value;
    uint32_t length;
    uint32_t slot;
} umdev_xen_event;

typedef struct umdev_xen_counters {
    uint64_t requests;    /* taken from the ring pages */
    uint64_t accesses;    /* that they stood for: a repeated one counts as often as it is repeated */
    uint64_t unclaimed;   /* accesses where nothing decodes */
    uint64_t malformed;   /* requests that no processor makes: size, count, type, or address; answered all ones */
    uint64_t unreachable; /* data by pointer whose page could not be mapped: all ones, or dropped */
    uint64_t messages;    /* MSI and MSI-X injected */
    uint64_t lost;        /* messages to an address that is no interrupt's, and what Xen refused */
    uint64_t stores;      /* to emulated pages */
} umdev_xen_counters;

/* Part of an address space that leads to a device. */
typedef struct umdev_xen_range {
    uint64_t start;
    uint64_t length;
    umdev_device *device;
    uint32_t region;
    uint32_t io; /* 1: an I/O port range */
} umdev_xen_range;

/* `page`: the ring page with one slot per processor (struct ioreq, xen/hvm/ioreq.h), mapped; borrowed. NULL: no
 * memory. */
umdev_xen *umdev_xen_new(const umdev_api *api, const umdev_xen_calls *calls, uint16_t domain, void *page);
void umdev_xen_free(umdev_xen *domain);
void umdev_xen_read_counters(umdev_xen *domain, umdev_xen_counters *ret);

/* Replaces the device ranges. -EEXIST if two overlap, -ENOMEM. */
int umdev_xen_publish(umdev_xen *domain, const umdev_xen_range *ranges, uint32_t count);
/* The function in a PCI slot (1 to 31); NULL: none. */
int umdev_xen_set_function(umdev_xen *domain, uint32_t slot, umdev_device *device);
/* Own 00:00.0 and the latch at port 0xCF8: for domains that have no host bridge (PVH). */
void umdev_xen_set_bridge(umdev_xen *domain, int present);
/* Pages (frame numbers, ascending) whose stores come as UMDEV_XEN_STORE. */
int umdev_xen_set_emulated(umdev_xen *domain, const uint64_t *frames, uint32_t count);
/* Hold answers back, so that what the ring page shows stays; nothing else may be called but umdev_xen_is_busy. */
void umdev_xen_hold(umdev_xen *domain);
void umdev_xen_unhold(umdev_xen *domain);
/* 1: a processor waits for a store to the page, or may still be ending one that was answered. Hold answers back. */
int umdev_xen_is_busy(umdev_xen *domain, uint64_t frame);
/* No processor's thread is inside a device that was taken out of the tables before the call (but the caller's own). */
void umdev_xen_drain(umdev_xen *domain);
/* Make every run return UMDEV_XEN_STOPPED, for good. What is being repeated is answered all ones. */
void umdev_xen_stop(umdev_xen *domain);
/* Guest memory through the loop's own small cache of mappings: 0, -EFAULT. At most a page's worth. */
int umdev_xen_copy(umdev_xen *domain, uint64_t address, void *bytes, uint32_t length, int write);
/* Pages to remember stores to that umdev_xen_copy does, from now on; those remembered before are forgotten. */
int umdev_xen_set_tracked(umdev_xen *domain, uint64_t first, uint32_t count);
/* Those stored to since the last call, a bit for each of them: (count + 7) / 8 bytes. */
void umdev_xen_take_landed(umdev_xen *domain, uint8_t *ret);
/* Drop that cache. */
void umdev_xen_forget(umdev_xen *domain);

/* A processor: slot `index` of the ring page, and its event channel. `handle`, a xenevtchn_handle with `port` alone
 * bound, is borrowed; `fd` is its descriptor. Freed with the domain. NULL: no memory, or a bad index. */
umdev_xen_vcpu *umdev_xen_vcpu_new(umdev_xen *domain, uint32_t index, void *handle, int fd, uint32_t port);
/* By one thread; returns the kind. `patience`: milliseconds until UMDEV_XEN_IDLE, -1: never. */
int umdev_xen_vcpu_run(umdev_xen_vcpu *vcpu, int patience, umdev_xen_event *ret);

/* Interrupts of the function in a slot; `pin` 0: it has none that the domain could deliver. The listeners are for
 * InterruptPort.on_level and on_message, with the wire as context; free it when they have ended. */
umdev_xen_wire *umdev_xen_wire_new(umdev_xen *domain, uint32_t slot, uint32_t pin);
void umdev_xen_wire_free(umdev_xen_wire *wire);
/* Where MSI goes: `count` messages are allocated. */
void umdev_xen_wire_set_msi(umdev_xen_wire *wire, uint64_t address, uint32_t data, uint32_t count);
void umdev_xen_wire_level(void *wire, int level);
void umdev_xen_wire_message(void *wire, uint32_t index, uint32_t vector, uint64_t address, uint32_t data);

/* Put `length` bytes of a file in place of what is mapped at `address`. */
int umdev_xen_map_file(uint64_t address, uint64_t length, int fd, uint64_t offset);
