/* From an address to what decodes it. */
#include "internal.h"

#include <sched.h>
#include <stdlib.h>

static const struct umdev_kvm_target fixed_memory[] = {
    {TARGET_ECAM, {.start = UMDEV_KVM_ECAM, .length = UMDEV_KVM_ECAM_SIZE}},
};
static const struct umdev_kvm_target fixed_io[] = {
    {TARGET_KEYBOARD, {.start = 0x60, .length = 1}},
    {TARGET_KEYBOARD, {.start = 0x64, .length = 1}},
    {TARGET_EXIT, {.start = UMDEV_KVM_EXIT_PORT, .length = 4}},
    {TARGET_SERIAL, {.start = UMDEV_KVM_SERIAL_PORT, .length = 8}},
    {TARGET_POWER, {.start = UMDEV_KVM_PM_PORT, .length = 16}},
    {TARGET_CONFIG_ADDRESS, {.start = 0xCF8, .length = 4}},
    {TARGET_CONFIG_DATA, {.start = 0xCFC, .length = 4}},
};

static int by_start(const void *left, const void *right)
{
    const struct umdev_kvm_target *a = left, *b = right;
    return a->range.start < b->range.start ? -1 : a->range.start > b->range.start;
}

static struct umdev_kvm_table *table_build(const umdev_kvm_range *ranges, uint32_t count)
{
    size_t most = sizeof fixed_io / sizeof *fixed_io + sizeof fixed_memory / sizeof *fixed_memory + count;
    struct umdev_kvm_table *table = calloc(1, sizeof *table + most * sizeof *table->storage);
    if (!table)
        return NULL;
    for (int io = 0; io < 2; io++) {
        const struct umdev_kvm_target *fixed = io ? fixed_io : fixed_memory;
        size_t fixed_count = io ? sizeof fixed_io / sizeof *fixed_io : sizeof fixed_memory / sizeof *fixed_memory;
        table->targets[io] = table->storage + (io ? table->count[0] : 0);
        memcpy(table->targets[io], fixed, fixed_count * sizeof *fixed);
        table->count[io] = (uint32_t)fixed_count;
        for (uint32_t i = 0; i < count; i++)
            if ((int)(ranges[i].io != 0) == io)
                table->targets[io][table->count[io]++] =
                    (struct umdev_kvm_target){.kind = TARGET_DEVICE, .range = ranges[i]};
        qsort(table->targets[io], table->count[io], sizeof **table->targets, by_start);
    }
    return table;
}

static bool table_overlaps(const struct umdev_kvm_table *table)
{
    for (int io = 0; io < 2; io++)
        for (uint32_t i = 1; i < table->count[io]; i++) {
            const umdev_kvm_range *before = &table->targets[io][i - 1].range;
            if (table->targets[io][i].range.start - before->start < before->length)
                return true;
        }
    return false;
}

int umdev_kvm_table_init(umdev_kvm *machine)
{
    struct umdev_kvm_table *table = table_build(NULL, 0);
    atomic_store(&machine->table, table);
    atomic_store(&machine->generation, 1);
    return table ? 0 : -ENOMEM;
}

void umdev_kvm_table_free(umdev_kvm *machine)
{
    free(atomic_load(&machine->table));
}

/* A processor shows which table it looks at; the shown one is not deleted. Looking takes nanoseconds, and nothing else
 * happens meanwhile, so whoever publishes may wait for it. */
int umdev_kvm_publish(umdev_kvm *machine, const umdev_kvm_range *ranges, uint32_t count)
{
    struct umdev_kvm_table *table = table_build(ranges, count);
    if (!table)
        return -ENOMEM;
    if (table_overlaps(table)) {
        free(table);
        return -EEXIST;
    }
    pthread_mutex_lock(&machine->table_mutex);
    struct umdev_kvm_table *old = atomic_exchange(&machine->table, table);
    atomic_fetch_add(&machine->generation, 1);
    for (uint32_t i = 0; i < machine->vcpu_count; i++)
        while (atomic_load(&machine->vcpus[i]->reading) == old)
            sched_yield();
    pthread_mutex_unlock(&machine->table_mutex);
    free(old);
    return 0;
}

int umdev_kvm_set_function(umdev_kvm *machine, uint32_t slot, umdev_device *device)
{
    if (slot == 0 || slot >= UMDEV_KVM_FUNCTIONS)
        return -EINVAL;
    atomic_store(&machine->functions[slot], device);
    return 0;
}

static bool target_holds(const struct umdev_kvm_target *target, uint64_t address, uint32_t length)
{
    uint64_t offset = address - target->range.start;
    return offset < target->range.length && length <= target->range.length - offset;
}

static bool table_find(const struct umdev_kvm_table *table, bool io, uint64_t address, uint32_t length,
                       struct umdev_kvm_target *ret)
{
    const struct umdev_kvm_target *targets = table->targets[io];
    uint32_t low = 0, high = table->count[io];
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (targets[middle].range.start <= address)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return false;
    *ret = targets[low - 1];
    return target_holds(ret, address, length);
}

