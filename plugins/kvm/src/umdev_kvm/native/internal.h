/* What the files of this module share. */
#ifndef UMDEV_KVM_INTERNAL_H
#define UMDEV_KVM_INTERNAL_H

#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>

#include "umdev.h"

#include "kvm_decls.h"
#include "emulate_decls.h"

#define UMDEV_KVM_VCPUS 64
#define UMDEV_KVM_FUNCTIONS 32
#define UMDEV_KVM_PINS 24 /* of the I/O interrupt controller */

/* The machine's fixed addresses; layout.py has them for people and tables. */
#define UMDEV_KVM_ECAM 0xB0000000u
#define UMDEV_KVM_ECAM_SIZE 0x100000u
#define UMDEV_KVM_SERIAL_PORT 0x3F8u
#define UMDEV_KVM_SERIAL_GSI 4u
#define UMDEV_KVM_EXIT_PORT 0xF4u
#define UMDEV_KVM_PM_PORT 0x600u

enum umdev_kvm_target_kind {
    TARGET_DEVICE,
    TARGET_CONFIG_ADDRESS,
    TARGET_CONFIG_DATA,
    TARGET_ECAM,
    TARGET_SERIAL,
    TARGET_EXIT,
    TARGET_KEYBOARD,
    TARGET_POWER
};

/* A processor's store that nothing decodes. 1: it was to memory, and is done. */
typedef int (*umdev_kvm_store)(void *context, uint64_t address, const uint8_t *bytes, uint32_t length);

/* Where an access goes. */
struct umdev_kvm_target {
    enum umdev_kvm_target_kind kind;
    umdev_kvm_range range;
};

/* An immutable table, sorted by start; one piece of memory. */
struct umdev_kvm_table {
    uint32_t count[2]; /* memory, I/O */
    struct umdev_kvm_target *targets[2];
    struct umdev_kvm_target storage[];
};

/* A 16550 (PC16550D data sheet, section 8): registers as last written, and the receiver's queue. */
struct umdev_kvm_serial {
    pthread_mutex_t mutex;
    int console;
    uint64_t room; /* bytes that it still takes */
    uint8_t interrupt_enable, line_control, modem_control, scratch, divisor[2], fifo_control;
    bool transmitter_empty_pends;
    bool level;
    uint32_t head, tail;
    uint8_t queue[4096];
};

/* Hears the doorbells of one device, in a thread of its own; of another device when the first has none left. */
struct umdev_kvm_listener {
    umdev_kvm *machine;
    umdev_device *device;
    int poll; /* epoll */
    pthread_t thread;
    uint32_t bells;
    uint32_t ringing; /* heard by any thread, and being told */
};

struct umdev_kvm_doorbell {
    struct umdev_kvm_listener *listener; /* NULL: unused */
    int fd;
    struct kvm_ioeventfd kernel;
    uint64_t value;
    uint32_t region;
    uint64_t offset;
};

#define UMDEV_KVM_DOORBELLS 256

struct umdev_kvm_vcpu {
    umdev_kvm *machine;
    uint32_t index;
    int fd;
    struct kvm_run *run;
    atomic_bool in_guest;
    bool has_thread; /* with gate_mutex */
    pthread_t thread;
    _Atomic(const struct umdev_kvm_table *) reading;
    _Atomic uint64_t exits[6];   /* in the order of umdev_kvm_exits */
    uint64_t last_generation;    /* of the table that `last` is from; 0: of none */
    struct umdev_kvm_target last; /* the memory range found last */
    int signal;    /* that kicks its thread */
    sigset_t mask; /* of the thread before it took the processor */
    struct kvm_sregs made; /* what it was made with */
};

/* What every exit looks at stands first: after an exit nothing is in the caches, and each page that is touched
 * costs. */
