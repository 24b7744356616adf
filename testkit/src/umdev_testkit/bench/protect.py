"""Protection rows: what it costs to be told of a guest's stores, against a bare userfaultfd.

The guest is memory of this process and a loop in C that stores to it: as processors do.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from umdev import _native
from umdev.addresses import PAGE_SIZE, Iova
from umdev.hypervisor import GuestMemory, NativeClient, ProtectMode, UserfaultProtector

from .device import BenchDevice
from .measure import Pair
from .native import ffi, lib, timed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["arm", "track_scan", "trap_c", "trap_python"]

TRAPS = 64  # pages that one batch stores to
ARMED = 4096  # pages that one batch arms
SCANNED = 16384  # pages that one batch scans: a call from Python weighs little beside it
STRIDE = 8  # one page in so many has been stored to
BATCHES = 20
BASE = Iova(0x1_0000_0000)


@contextmanager
def trap_c() -> Iterator[Pair]:
    """A store that a C function is told of, the device lock held."""
    told = ffi.new("uint64_t *")
    notify = _address(ffi.addressof(lib, "umdev_bench_notified")), _address(told)
    with BenchDevice() as device, _memory(TRAPS) as guest, _guard(TRAPS, asynchronous=False) as guard:
        client = NativeClient(guest.protector(), ProtectMode.TRAP, device.native, None, notify=notify)
        addresses = [guest.address + number * PAGE_SIZE for number in range(TRAPS)]

        def subject() -> Sequence[float]:
            times = []
            for _ in range(BATCHES):
                _expect(client.arm(addresses)[0] == 0)
                before = told[0]
                times.append(_store(guest, TRAPS) / TRAPS)
                _expect(told[0] - before == TRAPS)
            return times

        try:
            yield Pair(subject, lambda: _per_page(lib.umdev_bench_guard_traps, guard, TRAPS))
        finally:
            client.close()


@contextmanager
def trap_python() -> Iterator[Pair]:
    """A store that a model's Python is told of."""
    with BenchDevice() as device, _memory(TRAPS) as guest, _guard(TRAPS, asynchronous=False) as guard:
        device.address_space.map(BASE, guest.size, descriptor=guest.descriptor)
        protector = UserfaultProtector(guest.protector(), device.address_space, ProtectMode.TRAP, device.native)
        pages = [Iova(BASE + number * PAGE_SIZE) for number in range(TRAPS)]
        told: list[Any] = []

        def subject() -> Sequence[float]:
            times = []
            for _ in range(BATCHES):
                protector.protect(pages, told.append)
                told.clear()
                times.append(_store(guest, TRAPS) / TRAPS)
                _expect(len(told) == TRAPS)
            return times

        try:
            yield Pair(subject, lambda: _per_page(lib.umdev_bench_guard_traps, guard, TRAPS))
        finally:
            protector.close()
            device.address_space.unmap_all()


@contextmanager
def arm() -> Iterator[Pair]:
    """To arm a page, in a batch of neighbours."""
    with _client(ProtectMode.TRAP, ARMED) as client, _guard(ARMED, asynchronous=False) as guard:
        yield Pair(
            lambda: _per_page(lib.umdev_bench_client_arms, client, ARMED),
            lambda: _per_page(lib.umdev_bench_guard_arms, guard, ARMED),
        )


@contextmanager
def track_scan() -> Iterator[Pair]:
    """To look at a page: one in eight has been stored to."""
    with _client(ProtectMode.TRACK, SCANNED) as client, _guard(SCANNED, asynchronous=True) as guard:
        _expect(client.arm(client.client, client.addresses, SCANNED, ffi.new("uint64_t *")) == 0)
        yield Pair(
            lambda: _per_page(lib.umdev_bench_client_scans, client, SCANNED, STRIDE),
            lambda: _per_page(lib.umdev_bench_guard_scans, guard, SCANNED, STRIDE),
        )


@contextmanager
def _client(mode: ProtectMode, pages: int) -> Iterator[Any]:
    """A `umdev_bench_client`: the core's C client of a mode, with so many pages."""
    with _memory(pages) as guest:
        null = _native.ffi.NULL
        native = guest.protector().native_client(mode, null, null, null)
        addresses = ffi.new("uint64_t[]", [guest.address + number * PAGE_SIZE for number in range(pages)])
        found = ffi.new("uint64_t[]", pages)
        client = ffi.new("umdev_bench_client *", {"addresses": addresses, "found": found, "pages": pages})
        client.client = _pointer("umdev_protect_client *", native)
        client.memory = ffi.cast("uint8_t *", guest.address)
        for name, function in {"arm": "arm", "disarm": "disarm", "armed": "pages", "collect": "collect"}.items():
            found_at = _native.ffi.addressof(_native.lib, f"umdev_protect_client_{function}")
            setattr(client, name, _pointer(ffi.typeof(getattr(client, name)), found_at))
        try:
            yield client
        finally:
            _native.lib.umdev_protect_client_free(native)


@contextmanager
def _memory(pages: int) -> Iterator[GuestMemory]:
    with GuestMemory(pages * PAGE_SIZE, reserve=0) as guest:
        guest.fill(0, guest.size, 1)  # it is there: what is measured is protection
        yield guest


@contextmanager
def _guard(pages: int, *, asynchronous: bool) -> Iterator[Any]:
    error = ffi.new("int *")
    guard = lib.umdev_bench_guard_new(pages, asynchronous, error)
    if guard == ffi.NULL:
        raise OSError(-error[0], f"userfaultfd: {os.strerror(-error[0])}")
    try:
        yield guard
    finally:
        lib.umdev_bench_guard_free(guard)


def _store(guest: GuestMemory, pages: int, stride: int = 1) -> int:
    """Nanoseconds for a store to each `stride`-th page."""
    duration = ffi.new("uint64_t *")
    lib.umdev_bench_store_pages(ffi.cast("uint8_t *", guest.address), pages, stride, duration)
    return int(duration[0])


def _per_page(measure: Any, guard: Any, pages: int, *more: int) -> Sequence[float]:
    return [duration / pages for duration in timed(measure, guard, *more, count=BATCHES)]


def _address(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


def _pointer(kind: Any, pointer: Any) -> Any:
    """A pointer of the core's module, for the bench's."""
    return ffi.cast(kind, int(_native.ffi.cast("uintptr_t", pointer)))


def _expect(condition: bool) -> None:
    """Every store was told of: else the time says nothing."""
    if not condition:
        raise RuntimeError("not every store was told of, or not every page was armed")
