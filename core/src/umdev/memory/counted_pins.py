"""Pins counted per page, whatever takes them."""

from __future__ import annotations

import errno
import os
import resource
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from umdev.addresses import PAGE_MASK, PAGE_SIZE, HostVirt
from umdev.errors import InvalidArgument, MappingPoisoned, PinLimit, UmdevError
from umdev.services import Protection

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .address_space import AddressSpace
    from .mapping import Mapping

Run = tuple[int, int]
"""Pages next to each other: the host address of the first, and one past the last byte."""


class CountedPins(ABC):
    """A `PagePinner` on an address space that counts per page; a subclass takes and drops whole runs of pages.

    A run is taken when its first pin comes and dropped after its last unpin, so the subclass counts nothing. An unmap
    drops the pins of its pages after the model has been told, and a pin never reaches a map that is gone. Any thread;
    `take` and `drop` are called by one at a time.
    """

    run_max: ClassVar[int] = 1 << 62
    """Bytes of the longest run that `take` is asked for."""

    def __init__(self, memory: AddressSpace) -> None:
        self._memory = memory
        self._counts: dict[int, int] = {}
        self._lock = threading.Lock()
        self._cancel = memory.on_unmap(self._forget, late=True)

    @property
    @abstractmethod
    def mechanism(self) -> str:
        """One line for people."""

    @abstractmethod
    def take(self, run: Run, *, writable: bool) -> None:
        """Pin a run of pages, none of which is counted yet, and all of one map. After an error none of them is pinned.

        Raises: PinLimit, MappingPoisoned, UmdevError; see `pin_error`.
        """

    @abstractmethod
    def drop(self, runs: Sequence[Run]) -> None:
        """Unpin runs of pages, ascending, which are counted no more; each may be part of what was taken, or several."""

    @property
    def pages(self) -> int:
        """Pages pinned now, each counted once."""
        with self._lock:
            return len(self._counts)

    def pin(self, address: HostVirt, pages: int) -> None:
        """Pin `pages` pages from the page-aligned host address. After an error none of them is.

        Raises: InvalidArgument (not in a map), and as `take`.
        """
        wanted = _pages(address, pages)
        with self._lock:
            # A map that is found here stays until `_forget` has had the lock.
            writable = self._writable(address, pages)
            taken: list[Run] = []
            try:
                for run in page_runs((page for page in wanted if page not in self._counts), self.run_max):
                    self.take(run, writable=writable)
                    taken.append(run)
            except BaseException:
                if taken:
                    self.drop(taken)
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
            self._drop(freed)

    def close(self) -> None:
        """Unpin everything. May be called twice."""
        self._cancel()
        with self._lock:
            pinned = sorted(self._counts)
            self._counts.clear()
            self._drop(pinned)

    def counted(self, page: int) -> bool:
        """Whether somebody has the page pinned; for `take` and `drop`."""
        return page in self._counts

    def _drop(self, pages: Sequence[int]) -> None:
        if pages:
            self.drop(page_runs(pages))

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
            self._drop(gone)


def page_runs(pages: Iterable[int], run_max: int = CountedPins.run_max) -> list[Run]:
    """Ascending pages as runs of at most `run_max` bytes."""
    runs: list[Run] = []
    for page in pages:
        if runs and runs[-1][1] == page and page - runs[-1][0] < run_max:
            runs[-1] = (runs[-1][0], page + PAGE_SIZE)
        else:
            runs.append((page, page + PAGE_SIZE))
    return runs


def pin_error(code: int, run: Run) -> UmdevError:
    """The error for a run that could not be taken, with the errno `code`."""
    pages = (run[1] - run[0]) // PAGE_SIZE
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


def _pages(address: int, pages: int) -> range:
    if address & PAGE_MASK or pages <= 0:
        raise InvalidArgument(f"{pages} pages at {address:#x}: pins are whole pages")
    return range(address, address + pages * PAGE_SIZE, PAGE_SIZE)
