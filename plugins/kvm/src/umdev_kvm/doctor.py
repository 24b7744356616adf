"""Rows for `umdev doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.bus import Row
from umdev.errors import UmdevError

from ._fast import lib
from .pins import new_ring, ring_remedy
from .probe import REMEDY, why_partial
from .vm import CAP_COALESCED_MMIO, CAP_IRQ_ROUTING, CAP_NR_MEMSLOTS, CAP_PRE_FAULT_MEMORY, CAP_READONLY_MEM, Vm

if TYPE_CHECKING:
    from collections.abc import Iterator

_CAP_IRQFD_RESAMPLE = 82
_CAP_IOEVENTFD = 36


def rows() -> Iterator[Row]:
    """What this host's KVM offers a machine, service by service. A machine is made for it and thrown away."""
    try:
        vm = Vm(-1, 1)
    except UmdevError as error:
        text, _, remedy = str(error).partition(": ")
        yield Row("host", "KVM machine", None, f"{text}: no machine of umdev's own", remedy)
        yield _pin()
        return
    try:
        yield Row("host", "KVM machine", ok=True, text=f"{vm.extension(CAP_NR_MEMSLOTS)} memory slots")
        yield _linux()
        yield _row(vm, "trap", "ioeventfd", _CAP_IOEVENTFD, "doorbells cost no exit")
        yield _row(vm, "trap", "coalesced MMIO", CAP_COALESCED_MMIO, "posted stores cost no exit")
        yield _row(vm, "interrupt", "irqfd resample", _CAP_IRQFD_RESAMPLE, "INTx without the guest's exits")
        yield _row(vm, "interrupt", "routes", CAP_IRQ_ROUTING, f"{vm.extension(CAP_IRQ_ROUTING)} interrupts")
        yield _row(vm, "protect", "read-only slots", CAP_READONLY_MEM, "stores can be emulated")
        yield _row(
            vm, "pin", "pre-fault", CAP_PRE_FAULT_MEMORY, "second-level entries filled ahead (no pin)", "Linux 6.11"
        )
        yield _pin()
    finally:
        vm.close()


def _row(vm: Vm, service: str, check: str, capability: int, text: str, since: str = "") -> Row:
    if vm.extension(capability):
        return Row(service, check, ok=True, text=text)
    remedy = f"{since} or later, on a processor with nested paging" if since else "a newer kernel"
    return Row(service, check, None, "this kernel's KVM has it not", remedy)


def _linux() -> Row:
    try:
        why = why_partial()
    except UmdevError as error:
        why = str(error)
    if why is None:
        return Row("host", "Linux on KVM", ok=True, text="umdev run can boot it: the processor runs guests")
    cause, _, _registers = why.partition("; ")
    return Row("host", "Linux on KVM", None, f"only bare payloads: KVM emulates them in part ({cause})", REMEDY)


def _pin() -> Row:
    ring, code = new_ring(1)
    if ring is None:
        remedy = ring_remedy(code).removeprefix("; ")
        return Row("pin", "io_uring", None, "no long-term pin; pages are held by mlock", remedy)
    lib.umdev_kvm_pins_free(ring)
    return Row("pin", "io_uring", ok=True, text="long-term pins by registered buffers")
