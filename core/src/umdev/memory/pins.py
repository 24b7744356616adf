"""Pages that stay in memory: service 5 by populate and mlock on the device's mapping."""

from __future__ import annotations

import errno
import os
import resource
import threading
from typing import TYPE_CHECKING

from umdev._native import lib
from umdev.addresses import PAGE_MASK, PAGE_SIZE, HostVirt
from umdev.errors import InvalidArgument, MappingPoisoned, PinLimit, UmdevError
from umdev.services import Protection

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .address_space import AddressSpace
    from .mapping import Mapping


class PinTable:
    """A `PagePinner` on an address space: counts per page, as mlock itself does not.

    The kernel counts the same pages in VmLck of /proc/self/status. mlock keeps a page resident, but lets the kernel
    move it; hardware that does DMA by itself needs a long-term pin. An unmap drops the pins of its pages after the
    model has been told. Any thread.
    """

    def __init__(self, memory: AddressSpace) -> None:
        self._memory = memory
        self._counts: dict[int, int] = {}
        self._lock = threading.Lock()
        self._cancel = memory.on_unmap(self._forget, late=True)

    @property
    def mechanism(self) -> str:
        """One line for people."""
        return "populate + mlock of the device's mapping, counted per page"

    @property
    def pages(self) -> int:
        """Pages pinned now, each counted once."""
        with self._lock:
            return len(self._counts)

    def pin(self, address: HostVirt, pages: int) -> None:
        """Pin `pages` pages from the page-aligned host address. After an error none of them is.

        Raises: InvalidArgument (not in a map), PinLimit, MappingPoisoned.
        """
        wanted = _pages(address, pages)
        with self._lock:
            # A map that is found here stays until `_forget` has had the lock.
            writable = self._writable(address, pages)
            fresh = [page for page in wanted if page not in self._counts]
            done: list[tuple[int, int]] = []
            for start, length in _runs(fresh):
                code = -lib.umdev_memory_pin(start, length, writable)
                if code:
                    for begun, size in [*done, (start, length)]:
                        lib.umdev_memory_unpin(begun, size)
                    raise _pin_error(code, pages)
                done.append((start, length))
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
            _unpin(freed)

    def close(self) -> None:
        """Unpin everything."""
        self._cancel()
        with self._lock:
            _unpin(sorted(self._counts))
            self._counts.clear()

    def _writable(self, address: int, pages: int) -> bool:
        end = address + pages * PAGE_SIZE
        for mapping in self._memory.mappings:
            host = mapping.host
            if host is not None and host <= address and end <= host + mapping.length:
                return Protection.WRITE in mapping.protection
        raise InvalidArgument(f"{pages} pages at host address {address:#x} lie in no map")

    def _forget(self, mapping: Mapping) -> None:
        host = mapping.host
        if host is None:
            return
        with self._lock:
            if len(self._counts) * PAGE_SIZE < mapping.length:
                gone = sorted(page for page in self._counts if host <= page < host + mapping.length)
            else:
                gone = [page for page in range(host, host + mapping.length, PAGE_SIZE) if page in self._counts]
            for page in gone:
                del self._counts[page]
            _unpin(gone)


def _pages(address: int, pages: int) -> range:
    if address & PAGE_MASK or pages <= 0:
        raise InvalidArgument(f"{pages} pages at {address:#x}: pins are whole pages")
    return range(address, address + pages * PAGE_SIZE, PAGE_SIZE)


def _runs(pages: Iterable[int]) -> list[tuple[int, int]]:
    """(start, length) of pages next to each other."""
    runs: list[tuple[int, int]] = []
    for page in pages:
        if runs and sum(runs[-1]) == page:
            runs[-1] = (runs[-1][0], runs[-1][1] + PAGE_SIZE)
        else:
            runs.append((page, PAGE_SIZE))
    return runs


def _unpin(pages: Iterable[int]) -> None:
    for start, length in _runs(pages):
        lib.umdev_memory_unpin(start, length)


def _pin_error(code: int, pages: int) -> UmdevError:
    if code in (errno.ENOMEM, errno.EPERM, errno.EAGAIN):
        limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        return PinLimit(
            f"{pages} pages can't be pinned: RLIMIT_MEMLOCK is {limit} bytes; raise it "
            "(ulimit -l, LimitMEMLOCK= of a systemd unit, memlock in limits.conf) or grant CAP_IPC_LOCK"
        )
    if code == errno.EFAULT:
        return MappingPoisoned(f"{pages} pages can't be pinned: the file behind the map shrank")
    error = UmdevError(f"{pages} pages can't be pinned: {os.strerror(code)}")
    error.errno = code
    return error
