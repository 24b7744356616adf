"""KVM rows: what an exit costs that a device answers.

The payload of both machines reads a register again and again. The floor is the smallest loop around KVM_RUN that can
answer it; the subject is the loop of `umdev_kvm.Machine` with the bench's device in a slot.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from umdev.errors import NotSupported

from .device import COUNTER_C, COUNTER_PYTHON, BenchDevice
from .measure import Pair
from .native import ffi, lib, timed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["mmio_c", "mmio_python"]

BATCH = 200
BATCHES = 20
BAR = 0xC000_0000
ENTRY = 0x1_0000
# again: mov ecx, BATCH; next: mov eax, [ebx]; dec ecx; jnz next; out 0xf4, eax; jmp again
_LOOP = b"\xb9" + BATCH.to_bytes(4, "little") + b"\x8b\x03\x49\x75\xfb\xe7\xf4\xeb\xf2"


@contextmanager
def mmio_c() -> Iterator[Pair]:
    """A 4-byte read answered by a C handler."""
    with _reads(COUNTER_C) as pair:
        yield pair


@contextmanager
def mmio_python() -> Iterator[Pair]:
    """A 4-byte read answered by a Python handler."""
    with _reads(COUNTER_PYTHON) as pair:
        yield pair


@contextmanager
def _reads(register: int) -> Iterator[Pair]:
    try:
        from umdev_kvm import Machine
        from umdev_kvm._fast import ffi as kvm_ffi
        from umdev_kvm._fast import lib as kvm
    except ModuleNotFoundError as missing:
        raise NotSupported("umdev-kvm is not installed: pip install umdev-kvm") from missing

    payload = b"\xbb" + (BAR + register).to_bytes(4, "little") + _LOOP
    error = ffi.new("int *")
    floor = lib.umdev_bench_kvm_new(payload, len(payload), error)
    if floor == ffi.NULL:
        raise NotSupported(f"/dev/kvm: {os.strerror(-error[0])}")
    with BenchDevice() as device, Machine(memory=1 << 20) as machine:
        try:
            machine.firmware.enable(machine.plug(device))
            if machine.firmware.address(1, 0) != BAR:
                raise RuntimeError("the bench's device is not where its payload looks for it")
            machine.load(payload, address=ENTRY)
            kvm.umdev_kvm_begin(machine.vm.pointer)
            event = kvm_ffi.new("umdev_kvm_event *")
            arguments = [
                ffi.cast(kind, int(kvm_ffi.cast("uintptr_t", pointer)))
                for kind, pointer in {
                    "umdev_bench_kvm_run": kvm_ffi.addressof(kvm, "umdev_kvm_vcpu_run"),
                    "umdev_kvm_vcpu *": machine.vm.vcpu(0),
                    "umdev_kvm_event *": event,
                }.items()
            ]

            def subject() -> Sequence[float]:
                before = event.value
                times = _per_read(lib.umdev_bench_kvm_runs, *arguments, kvm.UMDEV_KVM_EXITED)
                # The payload writes the last answer to the port. Unless all reads were served, the time says nothing.
                if before and (event.value - before) % 2**32 != BATCH * BATCHES:
                    raise RuntimeError("the payload's reads did not all reach the device")
                return times

            yield Pair(subject, lambda: _per_read(lib.umdev_bench_kvm_reads, floor))
        finally:
            machine.close()
            lib.umdev_bench_kvm_free(floor)


def _per_read(measure: Any, *arguments: Any) -> Sequence[float]:
    return [duration / BATCH for duration in timed(measure, *arguments, count=BATCHES)]
