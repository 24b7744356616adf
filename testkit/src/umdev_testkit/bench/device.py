"""The device that the bench measures: one register with a C handler, one with a Python handler.

Each counts its accesses and answers a read with how many came before, so the bench can prove that every one arrived.
"""

from __future__ import annotations

import itertools

from umdev.device import Block, Device, MemoryBar, Native, PciId, Register

__all__ = ["COUNTER_C", "COUNTER_PYTHON", "BenchDevice"]

COUNTER_C = 0x00
COUNTER_PYTHON = 0x04

# As in the C handler: a server process of the bench has one device. No device would keep its state so.
_accesses = itertools.count()


class Counters(Block["BenchDevice"]):
    """Both registers."""

    native = Register(COUNTER_C, native=Native("umdev_testkit._floors", "umdev_bench_counter"))
    python = Register(COUNTER_PYTHON)

    @python.on_read
    def count(self) -> int:
        """Answer with the accesses so far."""
        return next(_accesses)


class BenchDevice(Device):
    """Not a device of any vendor: the identity is QEMU's range for experiments (docs/specs/pci-ids)."""

    pci = PciId(vendor=0x1234, device=0x0BE7, class_code=0xFF0000)
    bar0 = MemoryBar(0, Counters, size=4096, sizes=(4,))
