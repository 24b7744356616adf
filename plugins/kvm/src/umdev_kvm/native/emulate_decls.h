/* Stores to read-only memory slots, given to devices one by one; no directives, cffi reads this too.
 * Addresses are the guest's. One umdev_kvm_emulator for a machine; it outlives the machine's kernel objects. */
typedef struct umdev_kvm_emulator umdev_kvm_emulator;
typedef struct umdev_kvm_watcher umdev_kvm_watcher; /* one device's pages */

/* One store of `length` (1 to 8) bytes, in the processor's own thread with the device lock held. 1: the device has it;
 * 0: it has not (its model failed), and the store lands if no other has. */
typedef int (*umdev_kvm_store_notify)(void *context, uint64_t address, uint64_t value, uint32_t length);

umdev_kvm_emulator *umdev_kvm_emulator_new(const umdev_api *api);
void umdev_kvm_emulator_free(umdev_kvm_emulator *emulator); /* when no processor runs and no watcher is left */
/* From now on stores to `machine` that no slot takes come here. */
void umdev_kvm_emulator_connect(umdev_kvm_emulator *emulator, umdev_kvm *machine);
/* `length` bytes of memory at `guest` are at `host` in this process: where a store lands that nobody watches any more.
 * 0, -ENOSPC, -ENOMEM. */
int umdev_kvm_emulator_add_memory(umdev_kvm_emulator *emulator, uint64_t guest, uint64_t length, uint64_t host);
uint64_t umdev_kvm_emulator_stores(umdev_kvm_emulator *emulator); /* that came here so far */

umdev_kvm_watcher *umdev_kvm_watcher_new(umdev_kvm_emulator *emulator, umdev_device *device,
                                         umdev_kvm_store_notify notify, void *context);
/* No notification begins later, and none is running on return unless the caller holds the device lock inside it. */
void umdev_kvm_watcher_free(umdev_kvm_watcher *watcher);
/* 0, -EFAULT (no memory there), -ENOMEM. */
int umdev_kvm_watcher_set(umdev_kvm_watcher *watcher, uint64_t page, int watched);