struct umdev_kvm {
    const umdev_api *api;
    int (*access)(umdev_device *device, uint32_t region, uint64_t offset, void *bytes, uint32_t length, uint32_t flags,
                  uint32_t initiator, uint32_t space); /* of `api`, on one page less */
    atomic_uint gate; /* > 0: nobody enters the guest */
    atomic_bool ending;
    atomic_bool posting;           /* there has been a zone of posted stores, so the ring is looked at */
    _Atomic uint64_t generation;   /* of the table */
    _Atomic(struct umdev_kvm_table *) table;

    int kvm, vm;
    size_t run_size;
    uint32_t vcpu_count;
    umdev_kvm_vcpu *vcpus[UMDEV_KVM_VCPUS];

    pthread_mutex_t gate_mutex;
    pthread_cond_t gate_changed;

    pthread_mutex_t table_mutex; /* of those who replace the table */
    _Atomic(umdev_device *) functions[UMDEV_KVM_FUNCTIONS];
    _Atomic uint32_t config_address;
    _Atomic uint32_t power[4];
    struct umdev_kvm_serial serial;

    pthread_mutex_t ring_mutex;
    _Atomic(const void *) ring_owner;
    struct kvm_coalesced_mmio_ring *ring;
    uint32_t ring_slots;

    pthread_mutex_t bell_mutex;
    int bell_end; /* eventfd */
    pthread_cond_t bell_changed;
    uint32_t listener_count;
    struct umdev_kvm_listener listeners[UMDEV_KVM_FUNCTIONS];
    struct umdev_kvm_doorbell bells[UMDEV_KVM_DOORBELLS];

    _Atomic(umdev_kvm_store) store;
    void *store_context; /* set before `store` is */

    _Atomic uint64_t unclaimed, coalesced, doorbells;
};

#define UMDEV_KVM_LIKELY(x) __builtin_expect(!!(x), 1)
#define UMDEV_KVM_UNLIKELY(x) __builtin_expect(!!(x), 0)

static inline void umdev_kvm_count(_Atomic uint64_t *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

/* dispatch.c */
int umdev_kvm_table_init(umdev_kvm *machine);
void umdev_kvm_table_free(umdev_kvm *machine);
/* One access; 0, or an event kind that Python must see (filled in but for its length of life). `vcpu` NULL: the
 * host. */
int umdev_kvm_dispatch(umdev_kvm *machine, umdev_kvm_vcpu *vcpu, bool io, uint64_t address, uint8_t *bytes,
                       uint32_t length, bool write, umdev_kvm_event *event);
/* config.c */
int umdev_kvm_config(umdev_kvm *machine, uint32_t function, uint32_t offset, uint8_t *bytes, uint32_t length,
                     bool write, uint32_t initiator, umdev_kvm_event *event);
/* serial.c */
void umdev_kvm_serial_init(umdev_kvm *machine, int console, uint64_t room);
void umdev_kvm_serial_free(umdev_kvm *machine);
void umdev_kvm_serial_access(umdev_kvm *machine, uint32_t offset, uint8_t *bytes, uint32_t length, bool write);
/* platform.c */
int umdev_kvm_platform(umdev_kvm *machine, enum umdev_kvm_target_kind kind, uint32_t offset, uint8_t *bytes,
                       uint32_t length, bool write, umdev_kvm_event *event);
/* gate.c */
int umdev_kvm_gate_init(void); /* -EBUSY: the process has a use of its own for every real-time signal */
void umdev_kvm_gate_take(umdev_kvm_vcpu *vcpu); /* the calling thread runs it, until `give` */
void umdev_kvm_gate_give(umdev_kvm_vcpu *vcpu);
bool umdev_kvm_gate_wait(umdev_kvm_vcpu *vcpu); /* until the gate is open; false: the run ends */
void umdev_kvm_gate_pass(umdev_kvm_vcpu *vcpu); /* enter once it is open, the run's end or not, to leave at once */
void umdev_kvm_gate_tell(umdev_kvm *machine);   /* who waits for processors to leave */
/* doorbell.c */
void umdev_kvm_bells_close(umdev_kvm *machine);
/* vcpu.c */
void umdev_kvm_vcpu_free(umdev_kvm_vcpu *vcpu);

#endif