static __attribute__((noinline)) bool find(umdev_kvm *machine, umdev_kvm_vcpu *vcpu, bool io, uint64_t address,
                                           uint32_t length, struct umdev_kvm_target *ret)
{
    bool found;
    if (!vcpu) { /* the host: who publishes waits for the mutex */
        pthread_mutex_lock(&machine->table_mutex);
        found = table_find(atomic_load(&machine->table), io, address, length, ret);
        pthread_mutex_unlock(&machine->table_mutex);
        return found;
    }
    uint64_t generation = atomic_load(&machine->generation);
    const struct umdev_kvm_table *table;
    do {
        table = atomic_load(&machine->table);
        atomic_store(&vcpu->reading, table);
    } while (table != atomic_load(&machine->table)); /* replaced before it was shown */
    found = table_find(table, io, address, length, ret);
    atomic_store_explicit(&vcpu->reading, NULL, memory_order_release);
    if (found && !io) { /* the generation was read before the table: an older one at worst, which is not used */
        vcpu->last = *ret;
        vcpu->last_generation = generation;
    }
    return found;
}

static inline int to_device(umdev_kvm *machine, umdev_kvm_vcpu *vcpu, const umdev_kvm_range *range, uint64_t offset,
                            uint8_t *bytes, uint32_t length, bool write, umdev_kvm_event *event)
{
    if (write && range->table_length && offset < range->table_offset + range->table_length &&
        range->table_offset < offset + length) {
        *event = (umdev_kvm_event){.kind = UMDEV_KVM_VECTOR,
                                   .detail = range->region,
                                   .address = offset,
                                   .length = length,
                                   .slot = range->slot};
        memcpy(&event->value, bytes, length < 8 ? length : 8);
        return UMDEV_KVM_VECTOR;
    }
    uint32_t flags = write ? UMDEV_WRITE | (range->io ? 0u : (uint32_t)UMDEV_POSTED) : 0;
    int result = machine->access(range->device, range->region, offset, bytes, length, flags, vcpu ? vcpu->index : 0, 0);
    if (result < 0 && !write)
        memset(bytes, 0xFF, length);
    return 0;
}

static __attribute__((noinline)) int dispatch(umdev_kvm *machine, umdev_kvm_vcpu *vcpu, bool io, uint64_t address,
                                              uint8_t *bytes, uint32_t length, bool write, umdev_kvm_event *event)
{
    struct umdev_kvm_target target;
    if (!find(machine, vcpu, io, address, length, &target)) {
        umdev_kvm_store store = vcpu && write && !io ? atomic_load(&machine->store) : NULL;
        if (store && store(machine->store_context, address, bytes, length))
            return 0;
        umdev_kvm_count(&machine->unclaimed);
        if (!write)
            memset(bytes, 0xFF, length);
        return -ENOENT;
    }
    uint64_t offset = address - target.range.start;
    uint32_t initiator = vcpu ? vcpu->index : 0;
    switch (target.kind) {
    case TARGET_DEVICE:
        return to_device(machine, vcpu, &target.range, offset, bytes, length, write, event);
    case TARGET_ECAM: /* bus 0: device 31:15, function 14:12, offset 11:0 (PCI Express Base 5.0, 7.2.2) */
        return umdev_kvm_config(machine, (uint32_t)(offset >> 12), offset & 0xFFF, bytes, length, write, initiator,
                                event);
    case TARGET_CONFIG_ADDRESS: {
        uint32_t latch = atomic_load(&machine->config_address);
        if (length == 4 && write) { /* smaller accesses are ordinary I/O, for nobody (PCI Local Bus 3.0, 3.2.2.3.2) */
            memcpy(&latch, bytes, 4);
            atomic_store(&machine->config_address, latch);
        } else if (!write) {
            memcpy(bytes, (uint8_t *)&latch + offset, length);
        }
        return 0;
    }
    case TARGET_CONFIG_DATA: {
        uint32_t latch = atomic_load(&machine->config_address);
        if (!(latch & 1u << 31) || (latch >> 16 & 0xFF)) {
            if (!write)
                memset(bytes, 0xFF, length);
            return 0;
        }
        return umdev_kvm_config(machine, latch >> 8 & 0xFF, (latch & 0xFC) + (uint32_t)offset, bytes, length, write,
                                initiator, event);
    }
    case TARGET_SERIAL:
        umdev_kvm_serial_access(machine, (uint32_t)offset, bytes, length, write);
        return 0;
    default:
        return umdev_kvm_platform(machine, target.kind, (uint32_t)offset, bytes, length, write, event);
    }
}

__attribute__((hot)) int umdev_kvm_dispatch(umdev_kvm *machine, umdev_kvm_vcpu *vcpu, bool io, uint64_t address,
                                            uint8_t *bytes, uint32_t length, bool write, umdev_kvm_event *event)
{
    /* The memory range that was found last is the one that is wanted, mostly. */
    if (vcpu && !io && vcpu->last_generation == atomic_load(&machine->generation) &&
        target_holds(&vcpu->last, address, length) && vcpu->last.kind == TARGET_DEVICE)
        return to_device(machine, vcpu, &vcpu->last.range, address - vcpu->last.range.start, bytes, length, write,
                         event);
    return dispatch(machine, vcpu, io, address, bytes, length, write, event);
}

int umdev_kvm_access(umdev_kvm *machine, int io, uint64_t address, void *bytes, uint32_t length, int write)
{
    umdev_kvm_event event = {0};
    umdev_kvm_drain(machine);
    int result = umdev_kvm_dispatch(machine, NULL, io, address, bytes, length, write, &event);
    if (result == UMDEV_KVM_VECTOR) { /* the host's driver view has no routes that would have to follow */
        struct umdev_kvm_target target;
        if (!find(machine, NULL, io, address, length, &target))
            return -ENOENT;
        machine->api->access(target.range.device, target.range.region, event.address, bytes, length,
                             UMDEV_WRITE | UMDEV_POSTED, 0, 0);
        return 1;
    }
    return result > 0 ? 1 : result;
}
