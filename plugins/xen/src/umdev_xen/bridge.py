"""Functions in a domain's PCI slots, and their BARs where the guest puts them."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from umdev.errors import Conflict, HypervisorError, InvalidArgument, NotFound

from .interrupts import FunctionInterrupts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from umdev.bus import Attachment

    from .native import Native
    from .passthrough import PassedWindows
    from .server import IoreqServer

__all__ = ["Bridge", "Placement", "Plugged"]

log = logging.getLogger("umdev.xen")

SLOTS = range(1, 32)
"""Slot 0 is the host bridge, whoever it belongs to."""
WARNINGS = 20
"""Bad placements that a domain's log tells of; the guest can make any number."""
LATCH = 0xCF8
_ADDRESSES = 1 << 52


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
    """A function in its slot."""

    slot: int
    attachment: Attachment
    interrupts: FunctionInterrupts | None = None
    windows: PassedWindows | None = None
    """Parts of BARs whose pages are the domain's own."""
    present: bool = True
    """False while it is unplugged: none of its BARs decodes any more."""
    ranges: dict[int, Placement] = field(default_factory=dict)
    """Region -> what Xen was told."""


class Bridge:
    """Knows what decodes where. Every write to configuration space is followed by `synchronise` of its slot.

    Lock order: a device's lock, then the bridge's; nothing here waits for a device.
    """

    def __init__(self, native: Native, server: IoreqServer, *, host_bridge: bool) -> None:
        """`host_bridge`: be 00:00.0 and port 0xCF8, too. Raises: HypervisorError."""
        self._lock = threading.RLock()
        self._native = native
        self._server = server
        self._plugged: dict[int, Plugged] = {}
        self._refused: set[Placement] = set()
        self.bad_placements = 0
        """How often a BAR was put where it can't be: at 0, beyond all addresses, over another BAR."""
        self.refusals = 0
        """How often Xen refused a range, which nobody answers then."""
        if host_bridge:
            native.set_bridge(present=True)
            server.map_function(0)
            server.map_range(LATCH, 4, io=True)

    @property
    def functions(self) -> list[Plugged]:
        """What is plugged, by slot."""
        with self._lock:
            return [self._plugged[slot] for slot in sorted(self._plugged)]

    @property
    def placements(self) -> list[Placement]:
        """BARs that answer now."""
        with self._lock:
            return [placement for plugged in self.functions for placement in plugged.ranges.values()]

    def free_slot(self, wanted: int | None) -> int:
        """Raises: InvalidArgument, Conflict (taken, or all are)."""
        with self._lock:
            if wanted is None:
                free = [slot for slot in SLOTS if slot not in self._plugged]
                if not free:
                    raise Conflict("all 31 slots of the domain are taken")
                return free[0]
            if wanted not in SLOTS:
                raise InvalidArgument(f"slot {wanted}: a domain has slots 1 to 31, on bus 0")
            if wanted in self._plugged:
                raise Conflict(f"slot {wanted} has {self._plugged[wanted].attachment.device}")
            return wanted

    def plug(self, attachment: Attachment, slot: int, windows: PassedWindows | None, *, intx: bool) -> Plugged:
        """Put an attached function into a free slot. `intx`: the domain has controllers for it.

        Raises: HypervisorError.
        """
        with self._lock:
            plugged = Plugged(slot, attachment, windows=windows)
            self._native.set_function(slot, attachment.native.address)
            try:
                self._server.map_function(slot)
            except HypervisorError:
                self._native.set_function(slot, 0)
                raise
            plugged.interrupts = FunctionInterrupts(attachment, self._native, slot, intx=intx)
            self._plugged[slot] = plugged
            self.synchronise(slot)
            return plugged

    def unplug(self, slot: int) -> Plugged:
        """Take a function away: no processor is inside it when this returns. Raises: NotFound."""
        with self._lock:
            plugged = self._plugged.get(slot)
            if plugged is None:
                raise NotFound(f"slot {slot} is empty")
            plugged.present = False
            self._settle()
            self._native.set_function(slot, 0)
            self._try(f"slot {slot}", self._server.unmap_function, slot)
            del self._plugged[slot]
            if plugged.interrupts is not None:
                plugged.interrupts.close()
        self._native.drain()
        return plugged

    def synchronise(self, slot: int | None = None) -> None:
        """Let ranges and interrupts follow configuration space (of one slot)."""
        with self._lock:
            self._settle()
            for plugged in self.functions:
                if plugged.interrupts is not None and slot in (None, plugged.slot):
                    plugged.interrupts.synchronise()

    # Inside.

    def _settle(self) -> None:
        """Bring what is placed in line with what decodes: first what goes, then the table, then what comes."""
        placed = {(p.slot, p.region): p for p in self.placements}
        wanted = {(p.slot, p.region): p for plugged in self._plugged.values() for p in _decoding(plugged)}
        kept = {key: p for key, p in placed.items() if wanted.get(key) == p}
        gone = [p for key, p in placed.items() if key not in kept]
        refused: set[Placement] = set()
        added: list[Placement] = []
        for key, placement in sorted(wanted.items()):
            if key in kept:
                continue
            if _bad(placement, kept.values()):
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
        self._native.publish([self._range(placement) for placement in kept.values()])
        for placement in added:
            self._put_up(placement)

    def _range(self, placement: Placement) -> tuple[object, ...]:
        native = self._plugged[placement.slot].attachment.native
        return placement.address, placement.length, native.address, placement.region, placement.io

    def _put_up(self, placement: Placement) -> None:
        plugged = self._plugged[placement.slot]
        plugged.ranges[placement.region] = placement
        name = f"slot {placement.slot}: BAR {placement.region} at {placement.address:#x}"
        self._try(name, self._server.map_range, placement.address, placement.length, io=placement.io)
        if plugged.windows is not None:
            self._try(name, plugged.windows.place, placement.region, placement.address)

    def _take_down(self, placement: Placement) -> None:
        plugged = self._plugged[placement.slot]
        del plugged.ranges[placement.region]
        name = f"slot {placement.slot}: BAR {placement.region} at {placement.address:#x}"
        if plugged.windows is not None:
            self._try(name, plugged.windows.withdraw, placement.region)
        self._try(name, self._server.unmap_range, placement.address, placement.length, io=placement.io)

    def _try(self, name: str, call: Callable[..., None], *arguments: int, **options: bool) -> None:
        """The guest chooses addresses, and may be gone: a refusal of Xen's is logged, and ends nothing."""
        try:
            call(*arguments, **options)
        except HypervisorError as error:
            self.refusals += 1
            log.log(logging.WARNING if self.refusals <= WARNINGS else logging.DEBUG, "%s: %s", name, error)


def _bad(placement: Placement, others: Iterable[Placement]) -> bool:
    limit = 1 << 16 if placement.io else _ADDRESSES
    return placement.address == 0 or placement.end > limit or any(placement.overlaps(other) for other in others)


def _name(placement: Placement) -> tuple[int, int, int]:
    return placement.slot, placement.region, placement.address


def _decoding(plugged: Plugged) -> Iterable[Placement]:
    """What configuration space says. Without the device lock: who writes there comes here afterwards."""
    config = plugged.attachment.device.config
    for index, bar in config.bars.items():
        if plugged.present and config.bar_decodes(index):
            yield Placement(plugged.slot, index, config.bar_address(index), bar.size, bar.kind == "io")
