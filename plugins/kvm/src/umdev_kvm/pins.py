"""Service 5: pages that the kernel may not move, by the long-term pin of io_uring's registered buffers."""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from umdev.errors import NotSupported, PinLimit, StateError, UmdevError
from umdev.hypervisor import PAGE_SIZE, CountedPins, page_runs, pin_error

from ._fast import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from umdev.hypervisor import AddressSpace, Decline, Run

_log = logging.getLogger("umdev.kvm")
PLACES = 1 << 14
"""linux/io_uring: IORING_MAX_REG_BUFFERS, so many runs of pages at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class _Buffer:
    """A run of pages that is registered."""

    place: int
    pages: range


class LongTermPins(CountedPins):
    """Pins that fix the pages' places in memory (FOLL_LONGTERM), which mlock does not promise.

    They count against RLIMIT_MEMLOCK unless the process has CAP_IPC_LOCK. A child that the process forks has the ring,
    too, and none of the pins: what it gives up stays pinned here.
    """

    run_max = 1 << 29  # a buffer has less than 1 GiB

    def __init__(self, memory: AddressSpace, ring: Any, places: int = PLACES) -> None:
        """Takes the ring."""
        self._ring = ring
        self._pid = os.getpid()
        self._places = places
        self._buffers: dict[int, _Buffer] = {}  # by page
        self._free: list[int] = []
        self._next = 0
        super().__init__(memory)

    @property
    def mechanism(self) -> str:
        """One line for people."""
        return "long-term pin by io_uring's registered buffers, counted per page"

    def take(self, run: Run, *, writable: bool) -> None:
        """See `CountedPins`. Raises: NotSupported (a map that may not be written to), StateError (a forked child)."""
        if not writable:
            raise NotSupported("io_uring pins only what may be written to, and these pages are mapped to be read")
        self._register(run)

    def drop(self, runs: Sequence[Run]) -> None:
        """See `CountedPins`. Of a buffer that stays in part, the rest is pinned anew before the whole is let go."""
        if not self._own:
            return
        gone = [page for start, end in runs for page in range(start, end, PAGE_SIZE)]
        for buffer in {self._buffers[page] for page in gone if page in self._buffers}:
            rest = [page for page in buffer.pages if self.counted(page) and self._buffers.get(page) is buffer]
            taken: list[_Buffer] = []
            try:
                for run in page_runs(rest, self.run_max):
                    taken.append(self._register(run))  # noqa: PERF401 - after an error they are needed
            except UmdevError as error:
                # No limit has room for both at once: the pages that nobody wants stay until the rest goes.
                _log.warning("%d pages stay pinned beside others: %s", len(buffer.pages) - len(rest), error)
                for part in taken:
                    self._unregister(part)
                self._buffers.update(dict.fromkeys(rest, buffer))
            else:
                self._unregister(buffer)

    def close(self) -> None:
        """Unpin everything. May be called twice."""
        super().close()
        ring, self._ring = self._ring, None
        if ring is not None:
            lib.umdev_kvm_pins_free(ring)  # the ring's end drops its buffers

    @property
    def _own(self) -> bool:
        return self._pid == os.getpid()

    def _register(self, run: Run) -> _Buffer:
        if self._ring is None:
            raise UmdevError("the pinner is closed")
        if not self._own:
            raise StateError("the pins belong to the process that forked this one: attach the device anew here")
        place = self._free.pop() if self._free else self._next
        if place >= self._places:
            raise PinLimit(f"io_uring registers {self._places} buffers at most: pin larger runs of pages")
        start, end = run
        code = lib.umdev_kvm_pins_set(self._ring, place, start, end - start)
        if code:
            if place != self._next:
                self._free.append(place)
            raise pin_error(-code, run)
        self._next = max(self._next, place + 1)
        buffer = _Buffer(place, range(start, end, PAGE_SIZE))
        self._buffers.update(dict.fromkeys(buffer.pages, buffer))
        return buffer

    def _unregister(self, buffer: _Buffer) -> None:
        lib.umdev_kvm_pins_set(self._ring, buffer.place, 0, 0)
        self._free.append(buffer.place)
        for page in buffer.pages:
            if self._buffers.get(page) is buffer:
                del self._buffers[page]


def open_pins(memory: AddressSpace, decline: Decline) -> LongTermPins | None:
    """A pinner with a ring of its own; None, with the reason given, where the kernel has none."""
    ring, code = new_ring()
    if ring is None:
        decline(f"no long-term pin by io_uring: {os.strerror(code)}{ring_remedy(code)}")
        return None
    return LongTermPins(memory, ring)


def new_ring(places: int = PLACES) -> tuple[Any, int]:
    """The ring, or None and the errno."""
    error = ffi.new("int *")
    ring = lib.umdev_kvm_pins_new(places, error)
    return (None, -error[0]) if ring == ffi.NULL else (ring, 0)


def ring_remedy(code: int) -> str:
    """What to do about it, as a clause."""
    return {
        errno.EPERM: "; sysctl kernel.io_uring_disabled=0 allows it",
        errno.ENOSYS: "; the kernel is built without io_uring",
        errno.EINVAL: "; Linux 5.19 or later has sparse tables of buffers",
    }.get(code, "")
