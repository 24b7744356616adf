"""EMULATE on a machine: protected pages lie in read-only memory slots, so every store to them is an exit.

A store comes with its address and value, once, in order for each processor, and does not land: the model applies it to
memory, or drops it; if its notification fails, the store lands as it is. Loads pass with no exit. A locked
read-modify-write is not atomic.

KVM carries out such a store by its own emulator of instructions (arch/x86/kvm/emulate.c). What that can't do neither
lands nor is told. An instruction that it does not know (`fst`) ends the run with a HypervisorError. One that it knows,
but whose store it can't hand over (`fxsave`, `sgdt`), it tries again for ever: no exit says so, and the run ends by its
time limit only, with the instruction's address as `rip` in `Outcome.where`.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

from umdev.addresses import PAGE_MASK, PAGE_SIZE, GuestPhys, Iova
from umdev.bus import api_address
from umdev.errors import InvalidArgument, NotMapped, NotSupported, ProtectError, StateError
from umdev.hypervisor import PageWrite, ProtectMode

from ._fast import ffi, lib
from .slots import READ_ONLY
from .vm import CAP_READONLY_MEM

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from umdev.hypervisor import Attachment, Mapping

    from .machine import Machine
    from .ram import RamPart
    from .slots import Slot
    from .vm import Vm

__all__ = ["RUNS_MAX", "EmulateProtector", "Emulator"]

_log = logging.getLogger("umdev.kvm")
RUNS_MAX = 12_000
"""Isolated pages, or runs of pages, that a machine emulates at most: each takes two memory slots of KVM's 32,764."""


class Emulator:
    """The emulated pages of one machine, counted over its devices. Any thread."""

    def __init__(self, machine: Machine) -> None:
        """Raises: NotSupported (this KVM has no read-only slots)."""
        if not machine.vm.extension(CAP_READONLY_MEM):
            raise NotSupported("this kernel's KVM has no read-only memory slots (KVM_CAP_READONLY_MEM)")
        self._machine = machine
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._counts: dict[int, int] = {}  # by page address
        self._parts: list[tuple[RamPart, tuple[int, int]]] = []  # with its file
        pointer = lib.umdev_kvm_emulator_new(ffi.cast("umdev_api *", api_address()))
        if pointer == ffi.NULL:
            raise MemoryError
        self.pointer = pointer
        """The `umdev_kvm_emulator *`."""
        self.connect(machine.vm)

    def connect(self, vm: Vm) -> None:
        """The machine has new kernel objects."""
        lib.umdev_kvm_emulator_connect(self.pointer, vm.pointer)

    @property
    def own(self) -> bool:
        """Whether this process made the machine. One that it forks has none of its threads, and KVM refuses it."""
        return self._pid == os.getpid()

    @property
    def pages(self) -> int:
        """Pages emulated now."""
        return len(self._counts)

    @property
    def stores(self) -> int:
        """Stores that came as exits so far."""
        return int(lib.umdev_kvm_emulator_stores(self.pointer))

    def find(self, file: tuple[int, int] | None, offset: int) -> GuestPhys | None:
        """The guest address of the page at `offset` of a file (device, inode) that is the machine's memory."""
        for part, known in self._parts:
            if known == file and part.offset <= offset < part.offset + part.length:
                return GuestPhys(part.guest + offset - part.offset)
        return None

    def learn_memory(self) -> None:
        """Memory may have been added to the machine."""
        with self._lock:
            for part in self._machine.ram.parts[len(self._parts) :]:
                code = lib.umdev_kvm_emulator_add_memory(self.pointer, part.guest, part.length, part.host)
                if code:
                    raise ProtectError("a machine has too many pieces of memory to emulate stores to all of them")
                status = os.fstat(part.file.descriptor)
                self._parts.append((part, (status.st_dev, status.st_ino)))

    def add(self, pages: Collection[int]) -> None:
        """Count pages (guest addresses), and make those that are new read-only.

        Raises: ProtectError (too many isolated pages), HypervisorError; nothing has changed then.
        """
        with self._lock:
            new = {page for page in pages if page not in self._counts}
            runs = sum(page - PAGE_SIZE not in self._counts and page - PAGE_SIZE not in new for page in new)
            runs += sum(page - PAGE_SIZE not in self._counts and page - PAGE_SIZE not in new for page in self._counts)
            if runs > RUNS_MAX:
                error = ProtectError(f"{runs} isolated pages to emulate: a machine has memory slots for {RUNS_MAX}")
                error.errno = errno.ENOSPC
                raise error
            counts = dict(self._counts)
            for page in pages:
                counts[page] = counts.get(page, 0) + 1
            self._apply(new, counts)
            self._counts = counts

    def drop(self, pages: Collection[int]) -> None:
        """Undo one `add` of the pages. Raises: HypervisorError."""
        with self._lock:
            counts = dict(self._counts)
            gone = set()
            for page in pages:
                if counts[page] == 1:
                    gone.add(page)
                    del counts[page]
                else:
                    counts[page] -= 1
            self._apply(gone, counts)
            self._counts = counts

    def close(self) -> None:
        """No processor runs and no device watches any more."""
        if self.own:
            lib.umdev_kvm_emulator_free(self.pointer)

    def _apply(self, changed: Collection[int], wanted: Collection[int]) -> None:
        """One batch: the slots that change, merged where nothing separates them any more."""
        old: list[Slot] = []
        new: list[tuple[int, int, int, int]] = []
        for part, _ in self._parts:
            inside = sorted(page for page in changed if part.guest <= page < part.end)
            for start, end in self._touched(part, inside):
                known = self._machine.slots.between(start, end)
                pieces = _pieces(part, start, end, wanted)
                kept = {(slot.guest, slot.length, int(slot.host), slot.flags) for slot in known} & set(pieces)
                old += [slot for slot in known if (slot.guest, slot.length, int(slot.host), slot.flags) not in kept]
                new += [piece for piece in pieces if piece not in kept]
        if old or new:
            with self._machine.slots.batch() as batch:
                batch.replace(old, new)

    def _touched(self, part: RamPart, pages: Sequence[int]) -> list[tuple[int, int]]:
        """The addresses of whole slots that the pages are in or next to, joined where they meet."""
        spans: list[tuple[int, int]] = []
        for page in pages:
            if spans and page + 2 * PAGE_SIZE <= spans[-1][1]:
                continue
            near = self._machine.slots.between(max(part.guest, page - PAGE_SIZE), min(part.end, page + 2 * PAGE_SIZE))
            start, end = near[0].guest, near[-1].end
            if spans and start <= spans[-1][1]:
                spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
            else:
                spans.append((start, end))
        return spans


