/* One machine on /dev/kvm: no directives, cffi reads this too.
 *
 * Functions that return int give 0 or a negative errno, unless said otherwise. The caller keeps umdev_device objects
 * alive as long as a range or slot names them, and frees the machine when no other call is under way.
 */
typedef struct umdev_kvm umdev_kvm;
typedef struct umdev_kvm_vcpu umdev_kvm_vcpu;

/* What ends umdev_kvm_vcpu_run. */
enum umdev_kvm_event_kind {
    UMDEV_KVM_STOPPED = 1,    /* umdev_kvm_end was called */
    UMDEV_KVM_EXITED = 2,     /* the guest wrote `value` to the exit port */
    UMDEV_KVM_RESET = 3,      /* it asked for a reset */
    UMDEV_KVM_POWERED_OFF = 4,
    UMDEV_KVM_SHUT_DOWN = 5,  /* triple fault */
    UMDEV_KVM_CONFIG = 6,     /* it wrote to configuration space of `slot`, which has been done; run on afterwards */
    UMDEV_KVM_VECTOR = 7,     /* it writes `length` bytes of `value` to the MSI-X table of `slot`, which has NOT been
                                 done: `address` is the offset in region `detail` */
    UMDEV_KVM_INTERNAL = 8,   /* KVM_EXIT_INTERNAL_ERROR: suberror in `detail`, first data word in `value` */
    UMDEV_KVM_ENTRY_FAILED = 9, /* KVM_EXIT_FAIL_ENTRY: hardware reason in `value` */
    UMDEV_KVM_UNKNOWN = 10,   /* an exit this loop does not know: its reason in `detail` */
    UMDEV_KVM_FAILED = 11     /* KVM_RUN failed: errno in `detail` */
};

typedef struct umdev_kvm_event {
    uint32_t kind;
    uint32_t detail;
    uint64_t address;
    uint64_t value;
    uint32_t length;
    uint32_t slot;
} umdev_kvm_event;

/* Exits of one virtual processor. Each counter is written by its thread and read by any. */
typedef struct umdev_kvm_exits {
    uint64_t memory_reads;
    uint64_t memory_writes;
    uint64_t port_reads;
    uint64_t port_writes;
    uint64_t interrupted; /* by a signal: stops, pauses, the time limit */
    uint64_t other;
} umdev_kvm_exits;

typedef struct umdev_kvm_counters {
    uint64_t unclaimed; /* accesses where nothing decodes */
    uint64_t coalesced; /* stores taken from the ring */
    uint64_t doorbells; /* eventfds of doorbells that were heard */
} umdev_kvm_counters;

/* Part of an address space that leads to a device. */
typedef struct umdev_kvm_range {
    uint64_t start;
    uint64_t length;
    umdev_device *device;
    uint32_t region;
    uint32_t slot;
    uint32_t io;           /* 1: an I/O port range */
    uint32_t reserved;
    uint64_t table_offset; /* of the MSI-X table in the region */
    uint64_t table_length; /* 0: none here */
} umdev_kvm_range;

typedef struct umdev_kvm_message {
    uint32_t gsi;
    uint32_t data;
    uint64_t address;
} umdev_kvm_message;

/* The machine: kernel objects with interrupt controllers and timer. `console`, borrowed, gets what the
 * serial port sends, at most `room` bytes; -1: nothing does. On failure *failed names the kernel's call. */
umdev_kvm *umdev_kvm_new(const umdev_api *api, int console, uint64_t room, int *error, const char **failed);
void umdev_kvm_free(umdev_kvm *machine);
/* Instead of it in a forked child, where neither the threads are nor who held the locks: what keeps the kernel's
 * objects alive goes, and the rest stays until the child ends. */
void umdev_kvm_abandon(umdev_kvm *machine);
int umdev_kvm_extension(const umdev_kvm *machine, uint32_t capability); /* KVM_CHECK_EXTENSION; negative: errno */
int umdev_kvm_descriptor(const umdev_kvm *machine);                     /* the VM's, borrowed */
void umdev_kvm_read_counters(const umdev_kvm *machine, umdev_kvm_counters *ret);

/* Memory slots; see KVM_SET_USER_MEMORY_REGION. size 0 deletes. */
int umdev_kvm_set_slot(umdev_kvm *machine, uint32_t slot, uint64_t guest, uint64_t size, uint64_t host,
                       uint32_t flags);

/* Replaces the device ranges; lookups under way finish with the old ones. -EEXIST if two overlap. */
int umdev_kvm_publish(umdev_kvm *machine, const umdev_kvm_range *ranges, uint32_t count);
/* The function in a PCI slot (0 to 31; 0 is the host bridge's); NULL: none. */
int umdev_kvm_set_function(umdev_kvm *machine, uint32_t slot, umdev_device *device);
/* An access by the host as if by a processor. Nothing decodes: all ones and -ENOENT. Config writes and MSI-X table
 * writes are done, and reported by 1: the caller looks what follows from them. */
