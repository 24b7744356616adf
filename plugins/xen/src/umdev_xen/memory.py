"""Guest memory by foreign mappings: made when the device first asks, kept, dropped when the guest gives memory back.

A mapping holds references to its pages: the guest can't give them to anybody else before it is dropped, and a domain
that was destroyed stays as a zombie until then.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from typing import TYPE_CHECKING

from umdev.addresses import PAGE_SIZE, HostVirt, Iova
from umdev.errors import Conflict, InvalidArgument

from .libraries import FOREIGN_MEMORY, ffi

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from umdev.bus import AddressSpace, Attachment, Mapping, Protection

    from .handles import Handles

__all__ = ["BUCKET", "CACHE", "ForeignMapper", "MappingPins", "foreign_map", "foreign_unmap"]

BUCKET = 1 << 20
"""Bytes that are mapped together; a power of two."""
CACHE = 256 << 20
"""Bytes that a device keeps mapped, unless a domain is opened with another limit."""
MAPS = 1024
"""Maps that a device keeps: a guest that has given back every second page makes one of each that is left, and a process
has 65,530 of them (vm.max_map_count) for all its devices."""
_ATTEMPTS = 8
"""For one place: a guest that gives memory back again and again does so in vain."""
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


def foreign_map(handles: Handles, frames: Sequence[int]) -> tuple[int, list[int]] | None:
    """Map pages (guest frame numbers) next to each other: the address, and for each page 0 or a negative errno.

    None where none could be mapped at all.
    """
    count = len(frames)
    errors = ffi.new("int[]", count)
    pointer = FOREIGN_MEMORY.function("xenforeignmemory_map")(
        handles.foreign_memory, handles.domain, _READ_WRITE, count, ffi.new("unsigned long[]", list(frames)), errors
    )
    if pointer == ffi.NULL:
        return None
    return int(ffi.cast("uintptr_t", pointer)), list(errors)


def foreign_unmap(handles: Handles, address: int, pages: int) -> None:
    """Undo `foreign_map`."""
    pointer = ffi.cast("void *", address)
    FOREIGN_MEMORY.call("xenforeignmemory_unmap", handles.foreign_memory, pointer, pages)


class ForeignMapper:
    """Service 4 for one device of a domain. Any thread.

    Whole buckets are mapped where the guest has memory all over them, else the runs of pages that it has. The oldest
    are dropped when there are more than `limit` bytes or `MAPS` maps, but never one that is pinned, or in which a view
    is open.
    """

    mechanism = "xenforeignmemory_map, cached; dropped on INVALIDATE requests"

    def __init__(self, attachment: Attachment, handles: Handles, limit: int = CACHE) -> None:
        self._memory: AddressSpace = attachment.memory
        self._device = attachment.native
        self._handles = handles
        self._limit = limit
        self._lock = threading.Lock()  # of what follows; a leaf
        self._cached: dict[Mapping, None] = {}  # oldest first
        self._pins: dict[Mapping, int] = {}
        self._bytes = 0
        self._flushes = 0
        self._closed = False
        self._cancel = self._memory.on_unmap(self._unmapped, late=True)

    @property
    def mapped(self) -> int:
        """Bytes that are mapped now."""
        return self._bytes

    def map(self, address: Iova, length: int, protection: Protection, space: int) -> bool:  # noqa: ARG002 - MemoryMapper's signature; foreign mappings are for both directions
        """Map the first missing page of the range, with its neighbourhood. False where the guest has no memory there.

        Bus addresses are guest-physical: there is no IOMMU.
        """
        if space or self._closed:
            return False
        for _ in range(_ATTEMPTS):
            if self._memory.find(address) is not None:  # another thread was faster
                return True
            flushes = self._flushes
            self._map_bucket(address & ~(BUCKET - 1), flushes)
            if flushes == self._flushes:
                break
        self._evict(address)
        return self._memory.find(address) is not None

    def flush(self) -> None:
        """The guest has given memory back: drop everything, pinned or not; models are told by `on_unmap`.

        What another thread is mapping meanwhile goes as well, before it is used by who asked for it.
        """
        with self._lock:
            self._flushes += 1
        self._memory.unmap_all()

    def hold(self, host: HostVirt, pages: int, count: int) -> None:
        """Keep the map that holds host addresses from being dropped for room; `count` may be negative to undo it.

        Raises: InvalidArgument (they lie in none).
        """
        with self._lock:
            for mapping in self._cached:
                first = mapping.host
                if first is not None and first <= host and host + pages * PAGE_SIZE <= first + mapping.length:
                    self._pins[mapping] = self._pins.get(mapping, 0) + count
                    return
        raise InvalidArgument(f"{pages} pages at host address {host:#x} lie in no map")

    def close(self) -> None:
        """Map no more; what is mapped goes with the attachment's maps. May be called twice."""
        self._closed = True
        self._cancel()

    # Inside.

    def _map_bucket(self, start: int, flushes: int) -> None:
        """Map what the guest has of a bucket and is not mapped yet. `flushes`: their number before this began."""
        known = [(m.iova, m.end) for m in self._memory.mappings if m.iova < start + BUCKET and start < m.end]
        missing = [
            page
            for page in range(start, start + BUCKET, PAGE_SIZE)
            if not any(first <= page < end for first, end in known)
        ]
        if not missing:
            return
        mapped = foreign_map(self._handles, [page // PAGE_SIZE for page in missing])
        if mapped is None:
            return
        address, errors = mapped
        if not any(errors) and missing[-1] - missing[0] == (len(missing) - 1) * PAGE_SIZE:
            self._take(missing[0], address, len(missing), flushes)
            return
        foreign_unmap(self._handles, address, len(missing))
        for run in _runs([page for page, error in zip(missing, errors, strict=True) if not error]):
            self._add(run, flushes)

    def _add(self, run: Sequence[int], flushes: int) -> None:
        mapped = foreign_map(self._handles, [page // PAGE_SIZE for page in run])
        if mapped is None:
            return
        if any(mapped[1]):  # the guest gave a page back just now
            foreign_unmap(self._handles, mapped[0], len(run))
            return
        self._take(run[0], mapped[0], len(run), flushes)

    def _take(self, iova: int, address: int, pages: int, flushes: int) -> None:
        try:
            mapping = self._memory.map(iova, pages * PAGE_SIZE, host=HostVirt(address))
        except Conflict:  # another thread was faster
            foreign_unmap(self._handles, address, pages)
            return
        except BaseException:
            foreign_unmap(self._handles, address, pages)
            raise
        with self._lock:
            if mapping.host is not None:  # else it has been flushed already
                self._cached[mapping] = None
                self._bytes += mapping.length
            late = flushes != self._flushes
        if late:  # what was mapped before Xen took pages away was not there yet when everything was dropped
            self._drop(mapping)

    def _drop(self, mapping: Mapping) -> None:
        """Whatever is pinned or looked at in it."""
        if not self._memory.evict(mapping) and self._memory.find(mapping.iova) is mapping:
            with contextlib.suppress(InvalidArgument):  # it went just now, and a longer one is there
                self._memory.unmap(mapping.iova, mapping.length)
        self._unmapped(mapping)  # if it went before it was counted

    @property
    def _too_much(self) -> bool:
        return self._bytes > self._limit or len(self._cached) > MAPS

    def _evict(self, wanted: Iova) -> None:
        """Make room, but keep the map of `wanted`.

        Not under the lock: the device's lock is taken, whose holder may be mapping.
        """
        if not self._too_much:
            return
        with self._lock:
            idle = [mapping for mapping in self._cached if not self._pins.get(mapping)]
        victims = [mapping for mapping in idle if not mapping.iova <= wanted < mapping.end]
        for mapping in victims:
            if not self._too_much:
                return
            with self._device_locked():  # whose holder may have pinned it while this thread has waited
                with self._lock:
                    pinned = self._pins.get(mapping, 0)
                if not pinned:
                    self._memory.evict(mapping)

    def _device_locked(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if self._device.held else self._device.locked()

    def _unmapped(self, mapping: Mapping) -> None:
        with self._lock:
            self._pins.pop(mapping, None)
            if mapping in self._cached:
                del self._cached[mapping]
                self._bytes -= mapping.length


class MappingPins:
    """Service 5: a page is the guest's as long as a mapping refers to it, so a pin keeps the mapping. Any thread."""

    mechanism = "the mapping's page references"

    def __init__(self, mapper: ForeignMapper) -> None:
        self._mapper = mapper

    def pin(self, address: HostVirt, pages: int) -> None:
        """Raises: InvalidArgument (not in a map)."""
        self._mapper.hold(address, pages, pages)

    def unpin(self, address: HostVirt, pages: int) -> None:
        """Undo one `pin` of the same pages; pages that an unmap has taken are passed over."""
        with contextlib.suppress(InvalidArgument):
            self._mapper.hold(address, pages, -pages)

    def close(self) -> None:
        """The references end with the mappings."""


def _runs(pages: Sequence[int]) -> Iterator[Sequence[int]]:
    """Pages next to each other."""
    run: list[int] = []
    for page in pages:
        if run and run[-1] + PAGE_SIZE != page:
            yield run
            run = []
        run.append(page)
    if run:
        yield run
