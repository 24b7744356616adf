"""Rows of the software GPU engine: a screen of 1920 by 1080 pixels of 32 bits, in guest memory behind page tables.

The screen's pages lie scattered in guest memory, and the tables are walked anew for each blit. What is measured is the
thread's own time: a screen takes as long as a busy machine lets a thread run at a stretch.
"""

from __future__ import annotations

import mmap
import os
import random
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from umdev.addresses import PAGE_SIZE, Iova
from umdev.errors import NotSupported

from .device import BenchDevice
from .measure import Pair
from .native import ffi, lib, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from umdev_softgpu import Blit, Space

__all__ = ["copy", "fill"]

WIDTH, HEIGHT, PIXEL = 1920, 1080, 4
PITCH = WIDTH * PIXEL
SCREEN = PITCH * HEIGHT
PAGES = -(-SCREEN // PAGE_SIZE)
BASE = Iova(0x1_0000_0000)
COUNT = 5
COLOR = 0x0012_3456
ENTRIES = 512
PRESENT_WRITABLE = 3


@contextmanager
def fill() -> Iterator[Pair]:
    """One color, against memset of the same bytes."""
    try:
        from umdev_softgpu import Blit, Rect, Surface
    except ModuleNotFoundError as missing:
        raise NotSupported("umdev-softgpu is not installed: pip install umdev-softgpu") from missing

    with _screens() as (space, view):
        target = Surface(space, 0, PITCH)
        rect = Rect(0, 0, WIDTH, HEIGHT)
        with ffi.from_buffer("uint8_t[]", view) as memory:
            yield Pair(
                lambda: _drawn(space, lambda: Blit.fill(target, rect, PIXEL, COLOR)),
                lambda: timed(lib.umdev_bench_fill_bytes, memory, COLOR & 0xFF, SCREEN, count=COUNT),
            )


@contextmanager
def copy() -> Iterator[Pair]:
    """One screen to another, against memcpy of the same bytes."""
    try:
        from umdev_softgpu import Blit, Rect, Surface
    except ModuleNotFoundError as missing:
        raise NotSupported("umdev-softgpu is not installed: pip install umdev-softgpu") from missing

    with _screens() as (space, view):
        target, source = Surface(space, 0, PITCH), Surface(space, PAGES * PAGE_SIZE, PITCH)
        rect = Rect(0, 0, WIDTH, HEIGHT)
        with ffi.from_buffer("uint8_t[]", view) as memory:
            yield Pair(
                lambda: _drawn(space, lambda: Blit.copy(target, source, rect, PIXEL)),
                lambda: timed(lib.umdev_bench_copy_bytes, memory, memory + PAGES * PAGE_SIZE, SCREEN, count=COUNT),
            )


def _drawn(space: Space, make: Callable[[], Blit]) -> Sequence[float]:
    from umdev_softgpu import Budget, Step

    times = []
    for _ in range(COUNT):
        space.invalidate()
        start = time.thread_time_ns()
        outcome = make().step(Budget())
        times.append(float(time.thread_time_ns() - start))
        if outcome is not Step.DONE:
            raise RuntimeError(f"the blit ended in {outcome}")
    return times


@contextmanager
def _screens() -> Iterator[tuple[Space, mmap.mmap]]:
    """A space in which two screens follow each other, and this process's own view of their memory."""
    from umdev_softgpu import Format, Level, Masks, MemoryPort

    pages = 2 * PAGES
    leaves = -(-pages // ENTRIES)
    order = list(range(pages))
    random.Random(1).shuffle(order)  # noqa: S311 the same pages in every run
    size = (pages + 1 + leaves) * PAGE_SIZE
    root = pages * PAGE_SIZE
    descriptor = os.memfd_create("umdev-bench")
    device = BenchDevice()
    try:
        os.ftruncate(descriptor, size)
        device.address_space.map(BASE, size, descriptor=descriptor)
        device.address_space.bus_master = True
        port = MemoryPort(device)
        with mmap.mmap(descriptor, size) as view:
            view[:root] = bytes(range(256)) * (root // 256)
            view[root : root + 8 * leaves] = _entries(range(pages + 1, pages + 1 + leaves))
            view[root + PAGE_SIZE : root + PAGE_SIZE + 8 * pages] = _entries(order)
            space = port.paged(Format([Level(21, 9), Level(12, 9)], 30), [Masks(writable=PRESENT_WRITABLE)] * 2)
            space.set_root(BASE + root)
            yield space, view
            port.close()
    finally:
        device.address_space.unmap_all()
        device.close()
        os.close(descriptor)


def _entries(pages: Sequence[int]) -> bytes:
    return b"".join((BASE + page * PAGE_SIZE | PRESENT_WRITABLE).to_bytes(8, "little") for page in pages)