class EmulateProtector:
    """A `PageProtector` that gives EMULATE to one device of a machine.

    `notify` is called in the thread of the processor that stores, with the device lock held; the processor goes on when
    it returns. The store has not landed: write it to memory, or leave it. It lands when `notify` raises.
    In a process that this one forks nothing can be protected, and what is given up there stays emulated here.
    """

    mode = ProtectMode.EMULATE
    mechanism = "read-only memory slots: EMULATE"

    def __init__(self, emulator: Emulator, attachment: Attachment) -> None:
        self._emulator = emulator
        self._memory = attachment.memory
        self._pages: dict[int, tuple[Iova, Callable[[PageWrite], None]]] = {}  # by guest address of the page
        self._changes = threading.RLock()  # one change of slots at a time
        self._handle = ffi.new_handle(self)
        device = ffi.cast("umdev_device *", attachment.native.address)
        self._watcher: Any = lib.umdev_kvm_watcher_new(emulator.pointer, device, lib.umdev_kvm_store_told, self._handle)
        if self._watcher == ffi.NULL:
            raise MemoryError
        _open.add(self)
        self._cancel = self._memory.on_unmap(self._unmapped, late=True)

    @property
    def pages(self) -> int:
        """Pages whose stores this device gets."""
        return len(self._pages)

    def protect(self, pages: Sequence[Iova], notify: Callable[[PageWrite], None] | None = None) -> None:
        """Have stores to pages emulated; those that are already keep being so, with the new `notify`.

        All processors leave the guest for the time that it takes: ask for many pages at once. After an error none is
        new.

        Raises: InvalidArgument, NotMapped, ProtectError (too many isolated pages), HypervisorError, StateError.
        """
        if notify is None:
            raise InvalidArgument("EMULATE needs a function to notify")
        self._opened()
        self._emulator.learn_memory()
        found = {self._locate(page): page for page in pages}
        with self._changes:
            self._opened()
            new = [guest for guest in found if guest not in self._pages]
            before = {guest: self._pages.get(guest) for guest in found}
            # First who is told, then the exits: no store may come as an exit that nobody watches.
            self._pages.update((guest, (page, notify)) for guest, page in found.items())
            try:
                for guest in new:
                    self._watch(guest, watched=True)
                self._emulator.add(new)
            except BaseException:
                for guest, known in before.items():
                    if known is None:
                        self._pages.pop(guest, None)
                        self._watch(guest, watched=False)
                    else:
                        self._pages[guest] = known
                raise

    def unprotect(self, pages: Sequence[Iova]) -> None:
        """Stores to the pages land by themselves again; pages never protected are ignored. Raises: HypervisorError."""
        wanted = set(pages)
        with self._changes:
            self._drop([guest for guest, (page, _) in self._pages.items() if page in wanted])

    def collect(self) -> Iterable[Iova]:
        """Raises: StateError, always."""
        raise StateError("collect is for TRACK; this protector emulates")

    def close(self) -> None:
        """Every page is ordinary memory again; no notification comes later. May be called twice."""
        with self._changes:
            watcher = self._watcher
            if watcher is None:
                return
            self._cancel()
            self._drop(list(self._pages))
            self._watcher = None
        if self._emulator.own:
            lib.umdev_kvm_watcher_free(watcher)
        _open.discard(self)

    def stored(self, address: int, value: int, width: int) -> bool:
        """A processor stores `width` bytes; whether the model has them."""
        known = self._pages.get(address & ~PAGE_MASK)
        if known is None:
            return False
        page, notify = known
        notify(PageWrite(Iova(page + (address & PAGE_MASK)), value, width))
        return True

    def _opened(self) -> None:
        if self._watcher is None:
            raise StateError("the protector is closed")
        if not self._emulator.own:
            raise StateError("the machine belongs to the process that forked this one: make another one here")

    def _locate(self, page: Iova) -> GuestPhys:
        if page & PAGE_MASK:
            raise InvalidArgument(f"page address {page:#x} is not a multiple of {PAGE_SIZE}")
        mapping = self._memory.find(page)
        if mapping is None:
            raise NotMapped(f"page {page:#x} is in no map", page, PAGE_SIZE)
        guest = self._emulator.find(mapping.file, mapping.file_offset + page - mapping.iova)
        if guest is None:
            raise NotMapped(f"page {page:#x} is no memory of the machine: not to be emulated", page, PAGE_SIZE)
        return guest

    def _watch(self, guest: int, *, watched: bool) -> None:
        code = lib.umdev_kvm_watcher_set(self._watcher, guest, watched)
        if code:
            raise MemoryError

    def _drop(self, guests: Sequence[int]) -> None:
        if guests and self._emulator.own:
            # In the opposite order: a store that is under way as an exit still finds somebody, or lands by itself.
            self._emulator.drop(guests)
            for guest in guests:
                self._watch(guest, watched=False)
                self._pages.pop(guest, None)

    def _unmapped(self, mapping: Mapping) -> None:
        if mapping.space == 0:
            with self._changes:
                gone = [guest for guest, (page, _) in self._pages.items() if mapping.iova <= page < mapping.end]
                self._drop(gone)


