"""EMULATE and TRAP: stores to pages of type HVMMEM_ioreq_server come to the device model instead of landing.

Reads pass with no exit. Xen gives this type to one device model of a domain, for ordinary RAM alone, and not while it
logs all of the domain's memory, as for a migration.

A page that nobody watches any more goes on coming here for a while, and its stores land by the loop's own hand: it
becomes ordinary when no processor is in the middle of a store to it, for Xen would lose that processor.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
from typing import TYPE_CHECKING

from umdev.addresses import PAGE_MASK, PAGE_SIZE, Iova
from umdev.errors import HypervisorError, InvalidArgument, NotMapped, ProtectError, ProtectorBusy, StateError
from umdev.hypervisor import PageWrite, ProtectMode

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from umdev.hypervisor import Attachment

    from .native import Native
    from .server import IoreqServer

__all__ = ["Emulator", "StoreProtector"]

_log = logging.getLogger("umdev.xen")
_COOLING = 0.05
"""Seconds between two looks whether pages can become ordinary."""


class Emulator:
    """The emulated pages of one domain, counted over its devices. Any thread."""

    def __init__(self, domid: int, native: Native, server: IoreqServer) -> None:
        self._domid = domid
        self._native = native
        self._server = server
        self._lock = threading.Lock()  # of all below; a leaf but for Xen
        self._watchers: dict[int, list[StoreProtector]] = {}  # by frame
        self._cooling: set[int] = set()  # frames that are to become ordinary
        self._cooler: threading.Thread | None = None
        self._closed = threading.Event()
        self._owned = False

    @property
    def pages(self) -> int:
        """Pages whose stores come here now."""
        return len(self._watchers)

    @property
    def cooling(self) -> int:
        """Pages that nobody watches any more, and that are not ordinary yet."""
        return len(self._cooling)

    def watch(self, frames: Collection[int], protector: StoreProtector) -> None:
        """Have stores to pages told to a protector, which watches none of them yet.

        Raises: ProtectorBusy (another device model has them, or dirty logging is on), NotMapped (no ordinary memory);
        nothing has changed then.
        """
        with self._lock:
            self._own()
            for frame in frames:
                self._watchers.setdefault(frame, []).append(protector)
            again = sorted(self._cooling.intersection(frames))
            self._cooling.difference_update(again)
            new = sorted(frame for frame in set(frames).difference(again) if len(self._watchers[frame]) == 1)
            # First who is told, then the requests: no store may come that nobody watches.
            self._native.set_emulated(list(self._watchers))
            done: list[tuple[int, int]] = []
            try:
                for first, count in _runs(new):
                    done.append((first, count))
                    self._server.set_stores_emulated(first, count, emulated=True)
                for frame in again:
                    done.append((frame, 1))
                    self._emulate_again(frame)
            except HypervisorError as error:
                self._cool(self._remove(frames, protector))
                raise _refused(self._domid, done[-1], error) from error

    def release(self, frames: Iterable[int], protector: StoreProtector) -> None:
        """Undo `watch` of pages that the protector watches."""
        with self._lock:
            self._cool(self._remove(frames, protector))

    def stored(self, address: int, value: int, width: int) -> None:
        """A processor stores; called in its thread, no lock held. It lands unless a model that emulates has it."""
        with self._lock:
            watchers = list(self._watchers.get(address // PAGE_SIZE, ()))
        emulated = False
        for protector in watchers:
            emulated = protector.told(address, value, width) or emulated
        if not emulated:
            self._native.write_guest(address, value.to_bytes(8, "little")[:width])

    def renew(self) -> None:
        """The guest has given memory back: a page that it takes again would be ordinary. No lock is held."""
        with self._lock:
            lost: list[tuple[int, StoreProtector]] = []
            for frame, watchers in self._watchers.items():
                try:
                    self._emulate_again(frame)
                except HypervisorError:
                    lost += [(frame, protector) for protector in watchers]
        for frame, protector in lost:
            protector.lost(frame)

    def close(self) -> None:
        """Every page is ordinary again. No processor's thread runs any more. May be called twice."""
        self._closed.set()
        cooler = self._cooler  # which forgets itself
        if cooler is not None:
            cooler.join()
        with self._lock:
            if self._owned:
                self._owned = False
                with contextlib.suppress(HypervisorError):  # the domain has gone
                    self._server.own_stores(owned=False)

    def _make_ordinary(self) -> None:
        """The cooler's thread: it ends when nothing is left, and is started anew."""
        while not self._closed.wait(_COOLING):
            with self._lock:
                for frame in sorted(self._cooling):
                    if self._try_ordinary(frame):
                        self._cooling.discard(frame)
                if not self._cooling:
                    self._cooler = None
                    return

    # Inside. The lock is held.

    def _emulate_again(self, frame: int) -> None:
        """Of a page that was emulated when last seen. Raises: HypervisorError where the guest has it no more.

        Xen changes ordinary pages alone (dm.c, allow_p2m_type_change): it refuses one that is emulated still, too.
        """
        try:
            self._server.set_stores_emulated(frame, 1, emulated=True)
        except HypervisorError:
            if self._native.read_guest(frame * PAGE_SIZE, 1) is None:
                raise

    def _try_ordinary(self, frame: int) -> bool:
        """Make a page ordinary; False where a processor is at it."""
        with self._native.answers_held():
            if self._native.is_busy(frame):
                return False
            try:
                self._server.set_stores_emulated(frame, 1, emulated=False)
                if self._native.is_busy(frame):  # it came just before: it must find the page as it was
                    self._server.set_stores_emulated(frame, 1, emulated=True)
                    return False
            except HypervisorError as error:  # given back by the guest, or with the domain: no page, no type
                _log.debug("domain %d: frame %#x: %s", self._domid, frame, error)
            return True

    def _cool(self, frames: Collection[int]) -> None:
        """Nobody watches the pages any more: their stores land from here on."""
        self._native.set_emulated(list(self._watchers))
        self._cooling.update(frames)
        if self._cooling and self._cooler is None and not self._closed.is_set():
            self._cooler = threading.Thread(target=self._make_ordinary, name="xen pages that cool", daemon=True)
            self._cooler.start()

    def _own(self) -> None:
        if self._owned:
            return
        try:
            self._server.own_stores(owned=True)
        except HypervisorError as error:
            if error.errno == errno.EBUSY:
                raise ProtectorBusy(
                    f"domain {self._domid}: another device model has HVMMEM_ioreq_server, which Xen gives to one, or "
                    "a migration logs all of its memory: end that, or use TRACK"
                ) from error
            raise ProtectError(f"domain {self._domid}: {error}") from error
        self._owned = True

    def _remove(self, frames: Iterable[int], protector: StoreProtector) -> list[int]:
        """Frames that nobody watches any more."""
        gone = []
        for frame in frames:
            self._watchers[frame].remove(protector)
            if not self._watchers[frame]:
                del self._watchers[frame]
                gone.append(frame)
        return gone


