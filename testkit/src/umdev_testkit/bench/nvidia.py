"""Rows of the NVIDIA GPU: its copy engine, and what it takes from a channel's kick to the fence.

A driver with no VM has one channel whose ring, commands and fence lie in its own memory. It waits for each fence's
interrupt. Copies run in its own thread, on a clock that it moves, so that the thread's own time is measured: a copy
takes as long as a busy machine lets a thread run at a stretch.
"""

from __future__ import annotations

import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from umdev.addresses import PAGE_SIZE
from umdev.device import ManualClock
from umdev.errors import NotSupported

from umdev_testkit.functions import attached

from . import messages
from .measure import Pair
from .native import ffi, lib, timed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from umdev.driver import Function

__all__ = ["ce_copy", "kick"]

COPIED = 8 << 20
COPIES, KICKS = 5, 200
SECONDS = 10
PRAMIN, VRAM_TABLES, VRAM_TARGET = 0x700000, 1 << 20, 64 << 20
RING, COMMANDS, FENCE, SOURCE, TARGET = 0, PAGE_SIZE, 2 * PAGE_SIZE, 1 << 20, 64 << 20
ENTRIES_LOG2 = 9
ENGINE_RUNLIST = 0


@contextmanager
def ce_copy() -> Iterator[Pair]:
    """8 MiB from the driver's memory to video memory, against memcpy of the same bytes."""
    with _channel(ManualClock()) as channel:
        channel.commands(_methods(4, 0x400, 0, SOURCE, 0, TARGET, 0, 0, COPIED, 1) + _methods(4, 0x300, 0x182))
        source, target = bytearray(COPIED), bytearray(COPIED)
        with ffi.from_buffer("uint8_t[]", source) as read, ffi.from_buffer("uint8_t[]", target) as written:
            yield Pair(
                lambda: channel.runs(COPIES),
                lambda: timed(lib.umdev_bench_copy_bytes, written, read, COPIED, count=COPIES),
            )


@contextmanager
def kick() -> Iterator[Pair]:
    """From the put pointer's write to the fence and its interrupt, against the round trip of a trapped access."""
    with _channel() as channel, messages.echo() as round_trips:
        channel.commands([])
        yield Pair(lambda: channel.runs(KICKS), round_trips)


def _methods(subchannel: int, method: int, *data: int) -> list[int]:
    return [1 << 29 | len(data) << 16 | subchannel << 13 | method >> 2, *data]


class _Channel:
    """A driver with one channel of the copy engine."""

    def __init__(self, function: Function, clock: ManualClock | None) -> None:
        self._clock = clock
        self.mmio, self.bar1 = function.bars[0], function.bars[1]
        self.buffer = function.allocate(SOURCE + COPIED)
        self.interrupts = function.enable_interrupts("msi")
        self._put = self._fence = self._length = 0
        directory, small, large, user, instance, runlist = range(VRAM_TABLES, VRAM_TABLES + (6 << 18), 1 << 18)
        base = int(self.buffer.address)
        for page in range((SOURCE + COPIED) // PAGE_SIZE):
            self._store(small + 8 * page, base + page * PAGE_SIZE >> 8 | 1, 2 << 1)
        for page in range(TARGET >> 17, TARGET + COPIED >> 17):
            self._store(large + 8 * page, VRAM_TARGET + (page << 17) - TARGET >> 8 | 1, 0)
        self._store(small + 8 * (TARGET + COPIED >> 12), user >> 8 | 1, 0)
        self._store(directory, large >> 8 | 1, small >> 8 | 1)
        self._store(instance + 0x008, user, 0)
        self._store(instance + 0x048, RING, ENTRIES_LOG2 << 16)
        self._store(instance + 0x200, directory, 0)
        self._store(instance + 0x208, 0xFFFF_FFFF, 0xFF)
        self._store(runlist, 0, 0)
        self.mmio.write32(0x1704, 1 << 31 | instance >> 12)
        for register, value in (
            (0x140, 1),
            (0x2140, 1 << 31),
            (0x800000, 1 << 31 | instance >> 12),
            (0x800004, 1 << 10),
        ):
            self.mmio.write32(register, value)
        self.mmio.write32(0x2270, runlist >> 12)
        self.mmio.write32(0x2274, ENGINE_RUNLIST << 20 | 1)

    def _store(self, at: int, low: int, high: int) -> None:
        """Two words of video memory."""
        self.mmio.write32(0x1700, at >> 16)
        self.mmio.write32(PRAMIN + (at & 0xFFFF), low)
        self.mmio.write32(PRAMIN + (at & 0xFFFF) + 4, high)

    def commands(self, words: Sequence[int]) -> None:
        """What each run does, before its fence."""
        self._words = words

    def runs(self, count: int) -> Sequence[float]:
        """Run so often; nanoseconds of each."""
        return [self._run() for _ in range(count)]

    def _run(self) -> float:
        self._fence += 1
        fence = _methods(0, 0x10, 0, FENCE, self._fence, 2 | 1 << 24) + _methods(0, 0x20, 0)
        words = [*self._words, *fence]
        self.buffer.write(COMMANDS, struct.pack(f"<{len(words)}I", *words))
        self.buffer.write(RING + 8 * self._put, struct.pack("<II", COMMANDS, len(words) << 10))
        self._put = (self._put + 1) % (1 << ENTRIES_LOG2)
        now = time.thread_time_ns if self._clock else time.perf_counter_ns
        start = now()
        self.bar1.write32(TARGET + COPIED + 0x8C, self._put)
        if self._clock:
            self._clock.advance(1)
        told = self.interrupts.wait(timeout=SECONDS)
        elapsed = float(now() - start)
        if not told or int.from_bytes(self.buffer.read(FENCE, 4), "little") != self._fence:
            raise RuntimeError(f"fence {self._fence} has not come")
        self.mmio.read32(0x2100)
        self.mmio.write32(0x2100, 1 << 31)
        self.mmio.write8(0x88068, 0xFF)
        return elapsed


@contextmanager
def _channel(clock: ManualClock | None = None) -> Iterator[_Channel]:
    try:
        from umdev_nvidia import TeslaM10
    except ModuleNotFoundError as missing:
        raise NotSupported("umdev-nvidia is not installed: pip install umdev-nvidia") from missing

    gpu = TeslaM10(clock)
    try:
        with gpu.create("nvidia-36") as vgpu, attached(vgpu, "loopback") as function:
            channel = _Channel(function, clock)
            yield channel
            channel.interrupts.close()
            channel.buffer.free()
    finally:
        gpu.close()
