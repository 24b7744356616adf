"""The PCI host bridge: functions in slots, and their BARs where the guest puts them."""

from __future__ import annotations

import contextlib
import logging
import mmap
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from umdev.errors import Conflict, HypervisorError, InvalidArgument, NotFound

from . import layout
from ._fast import ffi, lib
from .interrupts import FunctionInterrupts, Routes
from .vm import check, failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from umdev.bus import Attachment
    from umdev.device import Device

    from .posted import Posted
    from .slots import MemorySlots, Slot
    from .vm import Vm

log = logging.getLogger("umdev.kvm")

SLOTS = range(1, 32)
"""Slot 0 is the bridge itself."""
WARNINGS = 20
"""Bad placements, and refusals, that a machine's log tells of; the guest can make any number."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A BAR that decodes: `length` bytes at `address`, as I/O ports or memory."""

    slot: int
    region: int
    address: int
    length: int
    io: bool

    @property
    def end(self) -> int:
        """One past the last address."""
        return self.address + self.length

    def overlaps(self, other: Placement) -> bool:
        """Do both answer some address?"""
        return self.io == other.io and self.address < other.end and other.address < self.end


@dataclass
class Plugged:
    """A function in its slot, with what hangs on its BARs now."""

    slot: int
    attachment: Attachment
    interrupts: FunctionInterrupts | None
    posted: Sequence[Posted]
    memory: dict[int, mmap.mmap]
    """Regions with passed-through areas, mapped here so that memory slots can name them."""
    undo: dict[int, list[Any]] = field(default_factory=dict)
    """Region -> what takes its slots, doorbells and zones away again."""
    present: bool = True
    """False while it is unplugged: none of its BARs decodes any more."""


