"""TRACK: Xen's dirty tracking where it reaches, comparison beyond.

Xen tracks one range of at most 1 GiB for each domain (`xendevicemodel_track_dirty_vram`): it spans what all devices
watch. Stores of the devices themselves pass by it, as they pass by every protector but a comparing one.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from umdev.addresses import PAGE_MASK, PAGE_SIZE, Iova
from umdev.errors import HypervisorError, InvalidArgument, StateError
from umdev.hypervisor import ComparisonProtector, ProtectMode

from .libraries import DEVICE_MODEL, ffi

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from umdev.bus import Attachment
    from umdev.hypervisor import PageWrite

    from .handles import Handles
    from .native import Native

__all__ = ["FRAMES_MAX", "DirtyTracker", "TrackProtector"]

FRAMES_MAX = (1 << 30) // PAGE_SIZE
"""Of a tracked range (xen/arch/x86/hvm/dm.c)."""


class DirtyTracker:
    """The tracked range of one domain. Any thread."""

    def __init__(self, handles: Handles, native: Native) -> None:
        self._handles = handles
        self._native = native
        self._lock = threading.Lock()  # of all below, and of who is told
        self._first = 0
        self._count = 0
        self._watched: dict[TrackProtector, set[int]] = {}
        self._dirty: dict[TrackProtector, set[int]] = {}
        self.refusal: str | None = None
        """Why Xen does not track, since it has refused."""

    @property
    def frames(self) -> int:
        """Pages in the range that Xen tracks now."""
        return self._count

    def watch(self, client: TrackProtector, frames: Collection[int]) -> bool:
        """Track more pages for a client, from now on; False, and nothing has changed, where Xen's means don't reach."""
        with self._lock:
            first, end = min(frames), max(frames) + 1
            if self._count:
                first, end = min(first, self._first), max(end, self._first + self._count)
            if end - first > FRAMES_MAX:
                return False
            if self._count:
                self._collect()
            if (first, end - first) != (self._first, self._count):
                try:
                    self._native.set_tracked(first, end - first)
                    self._ask(first, end - first)
                except HypervisorError as error:
                    self.refusal = str(error)
                    self._begin_anew()
                    return False
                # What was stored between the last look at the old range and the first at the new one, nobody knows.
                for other, known in self._watched.items():
                    self._dirty[other] |= known
                self._first, self._count = first, end - first
            self._watched.setdefault(client, set()).update(frames)
            self._dirty.setdefault(client, set()).difference_update(frames)
            return True

    def forget(self, client: TrackProtector, frames: Iterable[int] | None = None) -> None:
        """Track less for a client; None: nothing. The range goes with the last of all clients."""
        with self._lock:
            if client not in self._watched:
                return
            self._watched[client] -= set(self._watched[client] if frames is None else frames)
            self._dirty[client] &= self._watched[client]
            if not self._watched[client]:
                del self._watched[client], self._dirty[client]
            if not self._watched and self._count:
                self._first = self._count = 0
                self._native.set_tracked(0, 0)
                try:
                    self._ask(0, 0)
                except HypervisorError:  # the domain has gone
                    return

    def collect(self, client: TrackProtector) -> set[int]:
        """Frames of a client that were stored to since it last asked. Raises: HypervisorError."""
        with self._lock:
            if client not in self._watched:
                return set()
            self._collect()
            found, self._dirty[client] = self._dirty[client], set()
            return found

    def renew(self) -> None:
        """The guest has given memory back: any page may have changed."""
        with self._lock:
            for client, known in self._watched.items():
                self._dirty[client] |= known

    # Inside. The lock is held.

    def _collect(self) -> None:
        bits = self._ask(self._first, self._count)
        frames = set(_frames(bits, self._first))
        # What a device gave to `rep ins` or `rep movs`, or a TRAP held up, lands through another mapping than the
        # guest's.
        frames.update(_frames(self._native.take_landed(self._count), self._first))
        for client, known in self._watched.items():
            self._dirty[client] |= known & frames

    def _ask(self, first: int, count: int) -> bytes:
        """What was stored to in a range since the last call, a bit for each page; everything at the first."""
        size = (count + 63) // 64 * 8
        bitmap = ffi.new("unsigned long[]", max(1, size // 8))
        DEVICE_MODEL.call(
            "xendevicemodel_track_dirty_vram", self._handles.device_model, self._handles.domain, first, count, bitmap
        )
        return bytes(ffi.buffer(bitmap))[:size]

    def _begin_anew(self) -> None:
        """Xen may have dropped the old range when it refused the new one."""
        if self._count:
            self._native.set_tracked(self._first, self._count)
            self._ask(self._first, self._count)
            for client, known in self._watched.items():
                self._dirty[client] |= known


class TrackProtector:
    """A `PageProtector` that gives TRACK to one device of a domain: by Xen while its pages lie within Xen's means, by
    comparison for those asked for after they no longer do.
    """

    mode = ProtectMode.TRACK

    def __init__(self, tracker: DirtyTracker, attachment: Attachment) -> None:
        self._tracker = tracker
        self._compared = ComparisonProtector(_OnDemand(attachment))
        self._comparing: set[int] = set()
        self._lock = threading.Lock()
        self._tracked: set[int] = set()
        self._closed = False

    @property
    def mechanism(self) -> str:
        """One line for people."""
        means = []
        if self._tracked or not self._comparing:
            means.append("track_dirty_vram: one range of at most 1 GiB for the domain")
        if self._comparing:
            means.append(f"comparison of {len(self._comparing)} pages")
        return ", ".join(means)

    def protect(self, pages: Sequence[Iova], notify: Callable[[PageWrite], None] | None = None) -> None:
        """Watch pages from now on. `notify` is not used. Raises: InvalidArgument, StateError, DmaError."""
        del notify  # TRACK never calls it
        for page in pages:
            if page & PAGE_MASK:
                raise InvalidArgument(f"page address {page:#x} is not a multiple of {PAGE_SIZE}")
        with self._lock:
            if self._closed:
                raise StateError("the protector is closed")
            frames = {page // PAGE_SIZE for page in pages} - self._tracked - self._comparing
            if not frames:
                return
            if self._tracker.watch(self, frames):
                self._tracked |= frames
                return
            self._compared.protect([Iova(frame * PAGE_SIZE) for frame in sorted(frames)])
            self._comparing |= frames

    def unprotect(self, pages: Sequence[Iova]) -> None:
        """Forget; pages never watched are ignored."""
        with self._lock:
            frames = {page // PAGE_SIZE for page in pages}
            self._compared.unprotect(pages)
            self._comparing -= frames
            self._tracker.forget(self, frames & self._tracked)
            self._tracked -= frames

    def collect(self) -> Iterable[Iova]:
        """Pages stored to since they were last reported, ascending. Raises: HypervisorError."""
        with self._lock:
            found = {Iova(frame * PAGE_SIZE) for frame in self._tracker.collect(self)} if self._tracked else set()
            found.update(self._compared.collect())
            return sorted(found)

    def close(self) -> None:
        """Forget every page. May be called twice."""
        with self._lock:
            self._closed = True
            self._tracker.forget(self)
            self._tracked.clear()
            self._comparing.clear()
            self._compared.close()


class _OnDemand:
    """Guest memory that is mapped again when the cache has dropped it."""

    def __init__(self, attachment: Attachment) -> None:
        self._memory = attachment.device.memory

    def read(self, iova: int, length: int, space: int = 0) -> bytes:
        """Raises: NotMapped, DmaError."""
        return self._memory.read(iova, length, space=space)


def _frames(bitmap: bytes, first: int) -> Iterable[int]:
    for number, byte in enumerate(bitmap):
        if byte:
            for bit in range(8):
                if byte >> bit & 1:
                    yield first + number * 8 + bit