int umdev_kvm_access(umdev_kvm *machine, int io, uint64_t address, void *bytes, uint32_t length, int write);

/* Interrupts. `resample` -1: an edge. */
int umdev_kvm_set_irqfd(umdev_kvm *machine, uint32_t gsi, int fd, int resample, int assign);
int umdev_kvm_set_messages(umdev_kvm *machine, const umdev_kvm_message *messages, uint32_t count);
int umdev_kvm_set_line(umdev_kvm *machine, uint32_t gsi, int level);

/* A doorbell: a store at `address` signals, with no exit; a thread of the device's own then writes `length` bytes of
 * `value` to it, after all stores that were posted before. At most 32 devices, then -ENOSPC. any: whatever is stored
 * matches, and `value` stands for it. */
int umdev_kvm_add_doorbell(umdev_kvm *machine, uint32_t id, int io, uint64_t address, uint32_t length, uint64_t value,
                           int any, umdev_device *device, uint32_t region, uint64_t offset);
int umdev_kvm_remove_doorbell(umdev_kvm *machine, uint32_t id);
/* Doorbells that have been rung are told when it returns: those of a device, NULL: all. It waits for no other device's
 * lock; not with one held. */
void umdev_kvm_ring(umdev_kvm *machine, const umdev_device *device);
/* Stores to the zone are kept in a ring with no exit, and done before anything else reaches a device. */
int umdev_kvm_set_posted(umdev_kvm *machine, uint64_t address, uint32_t length, int enabled);
void umdev_kvm_drain(umdev_kvm *machine);

/* The serial port's receiver: how many bytes it took. */
uint32_t umdev_kvm_serial_receive(umdev_kvm *machine, const void *bytes, uint32_t length);

/* Processors. Made while none runs; freed with the machine. */
umdev_kvm_vcpu *umdev_kvm_vcpu_new(umdev_kvm *machine, int *error, const char **failed);
int umdev_kvm_vcpu_run(umdev_kvm_vcpu *vcpu, umdev_kvm_event *ret); /* by one thread; returns the kind */
/* Finish the access that the last run ended in, with no further instruction: UMDEV_KVM_STOPPED when nothing is left of
 * it, else an event as from a run, and to be called again. Not while it runs; waits while a stop holds the
 * processors. */
int umdev_kvm_vcpu_finish(umdev_kvm_vcpu *vcpu, umdev_kvm_event *ret);
void umdev_kvm_vcpu_read_exits(const umdev_kvm_vcpu *vcpu, umdev_kvm_exits *ret);
/* State at the first instruction, of a processor whose accesses are finished: as it was made, but for what the mode
 * says (0 real, 1 protected, 2 long), and for its local APIC's registers; the place and the mode of that one are as
 * they were made. Tables are written by the caller. */
int umdev_kvm_vcpu_set_entry(umdev_kvm_vcpu *vcpu, int mode, uint64_t entry, uint64_t stack, uint64_t argument,
                             uint64_t second, uint64_t gdt, uint64_t page_table);
/* It runs when another one starts it (INIT, then SIPI). */
int umdev_kvm_vcpu_set_waiting(umdev_kvm_vcpu *vcpu);
/* rax rbx rcx rdx rsi rdi rsp rbp r8..r15 rip rflags, then cr0 cr2 cr3 cr4 efer and the base of cs. */
int umdev_kvm_vcpu_read_registers(umdev_kvm_vcpu *vcpu, uint64_t registers[24]);
/* Fault second-level entries in ahead of use; needs the processor out of the guest. -ENOTTY where the kernel can't. */
int umdev_kvm_vcpu_prefault(umdev_kvm_vcpu *vcpu, uint64_t guest, uint64_t length);

/* Stops nest. When stop returns no processor is in the guest; those that leave handlers wait at the door. A stop from a
 * handler, in a processor's own thread, is fine. */
void umdev_kvm_stop(umdev_kvm *machine);
/* The same, but -ETIMEDOUT and nothing has changed if one does not leave: it may wait inside the kernel for something
 * that the caller holds. */
int umdev_kvm_stop_within(umdev_kvm *machine, uint32_t seconds);
void umdev_kvm_resume(umdev_kvm *machine);
/* Make every run return UMDEV_KVM_STOPPED, now and until `begin`; processors that wait at the door included. */
void umdev_kvm_end(umdev_kvm *machine);
/* Processors are interrupted by a real-time signal whose disposition was the default, for the whole process:
 * SIGRTMAX-3, or else the next one below. -EBUSY: there is none. */
int umdev_kvm_begin(umdev_kvm *machine);

/* A long-term pin that no hardware asked for: io_uring's registered buffers. */
typedef struct umdev_kvm_pins umdev_kvm_pins;
umdev_kvm_pins *umdev_kvm_pins_new(uint32_t places, int *error);
int umdev_kvm_pins_set(umdev_kvm_pins *pins, uint32_t place, uint64_t address, uint64_t length); /* length 0: unpin */
void umdev_kvm_pins_free(umdev_kvm_pins *pins);
