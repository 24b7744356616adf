"""Memory rows: what a device pays to reach guest memory that is mapped."""

from __future__ import annotations

import mmap
import os
import random
import time
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from umdev import _native
from umdev.addresses import PAGE_SIZE, Iova

from .device import BenchDevice
from .measure import Pair
from .native import ffi, lib, timed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["lookup_one", "lookup_thousand", "read_c", "read_python"]

BASE = Iova(0x1_0000_0000)
SPAN = 256 << 10  # bytes that stay in the cache
COPIES = {"count": 400, "batch": 50}
LOOKUPS = {"count": 400, "batch": 500}
ADDRESSES = 4096


@contextmanager
def read_c() -> Iterator[Pair]:
    """4 KiB from one map by `dma_read`, against memcpy."""
    with _mapped(maps=1, size=SPAN) as (device, view):
        api, memory = _c_side(device)
        yield Pair(
            lambda: timed(lib.umdev_bench_dma_read, api, memory, BASE, SPAN, PAGE_SIZE, **COPIES),
            lambda: _copies(view),
        )


@contextmanager
def read_python() -> Iterator[Pair]:
    """4 KiB from one map as a model's Python does it, against memcpy."""
    with _mapped(maps=1, size=SPAN) as (device, view):
        addresses = [Iova(BASE + PAGE_SIZE * (number % (SPAN // PAGE_SIZE))) for number in range(COPIES["batch"])]
        read = device.memory.read

        def subject() -> Sequence[float]:
            times = []
            for _ in range(COPIES["count"]):
                start = time.perf_counter_ns()
                for address in addresses:
                    read(address, PAGE_SIZE)
                times.append((time.perf_counter_ns() - start) / len(addresses))
            return times

        yield Pair(subject, lambda: _copies(view))


def lookup_one() -> AbstractContextManager[Pair]:
    """One map."""
    return _lookup(1)


def lookup_thousand() -> AbstractContextManager[Pair]:
    """A thousand maps of a page each, with gaps."""
    return _lookup(1000)


@contextmanager
def _lookup(maps: int) -> Iterator[Pair]:
    """Look up addresses at random, against a bare binary search through as many maps."""
    with _mapped(maps=maps, size=PAGE_SIZE) as (device, view):
        api, memory = _c_side(device)
        host = ffi.from_buffer("uint8_t[]", view)
        table = ffi.new("umdev_bench_map[]", maps)
        for number in range(maps):
            table[number] = (_iova(number), PAGE_SIZE, host + number * PAGE_SIZE)
        choice = random.Random(1)  # noqa: S311 the same addresses in every run
        addresses = ffi.new(
            "uint64_t[]", [_iova(choice.randrange(maps)) + choice.randrange(PAGE_SIZE) for _ in range(ADDRESSES)]
        )
        yield Pair(
            lambda: timed(lib.umdev_bench_lookup, api, memory, addresses, ADDRESSES, **LOOKUPS),
            lambda: timed(lib.umdev_bench_search, table, maps, addresses, ADDRESSES, **LOOKUPS),
        )
        ffi.release(host)


def _iova(number: int) -> Iova:
    return Iova(BASE + 2 * PAGE_SIZE * number)


@contextmanager
def _mapped(maps: int, size: int) -> Iterator[tuple[BenchDevice, mmap.mmap]]:
    """A device that sees `maps` maps of a file, and this process's own view of the file."""
    descriptor = os.memfd_create("umdev-bench")
    device = BenchDevice()
    try:
        os.ftruncate(descriptor, maps * size)
        for number in range(maps):
            device.address_space.map(_iova(number), size, descriptor=descriptor, offset=number * size)
        device.address_space.bus_master = True
        with mmap.mmap(descriptor, maps * size) as view:
            view[:] = bytes(range(256)) * (maps * size // 256)
            yield device, view
    finally:
        device.address_space.unmap_all()
        device.close()
        os.close(descriptor)


def _c_side(device: BenchDevice) -> tuple[object, object]:
    """The core's function table and the device's memory, as this module's own C types."""

    def here(kind: str, pointer: object) -> object:
        return ffi.cast(kind, int(_native.ffi.cast("uintptr_t", pointer)))

    return here("umdev_api *", _native.lib.umdev_get_api()), here("umdev_memory *", device.address_space.pointer)


def _copies(view: mmap.mmap) -> Sequence[float]:
    with ffi.from_buffer("uint8_t[]", view) as source:
        return timed(lib.umdev_bench_memcpy, source, SPAN, PAGE_SIZE, **COPIES)
