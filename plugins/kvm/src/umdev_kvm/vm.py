"""The kernel's machine as an object: every error names the kernel's call and its likely cause."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from umdev.bus import api_address
from umdev.errors import HypervisorError, NotSupported, StateError

from ._fast import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

_CAUSES = {
    ("KVM_CREATE_VM", errno.EBUSY): "another hypervisor has the processor's virtualization extensions",
    ("KVM_CREATE_VM", errno.ENOMEM): "the kernel has no memory for it",
    ("KVM_CREATE_VCPU", errno.EEXIST): "a processor with this number exists",
    ("KVM_CREATE_VCPU", errno.EINVAL): "more processors than KVM supports",
    ("KVM_SET_USER_MEMORY_REGION", errno.EEXIST): "it overlaps another memory slot",
    ("KVM_SET_USER_MEMORY_REGION", errno.EINVAL): "a changed flag on a live slot, a crooked address, or no slot left",
    ("KVM_SET_USER_MEMORY_REGION", errno.ENOMEM): "the kernel has no memory for its page tables",
    ("KVM_IRQFD", errno.EBUSY): "the eventfd is connected already",
    ("KVM_IRQFD", errno.EINVAL): "no such interrupt, or KVM without resampling",
    ("KVM_IOEVENTFD", errno.EEXIST): "a doorbell is there already",
    ("KVM_IOEVENTFD", errno.ENOSPC): "no more devices fit on KVM's bus",
    ("KVM_SET_GSI_ROUTING", errno.EINVAL): "more routes than KVM_CAP_IRQ_ROUTING says",
    ("KVM_PRE_FAULT_MEMORY", errno.ENOENT): "a part of it is no memory of the machine",
    ("KVM_PRE_FAULT_MEMORY", errno.EINVAL): "it has to be whole pages",
    ("sigaction", errno.EBUSY): "the program uses every real-time signal, and a machine needs one with no handler",
    ("KVM_RUN", errno.EIO): "the machine belongs to another process, which this one was forked from",
    ("KVM_RUN", errno.EFAULT): "the guest touched memory whose mapping is gone from this process",
}
_EXIT_NAMES = ("memory_reads", "memory_writes", "port_reads", "port_writes", "interrupted", "other")
REGISTERS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("rip", "rflags", "cr0", "cr2", "cr3", "cr4", "efer", "cs_base"),
)

CAP_PRE_FAULT_MEMORY = 236
"""linux/kvm.h: KVM_CAP_PRE_FAULT_MEMORY (6.11)."""
CAP_NR_MEMSLOTS = 10
CAP_READONLY_MEM = 81
CAP_IRQ_ROUTING = 25
CAP_COALESCED_MMIO = 15


def failure(call: str, code: int) -> HypervisorError:
    """The error for a negative errno `code` of the kernel's `call`."""
    cause = _CAUSES.get((call, -code))
    error = HypervisorError(f"{call}: {os.strerror(-code)}{f' ({cause})' if cause else ''}")
    error.errno = -code
    error.call = call
    return error


def check(code: int, call: str) -> None:
    """Raises: HypervisorError for a negative errno."""
    if code < 0:
        raise failure(call, code)


def open_failure(call: str, code: int) -> Exception:
    """What to raise where a machine can't be made at all."""
    if call == "open(/dev/kvm)":
        if -code == errno.ENOENT:
            return NotSupported(
                "/dev/kvm is missing: modprobe kvm_amd or kvm_intel; in a virtual machine, enable nested virtualization"
            )
        if -code in (errno.EACCES, errno.EPERM):
            return NotSupported("/dev/kvm may not be opened: usermod -aG kvm $USER, then log in anew")
    return failure(call, code)


