"""Memory slots: which guest addresses are whose bytes in this process. All changes of the map go through here."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from umdev.addresses import PAGE_MASK, GuestPhys, HostVirt
from umdev.errors import Conflict, HypervisorError, InvalidArgument, NotFound

from ._fast import lib
from .vm import CAP_NR_MEMSLOTS, failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .vm import Vm

READ_ONLY = 2
"""linux/kvm.h: KVM_MEM_READONLY. Loads pass; a store leaves the guest, and reaches what the dispatch table says."""
LOG_DIRTY = 1
"""KVM_MEM_LOG_DIRTY_PAGES."""
STOP_SECONDS = 3
"""How long a batch, or a pause in a device's handler, waits for processors to leave the guest; microseconds are usual.
"""
_CALL = "KVM_SET_USER_MEMORY_REGION"


@dataclass(frozen=True, slots=True)
class Slot:
    """`length` bytes at guest address `guest` are the bytes at `host`. `number` is KVM's."""

    number: int
    guest: GuestPhys
    length: int
    host: HostVirt
    flags: int = 0

    @property
    def end(self) -> int:
        """One past the last guest address."""
        return self.guest + self.length


class MemorySlots:
    """The slots of one machine. Any thread.

    `add` and `remove` change one slot while processors may run; a processor that touches a slot while it is away sees
    what the dispatch table has there, so that is for passed-through BARs only. Changes of memory go through `batch`.
    """

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._lock = threading.RLock()
        self._slots: dict[int, Slot] = {}
        self._order: list[tuple[int, int]] = []  # (guest address, number), sorted: there may be thousands
        self._free: list[int] = []
        self._next = 0
        self.limit = vm.extension(CAP_NR_MEMSLOTS) or 32
        """How many slots this kernel gives a machine."""

    def rebuild(self, vm: Vm) -> None:
        """The machine got new kernel objects: they get every slot. Raises: HypervisorError."""
        with self._lock:
            self._vm = vm
            for slot in self._slots.values():
                code = self._set(slot, slot.length)
                if code:
                    raise failure(_CALL, code)

    @property
    def slots(self) -> list[Slot]:
        """All slots by guest address."""
        with self._lock:
            return [self._slots[number] for _, number in self._order]

    def between(self, start: int, end: int) -> list[Slot]:
        """Slots that overlap the addresses, by guest address."""
        with self._lock:
            first = max(0, bisect_right(self._order, (start, self.limit)) - 1)
            found = [self._slots[number] for _, number in self._order[first : bisect_left(self._order, (end, -1))]]
            return [slot for slot in found if slot.end > start]

    def find(self, guest: int) -> Slot | None:
        """The slot that covers an address."""
        return next(iter(self.between(guest, guest + 1)), None)

    def add(self, guest: int, length: int, host: int, flags: int = 0) -> Slot:
        """Map `length` bytes of this process into the guest.

        Raises: InvalidArgument for broken pages, Conflict for an overlap, HypervisorError (no slot left, no memory).
        """
        if (guest | length | host) & PAGE_MASK or length <= 0:
            raise InvalidArgument(f"a memory slot is whole pages: guest {guest:#x}, length {length:#x}, host {host:#x}")
        with self._lock:
            for other in self.between(guest, guest + length):
                raise Conflict(f"memory slot {guest:#x}+{length:#x} overlaps {other.guest:#x}+{other.length:#x}")
            if len(self._slots) >= self.limit:
                raise HypervisorError(f"{_CALL}: this kernel gives a machine {self.limit} memory slots; none is left")
            number = self._free.pop() if self._free else self._next
            slot = Slot(number, GuestPhys(guest), length, HostVirt(host), flags)
            code = self._set(slot, length)
            if code:
                if number != self._next:
                    self._free.append(number)
                raise failure(_CALL, code)
            self._next = max(self._next, number + 1)
            self._slots[number] = slot
            insort(self._order, (slot.guest, number))
            return slot

    def remove(self, slot: Slot) -> None:
        """Take a slot away. Raises: NotFound, HypervisorError."""
        with self._lock:
            if self._slots.get(slot.number) is not slot:
                raise NotFound(f"there is no memory slot at {slot.guest:#x}+{slot.length:#x}")
            code = self._set(slot, 0)
            if code:
                raise failure(_CALL, code)
            del self._slots[slot.number]
            del self._order[bisect_left(self._order, (slot.guest, slot.number))]
            self._free.append(slot.number)

    @contextmanager
    def batch(self) -> Iterator[SlotBatch]:
        """Change slots with every processor out of the guest, from the first change to the end of the block.

        Any thread, a device's handler in a processor's own thread included; batches exclude each other. A failure in
        the block undoes what the batch did, as far as the kernel lets it, and passes on.

        Raises: StateError when a processor does not leave: it waits for a notification of a page write, which waits for
        a device lock that the caller holds. Nothing has changed then.
        """
        with self._lock:
            self._vm.stop_processors(STOP_SECONDS)
            batch = SlotBatch(self)
            try:
                yield batch
            except BaseException:
                batch.undo()
                raise
            finally:
                self._vm.resume_processors()

    def _set(self, slot: Slot, length: int) -> int:
        return int(lib.umdev_kvm_set_slot(self._vm.pointer, slot.number, slot.guest, length, slot.host, slot.flags))


class SlotBatch:
    """Changes with the processors stopped. Flags of a live slot can't change: `replace` takes it away and adds it."""

    def __init__(self, slots: MemorySlots) -> None:
        self._slots = slots
        self._undo: list[tuple[str, Slot]] = []

    def add(self, guest: int, length: int, host: int, flags: int = 0) -> Slot:
        """As `MemorySlots.add`."""
        slot = self._slots.add(guest, length, host, flags)
        self._undo.append(("added", slot))
        return slot

    def remove(self, slot: Slot) -> None:
        """As `MemorySlots.remove`."""
        self._slots.remove(slot)
        self._undo.append(("removed", slot))

    def replace(self, old: list[Slot], new: list[tuple[int, int, int, int]]) -> list[Slot]:
        """Take slots away and add others: (guest, length, host, flags). Raises: as `add` and `remove`."""
        for slot in old:
            self.remove(slot)
        return [self.add(*fields) for fields in new]

    def undo(self) -> None:
        """Put back what was there before the batch."""
        while self._undo:
            what, slot = self._undo.pop()
            if what == "added":
                self._slots.remove(slot)
            else:
                self._slots.add(slot.guest, slot.length, slot.host, slot.flags)