_open: set[EmulateProtector] = set()  # processors hold plain pointers to them


def _pieces(part: RamPart, start: int, end: int, emulated: Collection[int]) -> list[tuple[int, int, int, int]]:
    """(guest, length, host, flags) of the slots that the range of a part is to have."""
    pieces: list[tuple[int, int, int, int]] = []
    reached = start
    for page in sorted(page for page in emulated if start <= page < end):
        if page > reached:
            pieces.append((reached, page - reached, part.host + reached - part.guest, 0))
        if pieces and pieces[-1][3] == READ_ONLY and pieces[-1][0] + pieces[-1][1] == page:
            guest, length, host, flags = pieces.pop()
            pieces.append((guest, length + PAGE_SIZE, host, flags))
        else:
            pieces.append((page, PAGE_SIZE, part.host + page - part.guest, READ_ONLY))
        reached = page + PAGE_SIZE
    if reached < end:
        pieces.append((reached, end - reached, part.host + reached - part.guest, 0))
    return pieces


@ffi.def_extern(name="umdev_kvm_store_told")  # type: ignore[untyped-decorator]  # cffi's handles are untyped
def _told(context: Any, address: int, value: int, width: int) -> int:
    try:
        return int(ffi.from_handle(context).stored(address, value, width))
    except Exception:  # noqa: BLE001 - the guest goes on whatever a model does
        _log.exception("the notification of a store failed: it lands as it is")
        return 0