class Vm:
    """One `umdev_kvm`; a reset of the machine makes another. Any thread may call it, `close` when no other does."""

    def __init__(self, console: int, vcpus: int, console_room: int = 0) -> None:
        """The serial port writes at most `console_room` bytes to the descriptor `console`.

        Raises: NotSupported without a usable /dev/kvm; HypervisorError."""
        api = ffi.cast("umdev_api *", api_address())
        if api.header.major != 1 or api.header.size < ffi.sizeof("umdev_api"):
            has = f"{api.header.major}.{api.header.minor}"
            raise NotSupported(f"umdev-kvm was built for ABI 1 of the core, which has {has}: install both anew")
        error, failed = ffi.new("int *"), ffi.new("const char **")
        self._pointer = lib.umdev_kvm_new(api, console, console_room, error, failed)
        if self._pointer == ffi.NULL:
            raise open_failure(ffi.string(failed[0]).decode(), error[0])
        self._vcpus: list[Any] = []
        for _ in range(vcpus):
            vcpu = lib.umdev_kvm_vcpu_new(self._pointer, error, failed)
            if vcpu == ffi.NULL:
                code, call = error[0], ffi.string(failed[0]).decode()
                self.close()
                raise failure(call, code)
            self._vcpus.append(vcpu)

    @property
    def pointer(self) -> Any:
        """The `umdev_kvm *`. Raises: StateError after `close`."""
        if self._pointer is None:
            raise StateError("the machine is closed")
        return self._pointer

    @property
    def descriptor(self) -> int:
        """The kernel's VM descriptor, borrowed: for ioctls that this class does not have."""
        return int(lib.umdev_kvm_descriptor(self.pointer))

    def vcpu(self, index: int) -> Any:
        """The `umdev_kvm_vcpu *`."""
        return self._vcpus[index]

    def extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION; 0: not there."""
        return max(0, int(lib.umdev_kvm_extension(self.pointer, capability)))

    def publish(self, ranges: Sequence[tuple[object, ...]]) -> None:
        """Replace the ranges that lead to devices; each is the fields of `umdev_kvm_range` in order."""
        array = ffi.new("umdev_kvm_range[]", list(ranges))
        check(lib.umdev_kvm_publish(self.pointer, array, len(ranges)), "the table of ranges")

    def set_function(self, slot: int, device: int) -> None:
        """Put a device (the address of its `umdev_device`, 0: none) into a PCI slot."""
        check(lib.umdev_kvm_set_function(self.pointer, slot, ffi.cast("umdev_device *", device)), "the PCI slot")

    def access(self, address: int, data: bytearray, *, io: bool, write: bool) -> tuple[bool, bool]:
        """An access by the host as if by a processor: whether something decoded, and whether a resync must follow."""
        with ffi.from_buffer("uint8_t[]", data) as native:
            code = lib.umdev_kvm_access(self.pointer, io, address, native, len(data), write)
        return code >= 0, code > 0

    def set_messages(self, messages: Sequence[tuple[int, int, int]]) -> None:
        """Replace all message routes: (gsi, data, address)."""
        array = ffi.new("umdev_kvm_message[]", list(messages))
        check(lib.umdev_kvm_set_messages(self.pointer, array, len(messages)), "KVM_SET_GSI_ROUTING")

    def set_irqfd(self, gsi: int, descriptor: int, resample: int = -1, *, assign: bool = True) -> None:
        """Let an eventfd raise an interrupt; with `resample`, a level that the guest's end of interrupt lowers."""
        check(lib.umdev_kvm_set_irqfd(self.pointer, gsi, descriptor, resample, assign), "KVM_IRQFD")

    def stop_processors(self, seconds: int | None = None) -> None:
        """Hold all processors out of the guest until `resume_processors`; nests. `seconds` None: as long as it takes.

        Raises: StateError when one has not left by then: it waits for a notification of a page write, which waits for
        what the caller holds. Nothing has changed then.
        """
        if seconds is None:
            lib.umdev_kvm_stop(self.pointer)
        elif lib.umdev_kvm_stop_within(self.pointer, seconds):
            raise StateError(
                f"a processor has not left the guest within {seconds} s: one that stores to a page in TRAP mode waits "
                "for its notification. Do this without the device lock, in a thread of your own"
            )

    def resume_processors(self) -> None:
        """Undo one `stop_processors`."""
        lib.umdev_kvm_resume(self.pointer)

    def registers(self, index: int) -> dict[str, int]:
        """A processor's registers by name; only while it is not in the guest."""
        found = ffi.new("uint64_t[24]")
        check(lib.umdev_kvm_vcpu_read_registers(self._vcpus[index], found), "KVM_GET_REGS")
        return dict(zip(REGISTERS, found, strict=True))

    def exits(self) -> dict[str, int]:
        """Exits of all processors by kind."""
        found = ffi.new("umdev_kvm_exits *")
        total = dict.fromkeys(_EXIT_NAMES, 0)
        for vcpu in self._vcpus:
            lib.umdev_kvm_vcpu_read_exits(vcpu, found)
            for name in _EXIT_NAMES:
                total[name] += int(getattr(found, name))
        return total

    def counters(self) -> dict[str, int]:
        """Accesses where nothing decodes, stores from the ring, doorbells heard."""
        found = ffi.new("umdev_kvm_counters *")
        lib.umdev_kvm_read_counters(self.pointer, found)
        return {"unclaimed": found.unclaimed, "coalesced": found.coalesced, "doorbells": found.doorbells}

    def close(self) -> None:
        """Give the kernel's objects back. May be called twice."""
        if self._pointer is not None:
            lib.umdev_kvm_free(self._pointer)
            self._pointer = None
            self._vcpus = []

    def abandon(self) -> None:
        """In a forked child, instead of `close`: the child keeps the kernel's objects no longer. No lock is taken."""
        if self._pointer is not None:
            lib.umdev_kvm_abandon(self._pointer)
            self._pointer = None
            self._vcpus = []