class Bridge:
    """Knows what decodes where. Every write to configuration space is followed by `synchronise` of its slot.

    Lock order: a device's lock, then the bridge's; nothing here waits for a device.
    """

    def __init__(self, slots: MemorySlots, memory: Sequence[tuple[int, int]]) -> None:
        """`memory`: start and end of what is RAM."""
        self._lock = threading.RLock()
        self._vectors = threading.Lock()  # one write to an MSI-X table at a time; taken before any other
        self._slots = slots
        self._taken = [*layout.RESERVED, *memory]
        self._vm: Vm | None = None
        self._routes = Routes()
        self._plugged: dict[int, Plugged] = {}
        self._placed: dict[tuple[int, int], Placement] = {}
        self._refused: set[Placement] = set()
        self._bells = 0
        self._free_bells: list[int] = []
        self.bad_placements = 0
        """How often a BAR was put where it can't be: over memory, another BAR, an interrupt controller."""
        self.refusals = 0
        """How often the kernel refused a memory slot, doorbell or zone for a BAR, whose accesses are exits then; or a
        route for a message, which is lost then."""

    @property
    def functions(self) -> list[Plugged]:
        """What is plugged, by slot."""
        with self._lock:
            return [self._plugged[slot] for slot in sorted(self._plugged)]

    @property
    def placements(self) -> list[Placement]:
        """BARs that answer now."""
        with self._lock:
            return list(self._placed.values())

    def free_slot(self, wanted: int | None) -> int:
        """Raises: InvalidArgument, Conflict (taken, or all are)."""
        with self._lock:
            if wanted is None:
                free = [slot for slot in SLOTS if slot not in self._plugged]
                if not free:
                    raise Conflict("all 31 slots of the machine are taken")
                return free[0]
            if wanted not in SLOTS:
                raise InvalidArgument(f"slot {wanted}: a machine has slots 1 to 31")
            if wanted in self._plugged:
                raise Conflict(f"slot {wanted} has {self._plugged[wanted].attachment.device}")
            return wanted

    def release(self) -> None:
        """The kernel's objects are about to go: nothing follows the guest until `rebuild`."""
        with self._lock:
            self._vm = None

    def rebuild(self, vm: Vm) -> None:
        """The machine got new kernel objects: everything is made anew on them. Raises: HypervisorError."""
        with self._lock:
            self._vm = vm
            self._placed.clear()
            self._refused.clear()
            self._bells, self._free_bells = 0, []
            self._routes.rebuild(vm)
            for plugged in self._plugged.values():
                for actions in plugged.undo.values():
                    for action in actions:
                        if action[0] == "slot":
                            self._slots.remove(action[1])
                plugged.undo.clear()
                vm.set_function(plugged.slot, plugged.attachment.native.address)
                if plugged.interrupts is not None:
                    plugged.interrupts.rebuild(vm)
            self.synchronise()

    def plug(
        self,
        attachment: Attachment,
        slot: int,
        posted: Sequence[Posted],
        *,
        interrupts: bool,
    ) -> Plugged:
        """Put an attached function into a free slot. `interrupts` False: the host hears them, not the guest.

        Raises: HypervisorError, OSError; the slot is free then.
        """
        with self._lock, contextlib.ExitStack() as failed:
            assert self._vm is not None, "a machine is built before anything is plugged"
            memory: dict[int, mmap.mmap] = {}
            for index, info in attachment.regions.items():
                if info.areas and info.descriptor is not None:
                    length = max(area.offset + area.length for area in info.areas)
                    memory[index] = mmap.mmap(info.descriptor, length)
                    failed.callback(memory[index].close)
            wired = FunctionInterrupts(attachment, slot, self._routes) if interrupts else None
            plugged = Plugged(slot, attachment, wired, posted, memory)
            if wired is not None:
                failed.callback(wired.close)
                wired.rebuild(self._vm)
            self._plugged[slot] = plugged
            failed.callback(self._plugged.pop, slot)
            self._vm.set_function(slot, attachment.native.address)
            failed.callback(self._vm.set_function, slot, 0)
            self.synchronise(slot)
            failed.pop_all()
            return plugged

    def unplug(self, slot: int) -> Plugged:
        """Take a function away; no processor is in the guest. Raises: NotFound."""
        with self._lock:
            plugged = self._plugged.get(slot)
            if plugged is None:
                raise NotFound(f"slot {slot} is empty")
            if self._vm is not None:
                self._vm.set_function(slot, 0)
            plugged.present = False
            self._settle()
            del self._plugged[slot]
            if plugged.interrupts is not None:
                plugged.interrupts.close()
            for memory in plugged.memory.values():
                memory.close()
            return plugged

    def synchronise(self, slot: int | None = None) -> None:
        """Let BARs, memory slots and routes follow configuration space (of one slot). Raises: HypervisorError."""
        with self._lock:
            self._settle()
            for plugged in self.functions if self._vm is not None else ():
                if plugged.interrupts is not None and slot in (None, plugged.slot):
                    with self._lost_messages(plugged):
                        plugged.interrupts.synchronise()

    def write_vector(self, slot: int, region: int, offset: int, data: bytes) -> None:
        """A write to an MSI-X table: the route first, then the write itself."""
        with self._vectors:  # else another processor's route would be made of words that are about to change
            with self._lock:
                plugged = self._plugged.get(slot)
                if plugged is None:
                    return
                if plugged.interrupts is not None:
                    table = _table_place(plugged.attachment.device)
                    if table is not None:
                        with self._lost_messages(plugged):
                            plugged.interrupts.write_table(region, table[1], offset, data)
            plugged.attachment.native.write(region, offset, data, posted=True)

    def add_memory(self, start: int, end: int) -> None:
        """Memory is about to come: no BAR may lie there, and one that does goes. Raises: HypervisorError."""
        with self._lock:
            self._taken.append((start, end))
            self._settle()

    def remove_memory(self, start: int, end: int) -> None:
        """It has not come after all. Raises: HypervisorError."""
        with self._lock:
            self._taken.remove((start, end))
            self._settle()

    def close(self) -> None:
        """Forget everything; the kernel's objects are gone already."""
        with self._lock:
            self._vm = None
            self._routes.close()

    # Inside.

    @contextlib.contextmanager
    def _lost_messages(self, plugged: Plugged) -> Iterator[None]:
        """The guest may ask for more routes than the kernel has, and must not end the machine by that."""
        try:
            yield
        except (HypervisorError, OSError) as error:
            self._refuse("slot %d: a message goes nowhere: %s", plugged.slot, error)

    def _refuse(self, text: str, *arguments: object) -> None:
        self.refusals += 1
        log.log(logging.WARNING if self.refusals <= WARNINGS else logging.DEBUG, text, *arguments)

    def _settle(self) -> None:
        """Bring what is placed in line with what decodes: first what goes, then the table, then what comes."""
        if self._vm is None:
            return
        wanted = {(p.slot, p.region): p for plugged in self._plugged.values() for p in _decoding(plugged)}
        kept = {key: p for key, p in self._placed.items() if wanted.get(key) == p and not self._bad(p, ())}
        gone = [p for key, p in self._placed.items() if key not in kept]
        refused: set[Placement] = set()
        added: list[Placement] = []
        for key, placement in sorted(wanted.items()):
            if key in kept:
                continue
            if self._bad(placement, kept.values()):
                refused.add(placement)
                continue
            kept[key] = placement
            added.append(placement)
        for placement in refused - self._refused:
            self.bad_placements += 1
            level = logging.WARNING if self.bad_placements <= WARNINGS else logging.DEBUG
            log.log(level, "slot %d: BAR %d at %#x is not mapped: something else is there", *_name(placement))
        self._refused = refused
        if not gone and not added:
            return
        for placement in gone:
            self._take_down(placement)
        self._placed = kept
        self._vm.publish([self._range(placement) for placement in kept.values()])
        for placement in added:
            self._put_up(placement)

    def _bad(self, placement: Placement, others: Iterable[Placement]) -> bool:
        if placement.io:
            taken: Sequence[tuple[int, int]] = layout.RESERVED_PORTS
            limit = 1 << 16
        else:
            taken, limit = self._taken, 1 << 52
        return (
            placement.address == 0
            or placement.end > limit
            or any(placement.address < end and start < placement.end for start, end in taken)
            or any(placement.overlaps(other) for other in others)
        )

    def _range(self, placement: Placement) -> tuple[object, ...]:
        device = self._plugged[placement.slot].attachment.device
        table = _table_place(device)
        place = table[1:] if table is not None and table[0] == placement.region else (0, 0)
        pointer = ffi.cast("umdev_device *", device.native.address)
        return (
            placement.address, placement.length, pointer, placement.region, placement.slot, placement.io, 0, *place
        )  # fmt: skip

    def _put_up(self, placement: Placement) -> None:
        """What makes accesses cheap. Where the kernel refuses (an address beyond the processor's, no slot left) they
        stay exits, which work as well: the guest chooses addresses, and must not end the machine with one.
        """
        undo = self._plugged[placement.slot].undo.setdefault(placement.region, [])
        for add in (self._add_windows, self._add_doorbells, self._add_posted):
            try:
                add(placement, undo)
            except (Conflict, HypervisorError) as error:
                self._refuse("slot %d: BAR %d at %#x is trapped: %s", *_name(placement), error)

    def _add_windows(self, placement: Placement, undo: list[Any]) -> None:
        plugged = self._plugged[placement.slot]
        memory = plugged.memory.get(placement.region)
        if memory is None:
            return
        host = int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))
        for area in plugged.attachment.regions[placement.region].areas:
            slot = self._slots.add(placement.address + area.offset, area.length, host + area.offset)
            undo.append(("slot", slot))

    def _add_doorbells(self, placement: Placement, undo: list[Any]) -> None:
        assert self._vm is not None, "checked by _settle"
        attachment = self._plugged[placement.slot].attachment
        pointer = ffi.cast("umdev_device *", attachment.native.address)
        for bell in attachment.doorbells:
            if bell.region != placement.region:
                continue
            number = self._free_bells.pop() if self._free_bells else self._bells
            code = lib.umdev_kvm_add_doorbell(
                self._vm.pointer, number, placement.io, placement.address + bell.offset, bell.width,
                bell.value or 0, bell.value is None, pointer, bell.region, bell.offset,
            )  # fmt: skip
            if code:
                if number != self._bells:
                    self._free_bells.append(number)
                raise failure("KVM_IOEVENTFD", code)
            self._bells = max(self._bells, number + 1)
            undo.append(("bell", number))

    def _add_posted(self, placement: Placement, undo: list[Any]) -> None:
        assert self._vm is not None, "checked by _settle"
        for zone in self._plugged[placement.slot].posted:
            if zone.region == placement.region:
                address = placement.address + zone.offset
                code = lib.umdev_kvm_set_posted(self._vm.pointer, address, zone.length, 1)
                check(code, "KVM_REGISTER_COALESCED_MMIO")
                undo.append(("posted", address, zone.length))

    def _take_down(self, placement: Placement) -> None:
        assert self._vm is not None, "checked by _settle"
        plugged = self._plugged.get(placement.slot)
        actions = plugged.undo.pop(placement.region, []) if plugged is not None else []
        for action in actions:
            match action:
                case ("slot", slot):
                    self._slots.remove(_as_slot(slot))
                case ("bell", number):
                    check(lib.umdev_kvm_remove_doorbell(self._vm.pointer, number), "KVM_IOEVENTFD")
                    self._free_bells.append(number)
                case ("posted", address, length):
                    code = lib.umdev_kvm_set_posted(self._vm.pointer, address, length, 0)
                    check(code, "KVM_UNREGISTER_COALESCED_MMIO")


def _as_slot(slot: Any) -> Slot:
    found: Slot = slot
    return found


def _name(placement: Placement) -> tuple[int, int, int]:
    return placement.slot, placement.region, placement.address


def _decoding(plugged: Plugged) -> Iterable[Placement]:
    """What configuration space says. Without the device lock: who writes there comes here afterwards."""
    config = plugged.attachment.device.config
    for index, bar in config.bars.items():
        if plugged.present and config.bar_decodes(index):
            yield Placement(plugged.slot, index, config.bar_address(index), bar.size, bar.kind == "io")


def _table_place(device: Device) -> tuple[int, int, int] | None:
    """Region, offset and length of the MSI-X table."""
    config = device.config
    if "msix.table" not in config.registers:
        return None
    place = config["msix.table"]
    vectors = (config["msix.control"] & 0x7FF) + 1
    return place & 7, place & ~7, vectors * 16
