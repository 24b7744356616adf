"""Service 5: pages that the kernel may not move, by the long-term pin of io_uring's registered buffers."""

from __future__ import annotations

import errno
import os
import resource
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from umdev.addresses import PAGE_MASK, PAGE_SIZE, HostVirt
from umdev.errors import InvalidArgument, PinLimit, UmdevError

from ._fast import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable

    from umdev.bus import AddressSpace, Decline, Mapping

PLACES = 1 << 14
"""linux/io_uring: IORING_MAX_REG_BUFFERS, so many runs of pages at a time."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Pages next to each other that were pinned by one buffer."""

    place: int
    start: int
    end: int


class LongTermPins:
    """A `PagePinner` that counts per page. Any thread.

    The pages keep their places in memory (FOLL_LONGTERM), which mlock does not promise, and count against
    RLIMIT_MEMLOCK unless the process has CAP_IPC_LOCK. An unmap drops the pins of its pages after the model was told.
    """

    mechanism = "long-term pin by io_uring's registered buffers, counted per page"

    def __init__(self, memory: AddressSpace, ring: Any) -> None:
        self._memory = memory
        self._ring = ring
        self._counts: dict[int, int] = {}
        self._runs: dict[int, _Run] = {}  # by page
        self._free: list[int] = []
        self._next = 0
        self._lock = threading.Lock()
        self._cancel = memory.on_unmap(self._forget, late=True)

    @property
    def pages(self) -> int:
        """Pages pinned now, each counted once."""
        with self._lock:
            return len(self._counts)

    def pin(self, address: HostVirt, pages: int) -> None:
        """Pin `pages` pages from the page-aligned host address. After an error none of them is.

        Raises: InvalidArgument (not in a map), PinLimit, UmdevError.
        """
        wanted = _pages(address, pages)
        with self._lock:
            # A map that is found here stays until `_forget` has had the lock.
            self._check_mapped(address, pages)
            fresh = [page for page in wanted if page not in self._counts]
            done: list[_Run] = []
            try:
                for start, end in _runs(fresh):
                    done.append(self._take(start, end))
            except BaseException:
                for run in done:
                    self._drop(run)
                raise
            for page in wanted:
                self._counts[page] = self._counts.get(page, 0) + 1

    def unpin(self, address: HostVirt, pages: int) -> None:
        """Undo one `pin` of the same pages; pages that an unmap has taken are passed over."""
        with self._lock:
            freed = []
            for page in _pages(address, pages):
                count = self._counts.get(page, 0)
                if count > 1:
                    self._counts[page] = count - 1
                elif count == 1:
                    del self._counts[page]
                    freed.append(page)
            self._release(freed)

    def close(self) -> None:
        """Unpin everything. May be called twice."""
        self._cancel()
        with self._lock:
            self._counts.clear()
            self._runs.clear()
            if self._ring is not None:
                lib.umdev_kvm_pins_free(self._ring)  # the ring's end drops its buffers
                self._ring = None

    def _check_mapped(self, address: int, pages: int) -> None:
        end = address + pages * PAGE_SIZE
        for mapping in self._memory.mappings:
            host = mapping.host
            if host is not None and host <= address and end <= host + mapping.length:
                return
        raise InvalidArgument(f"{pages} pages at host address {address:#x} lie in no map")

    def _take(self, start: int, end: int) -> _Run:
        place = self._free.pop() if self._free else self._next
        if place >= PLACES:
            raise PinLimit(f"io_uring registers {PLACES} buffers at most: pin larger runs of pages")
        code = lib.umdev_kvm_pins_set(self._ring, place, start, end - start)
        if code:
            if place != self._next:
                self._free.append(place)
            raise _pin_error(-code, (end - start) // PAGE_SIZE)
        self._next = max(self._next, place + 1)
        run = _Run(place, start, end)
        for page in range(start, end, PAGE_SIZE):
            self._runs[page] = run
        return run

    def _drop(self, run: _Run) -> None:
        lib.umdev_kvm_pins_set(self._ring, run.place, 0, 0)
        self._free.append(run.place)
        for page in range(run.start, run.end, PAGE_SIZE):
            if self._runs.get(page) is run:
                del self._runs[page]

    def _release(self, freed: Iterable[int]) -> None:
        """Of a run that stays in part, the rest is pinned anew before the whole is let go."""
        gone = set(freed)
        for run in {self._runs[page] for page in gone if page in self._runs}:
            kept = [page for page in range(run.start, run.end, PAGE_SIZE) if page not in gone]
            for start, end in _runs(kept):
                self._take(start, end)
            self._drop(run)

    def _forget(self, mapping: Mapping) -> None:
        host = mapping.host
        if host is None:
            return
        with self._lock:
            gone = [page for page in self._counts if host <= page < host + mapping.length]
            for page in gone:
                del self._counts[page]
            if self._ring is not None:
                self._release(gone)


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


def _pages(address: int, pages: int) -> range:
    if address & PAGE_MASK or pages <= 0:
        raise InvalidArgument(f"{pages} pages at {address:#x}: pins are whole pages")
    return range(address, address + pages * PAGE_SIZE, PAGE_SIZE)


def _runs(pages: Iterable[int]) -> list[tuple[int, int]]:
    """Start and end of pages next to each other; a buffer has less than 1 GiB."""
    runs: list[tuple[int, int]] = []
    for page in pages:
        if runs and runs[-1][1] == page and page - runs[-1][0] < 1 << 29:
            runs[-1] = (runs[-1][0], page + PAGE_SIZE)
        else:
            runs.append((page, page + PAGE_SIZE))
    return runs


def _pin_error(code: int, pages: int) -> UmdevError:
    if code in (errno.ENOMEM, errno.EPERM, errno.EAGAIN):
        limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        return PinLimit(
            f"{pages} pages can't be pinned: RLIMIT_MEMLOCK is {limit} bytes; raise it "
            "(ulimit -l, LimitMEMLOCK= of a systemd unit, memlock in limits.conf) or grant CAP_IPC_LOCK"
        )
    error = UmdevError(f"{pages} pages can't be pinned: {os.strerror(code)}")
    error.errno = code
    return error
