"""The PCI host bridge: functions in slots, and their BARs where the guest puts them."""

from __future__ import annotations

import contextlib
import logging
import mmap
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from umdev.bus import HostBridge, PluggedFunction
from umdev.errors import Conflict, HypervisorError

from . import layout
from ._fast import ffi, lib
from .interrupts import FunctionInterrupts, Routes
from .vm import check, failure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from umdev.bus import Attachment, Placement
    from umdev.device import Device

    from .posted import Posted
    from .slots import MemorySlots, Slot
    from .vm import Vm

log = logging.getLogger("umdev.kvm")


@dataclass
class Plugged(PluggedFunction):
    """A function in its slot, with what hangs on its BARs now."""

    interrupts: FunctionInterrupts | None = None
    posted: Sequence[Posted] = ()
    memory: dict[int, mmap.mmap] = field(default_factory=dict)
    """Regions with passed-through areas, mapped here so that memory slots can name them."""
    undo: dict[int, list[Any]] = field(default_factory=dict)
    """Region -> what takes its slots, doorbells and zones away again."""


class Bridge(HostBridge[Plugged]):
    """A machine's host bridge. Every write to configuration space is followed by `synchronise` of its slot.

    What the kernel refuses (a memory slot, doorbell or zone for a BAR) is an exit, which works as well; a message
    without a route is lost.
    """

    def __init__(self, slots: MemorySlots, memory: Sequence[tuple[int, int]]) -> None:
        """`memory`: start and end of what is RAM."""
        super().__init__("machine", log)
        self._vectors = threading.Lock()  # one write to an MSI-X table at a time; taken before any other
        self._slots = slots
        self._taken = [*layout.RESERVED, *memory]
        self._vm: Vm | None = None
        self._routes = Routes()
        self._bells = 0
        self._free_bells: list[int] = []

    def release(self) -> None:
        """The kernel's objects are about to go: nothing follows the guest until `rebuild`."""
        with self.lock:
            self._vm = None
            self._routes.release()

    def rebuild(self, vm: Vm) -> None:
        """The machine got new kernel objects: everything is made anew on them. Raises: HypervisorError."""
        with self.lock:
            self._vm = vm
            self.forget_placements()
            self._bells, self._free_bells = 0, []
            self._routes.rebuild(vm)
            for plugged in self.plugged.values():
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
        with self.lock, contextlib.ExitStack() as failed:
            assert self._vm is not None, "a machine is built before anything is plugged"
            memory: dict[int, mmap.mmap] = {}
            for index, info in attachment.regions.items():
                if info.areas and info.descriptor is not None:
                    length = max(area.offset + area.length for area in info.areas)
                    memory[index] = mmap.mmap(info.descriptor, length)
                    failed.callback(memory[index].close)
            wired = FunctionInterrupts(attachment, slot, self._routes) if interrupts else None
            plugged = Plugged(slot, attachment, interrupts=wired, posted=posted, memory=memory)
            if wired is not None:
                failed.callback(wired.close)
                wired.rebuild(self._vm)
            self.plugged[slot] = plugged
            failed.callback(self.plugged.pop, slot)
            self._vm.set_function(slot, attachment.native.address)
            failed.callback(self._vm.set_function, slot, 0)
            self.synchronise(slot)
            failed.pop_all()
            return plugged

    def unplug(self, slot: int) -> Plugged:
        """Take a function away; no processor is in the guest. Raises: NotFound."""
        with self.lock:
            plugged = self.withdraw(slot)
            if self._vm is not None:
                self._vm.set_function(slot, 0)
            del self.plugged[slot]
            if plugged.interrupts is not None:
                plugged.interrupts.close()
            for memory in plugged.memory.values():
                memory.close()
            return plugged

    def write_vector(self, slot: int, region: int, offset: int, data: bytes) -> None:
        """A write to an MSI-X table: the route first, then the write itself."""
        with self._vectors:  # else another processor's route would be made of words that are about to change
            with self.lock:
                plugged = self.plugged.get(slot)
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
        with self.lock:
            self._taken.append((start, end))
            self.settle()

    def remove_memory(self, start: int, end: int) -> None:
        """It has not come after all. Raises: HypervisorError."""
        with self.lock:
            self._taken.remove((start, end))
            self.settle()

    def close(self) -> None:
        """Forget everything; the kernel's objects are gone already."""
        with self.lock:
            self._vm = None
            self._routes.close()

    def settle(self) -> None:
        """As every bridge; nothing while the machine has no kernel objects. Raises: HypervisorError."""
        if self._vm is not None:
            super().settle()

    def taken(self, *, io: bool) -> Sequence[tuple[int, int]]:
        """RAM, the interrupt controllers, the ports of the machine itself."""
        return layout.RESERVED_PORTS if io else self._taken

    def route(self, plugged: Plugged) -> None:
        """Its messages have routes of the kernel's; nothing while the machine has no kernel objects."""
        if self._vm is not None and plugged.interrupts is not None:
            with self._lost_messages(plugged):
                plugged.interrupts.synchronise()

    def publish(self, placements: Sequence[Placement]) -> None:
        """To the table that exits are looked up in."""
        assert self._vm is not None, "checked by settle"
        self._vm.publish([self._range(placement) for placement in placements])

    def put_up(self, placement: Placement) -> None:
        """Make its accesses cheap. Where the kernel refuses (an address beyond the processor's, no slot left) they
        stay exits, which work as well: the guest chooses addresses, and must not end the machine with one.
        """
        undo = self.plugged[placement.slot].undo.setdefault(placement.region, [])
        for add in (self._add_windows, self._add_doorbells, self._add_posted):
            try:
                add(placement, undo)
            except (Conflict, HypervisorError) as error:
                self.refuse("%s is trapped: %s", placement, error)

    def take_down(self, placement: Placement) -> None:
        """Undo it. Raises: HypervisorError."""
        assert self._vm is not None, "checked by settle"
        plugged = self.plugged.get(placement.slot)
        actions = plugged.undo.get(placement.region, []) if plugged is not None else []
        while actions:
            match actions[-1]:
                case ("slot", slot):
                    self._slots.remove(_as_slot(slot))
                case ("bell", number):
                    check(lib.umdev_kvm_remove_doorbell(self._vm.pointer, number), "KVM_IOEVENTFD")
                    self._free_bells.append(number)
                case ("posted", address, length):
                    code = lib.umdev_kvm_set_posted(self._vm.pointer, address, length, 0)
                    check(code, "KVM_UNREGISTER_COALESCED_MMIO")
            actions.pop()  # now: what fails is tried again

    # Inside.

    @contextlib.contextmanager
    def _lost_messages(self, plugged: Plugged) -> Iterator[None]:
        """The guest may ask for more routes than the kernel has, and must not end the machine by that."""
        try:
            yield
        except (HypervisorError, OSError) as error:
            self.refuse("slot %d: a message goes nowhere: %s", plugged.slot, error)

    def _range(self, placement: Placement) -> tuple[object, ...]:
        device = self.plugged[placement.slot].attachment.device
        table = _table_place(device)
        place = table[1:] if table is not None and table[0] == placement.region else (0, 0)
        pointer = ffi.cast("umdev_device *", device.native.address)
        return (
            placement.address, placement.length, pointer, placement.region, placement.slot, placement.io, 0, *place
        )  # fmt: skip

    def _add_windows(self, placement: Placement, undo: list[Any]) -> None:
        plugged = self.plugged[placement.slot]
        memory = plugged.memory.get(placement.region)
        if memory is None:
            return
        host = int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))
        for area in plugged.attachment.regions[placement.region].areas:
            slot = self._slots.add(placement.address + area.offset, area.length, host + area.offset)
            undo.append(("slot", slot))

    def _add_doorbells(self, placement: Placement, undo: list[Any]) -> None:
        assert self._vm is not None, "checked by settle"
        attachment = self.plugged[placement.slot].attachment
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
        assert self._vm is not None, "checked by settle"
        for zone in self.plugged[placement.slot].posted:
            if zone.region == placement.region:
                address = placement.address + zone.offset
                code = lib.umdev_kvm_set_posted(self._vm.pointer, address, zone.length, 1)
                check(code, "KVM_REGISTER_COALESCED_MMIO")
                undo.append(("posted", address, zone.length))


def _as_slot(slot: Any) -> Slot:
    found: Slot = slot
    return found


def covers_table(device: Device, zone: Posted) -> bool:
    """Is a part of the MSI-X table in the zone?"""
    place = _table_place(device)
    return (
        place is not None
        and place[0] == zone.region
        and place[1] < zone.offset + zone.length
        and zone.offset < place[1] + place[2]
    )


def _table_place(device: Device) -> tuple[int, int, int] | None:
    """Region, offset and length of the MSI-X table."""
    config = device.config
    if "msix.table" not in config.registers:
        return None
    place = config["msix.table"]
    vectors = (config["msix.control"] & 0x7FF) + 1
    return place & 7, place & ~7, vectors * 16