class StoreProtector:
    """A `PageProtector` that gives EMULATE or TRAP to one device of a domain.

    `notify` is called in the thread of the processor that stores, with the device lock held; the processor goes on when
    it returns. EMULATE: the store has not landed; write it to memory, or leave it; it lands when `notify` raises. TRAP:
    it lands afterwards, and the page is writable until it is protected again.
    """

    def __init__(self, emulator: Emulator, attachment: Attachment, mode: ProtectMode) -> None:
        self.mode = mode
        """The guarantee."""
        self._emulator = emulator
        self._native = attachment.native
        self._lock = threading.Lock()  # of the next two; a leaf
        self._pages: dict[int, Callable[[PageWrite], None]] = {}  # by frame
        self._serving: int | None = None  # the frame that a TRAP is told of
        self._closed = False
        self._changes = threading.RLock()  # one protect or unprotect at a time; after the device lock

    @property
    def mechanism(self) -> str:
        """One line for people."""
        return f"HVMMEM_ioreq_server pages: {self.mode.name}"

    @property
    def pages(self) -> int:
        """Pages armed now."""
        return len(self._pages)

    def protect(self, pages: Sequence[Iova], notify: Callable[[PageWrite], None] | None = None) -> None:
        """Have stores to pages reported; those that are already keep being so, with the new `notify`.

        After an error none is new.

        Raises: InvalidArgument, NotMapped (no ordinary memory of the domain), ProtectorBusy, ProtectError, StateError.
        """
        if notify is None:
            raise InvalidArgument(f"{self.mode.name} needs a function to notify")
        frames = {_frame(page) for page in pages}
        with self._changes:
            with self._lock:
                if self._closed:
                    raise StateError("the protector is closed")
                if self._serving in frames:
                    raise _serving_error(self._serving)
                before = {frame: self._pages.get(frame) for frame in frames}
                self._pages.update(dict.fromkeys(frames, notify))
            try:
                self._emulator.watch([frame for frame, known in before.items() if known is None], self)
            except BaseException:
                with self._lock:
                    for frame, known in before.items():
                        if known is None:
                            del self._pages[frame]
                        else:
                            self._pages[frame] = known
                raise

    def unprotect(self, pages: Sequence[Iova]) -> None:
        """Stores to the pages land by themselves again; pages never protected are ignored."""
        with self._changes:
            self._drop([page // PAGE_SIZE for page in pages])

    def collect(self) -> Iterable[Iova]:
        """Raises: StateError, always."""
        raise StateError(f"collect is for TRACK; this protector does {self.mode.name}")

    def close(self) -> None:
        """Every page is ordinary memory again; no notification comes later. May be called twice."""
        with self._changes:
            with self._lock:
                self._closed = True
            self._drop(list(self._pages))
        if not self._native.held:
            with self._native.locked():  # a notification that has begun ends
                pass

    def told(self, address: int, value: int, width: int) -> bool:
        """A processor stores; True: a model that emulates has the store. Called by the emulator, no lock held."""
        frame = address // PAGE_SIZE
        with self._native.locked():
            with self._lock:
                notify = None if self._closed else self._pages.get(frame)
                if notify is None:  # a change was faster
                    return False
                trapped = self.mode is ProtectMode.TRAP
                self._serving = frame if trapped else None
            write = PageWrite(Iova(frame * PAGE_SIZE)) if trapped else PageWrite(Iova(address), value, width)
            try:
                notify(write)
            except Exception:  # noqa: BLE001 - the guest goes on whatever a model does
                _log.exception("the notification of a store failed: it lands as it is")
                return False
            finally:
                if trapped:
                    with self._changes:
                        self._drop([frame])
                with self._lock:
                    self._serving = None
        return not trapped

    def lost(self, frame: int) -> None:
        """The guest has given the page back: that changes it. Called by the emulator, no lock held."""
        if self.mode is ProtectMode.TRAP:
            self.told(frame * PAGE_SIZE, 0, 0)
        else:
            _log.warning("page %#x, whose stores are emulated, was given back by the guest", frame * PAGE_SIZE)

    def _drop(self, frames: Iterable[int]) -> None:
        with self._lock:
            known = [frame for frame in dict.fromkeys(frames) if frame in self._pages]
        if known:
            self._emulator.release(known, self)
            with self._lock:
                for frame in known:
                    self._pages.pop(frame, None)


def _frame(page: Iova) -> int:
    if page & PAGE_MASK:
        raise InvalidArgument(f"page address {page:#x} is not a multiple of {PAGE_SIZE}")
    return page // PAGE_SIZE


def _serving_error(frame: int | None) -> ProtectError:
    error = ProtectError(
        f"page {(frame or 0) * PAGE_SIZE:#x} is being told of: its store lands first; arm it again in deferred work"
    )
    error.errno = errno.EBUSY
    return error


def _refused(domid: int, run: tuple[int, int], error: HypervisorError) -> ProtectError | NotMapped:
    first, count = run
    what = f"domain {domid}: {count} pages from {first * PAGE_SIZE:#x}"
    if error.errno in (errno.EINVAL, errno.ENOENT):
        return NotMapped(
            f"{what} are no ordinary memory of it (or are being tracked)", first * PAGE_SIZE, count * PAGE_SIZE
        )
    refusal = ProtectError(f"{what} can't be protected: {error}")
    refusal.errno = error.errno
    return refusal


def _runs(frames: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of frames next to each other; ascending."""
    first, count = 0, 0
    for frame in frames:
        if count and frame == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = frame, 1
    if count:
        yield first, count
