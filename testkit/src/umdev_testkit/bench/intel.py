"""Rows of the Intel GPU: the scan of commands, an update of the global table, and a submission.

A driver with no VM has one context on the blitter, whose ring, image and status page lie in its own memory, and
submits one no-op after the other.
"""

from __future__ import annotations

import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from umdev.addresses import PAGE_SIZE
from umdev.errors import NotSupported

from umdev_testkit.functions import attached

from . import messages
from .measure import Pair
from .native import ffi, lib, timed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from umdev.driver import Function

__all__ = ["ggtt", "scan", "submit"]

DWORDS = 1 << 20
SCANS, UPDATES, SUBMISSIONS = 3, 500, 200
SECONDS = 10

PVINFO, TABLE = 0x78000, 8 << 20
MASTER, IIR, IMR, IER = 0x44200, 0x44308, 0x44304, 0x4430C
BLITTER = 0x22000
PORT, STATUS_PAGE, MASK = BLITTER + 0x230, BLITTER + 0x80, BLITTER + 0xA8
INTERRUPT_SHIFT, CONTEXT_SWITCH = 16, 1 << 8
STATUS, ROOT, RING, IMAGE = range(0, 4 * PAGE_SIZE, PAGE_SIZE)
CSB_INDEX = 0x7C


@contextmanager
def scan() -> Iterator[Pair]:
    """A million dwords of state packets, none of which does anything, against memcpy of the same bytes."""
    try:
        from umdev_intel_gvt.scan import END, Scanner
    except ModuleNotFoundError as missing:
        raise _absent() from missing

    packets = b"".join(
        struct.pack(f"<{length}I", 0x7800_0000 | length - 2, *[0] * (length - 1)) for length in (2, 4, 8)
    )
    content = packets * (4 * DWORDS // len(packets))
    count, target, scanner = len(content) // 4, bytearray(len(content)), Scanner()

    def scanned() -> Sequence[float]:
        times = []
        for _ in range(SCANS):
            start = time.thread_time_ns()
            stopped = scanner.scan(content, 0, count)
            times.append(float(time.thread_time_ns() - start))
            if (stopped.stop, stopped.at) != (END, count):
                raise RuntimeError(f"the scan stopped at dword {stopped.at} of {count}")
        return times

    with ffi.from_buffer("uint8_t[]", content) as read, ffi.from_buffer("uint8_t[]", target) as written:
        yield Pair(scanned, lambda: timed(lib.umdev_bench_copy_bytes, written, read, len(content), count=SCANS))


@contextmanager
def ggtt() -> Iterator[Pair]:
    """An entry of the global table, against the round trip of a trapped access."""
    with _driver() as driver, messages.echo() as round_trips:
        yield Pair(lambda: [driver.update() for _ in range(UPDATES)], round_trips)


@contextmanager
def submit() -> Iterator[Pair]:
    """From the port's last write to the interrupt of a context that is done, against the same round trip."""
    with _driver() as driver, messages.echo() as round_trips:
        yield Pair(lambda: [driver.submit() for _ in range(SUBMISSIONS)], round_trips)


class _Driver:
    """One context, ready to be submitted."""

    def __init__(self, function: Function) -> None:
        self.mmio = function.bars[0]
        self.buffer = function.allocate(8 * PAGE_SIZE)
        self.interrupts = function.enable_interrupts("msi")
        self.mmio.read64(PVINFO)  # who has seen this knows that it has a vGPU
        hidden, hidden_size = self.mmio.read32(PVINFO + 0x48), self.mmio.read32(PVINFO + 0x4C)
        self._graphics = hidden + hidden_size - 8 * PAGE_SIZE
        for page in range(8):
            self.mmio.write64(TABLE + (self._graphics // PAGE_SIZE + page) * 8, self._bus(page * PAGE_SIZE) | 1)
        self.mmio.write32(0x941C, 1)
        image = [0] * 96
        image[0x03] = 9 << 16 | 1
        image[0x09] = self._graphics + RING
        image[0x0B] = 1  # a ring of one page
        image[0x31], image[0x33] = self._bus(ROOT) >> 32, self._bus(ROOT) & 0xFFFF_FFFF
        self.buffer.write(IMAGE + PAGE_SIZE, struct.pack("<96I", *image))
        self.buffer.write(STATUS + CSB_INDEX, (5).to_bytes(4, "little"))
        for register, value in (
            (PVINFO + 0x838, self._bus(ROOT) & 0xFFFF_FFFF),
            (PVINFO + 0x83C, self._bus(ROOT) >> 32),
            (PVINFO + 0x818, 4),
            (BLITTER + 0x3A0, 0xFFFF_0505),
            (BLITTER + 0x29C, 0x8000_8000),
            (STATUS_PAGE, self._graphics + STATUS),
            (MASK, ~(CONTEXT_SWITCH << INTERRUPT_SHIFT) & 0xFFFF_FFFF),
            (IMR, 0),
            (IER, 0xFFFF_FFFF),
            (MASTER, 1 << 31),
        ):
            self.mmio.write32(register, value)
        self._tail = 0

    def _bus(self, offset: int) -> int:
        return int(self.buffer.address) + offset

    def update(self) -> float:
        """Nanoseconds of one update."""
        at = TABLE + self._graphics // PAGE_SIZE * 8
        start = time.perf_counter_ns()
        self.mmio.write64(at, self._bus(STATUS) | 1)
        return float(time.perf_counter_ns() - start)

    def submit(self) -> float:
        """Nanoseconds of one submission. Raises: RuntimeError when it is not done in time."""
        self._tail = (self._tail + 8) % PAGE_SIZE  # two no-ops, which the ring is full of
        self.buffer.write(IMAGE + PAGE_SIZE + 4 * 0x07, self._tail.to_bytes(4, "little"))
        descriptor = self._graphics + IMAGE | 1 << 8 | 3 << 3 | 1
        for dword in (0, 0, 1):
            self.mmio.write32(PORT, dword)
        start = time.perf_counter_ns()
        self.mmio.write32(PORT, descriptor)
        while True:
            if not self.interrupts.wait(timeout=SECONDS):
                raise RuntimeError("no interrupt has come")
            elapsed = float(time.perf_counter_ns() - start)
            self.mmio.write32(MASTER, 0)
            pending = self.mmio.read32(IIR)
            self.mmio.write32(IIR, pending)
            self.mmio.write32(MASTER, 1 << 31)
            head = int.from_bytes(self.buffer.read(IMAGE + PAGE_SIZE + 4 * 0x05, 4), "little")
            if head == self._tail:
                return elapsed


@contextmanager
def _driver() -> Iterator[_Driver]:
    try:
        from umdev_intel_gvt import IntelGpu
    except ModuleNotFoundError as missing:
        raise _absent() from missing

    gpu = IntelGpu()
    try:
        with gpu.create("i915-GVTg_V5_4") as vgpu, attached(vgpu, "loopback") as function:
            driver = _Driver(function)
            yield driver
            driver.interrupts.close()
            driver.buffer.free()
    finally:
        gpu.close()


def _absent() -> NotSupported:
    return NotSupported("umdev-intel-gvt is not installed: pip install umdev-intel-gvt")
