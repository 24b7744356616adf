"""A PCI host bridge for buses that are one: functions in slots of bus 0, and their BARs where the guest puts them."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from ..errors import Conflict, InvalidArgument, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .attachment import Attachment

__all__ = ["HostBridge", "Placement", "PluggedFunction"]

SLOTS = range(1, 32)
"""Slot 0 is the bridge itself."""
_MEMORY_END, _PORTS_END = 1 << 52, 1 << 16


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

    def __str__(self) -> str:
        return f"slot {self.slot}: BAR {self.region} at {self.address:#x}"


@dataclass
class PluggedFunction:
    """A function in its slot."""

    slot: int
    attachment: Attachment
    present: bool = True
    """False while it is unplugged: none of its BARs decodes any more."""


PluggedT = TypeVar("PluggedT", bound=PluggedFunction)


class HostBridge(ABC, Generic[PluggedT]):
    """Knows what decodes where. A bus says what that means to its hypervisor, and has every write to configuration
    space followed by `synchronise` of its slot.

    Any thread. Lock order: a device's lock, then the bridge's `lock`; nothing here waits for a device.
    """

    WARNINGS = 20
    """Bad placements, and refusals, that a bridge's log tells of as warnings; the guest can make any number."""

    def __init__(self, owner: str, log: logging.Logger, *, highest_first: bool = False) -> None:
        """`owner`: whose slots they are ("machine"), for errors. `log` tells of what the guest did wrong.
        `highest_first`: give out the highest slots first, where others have the low ones.
        """
        self.lock = threading.RLock()
        self.plugged: dict[int, PluggedT] = {}
        """What is plugged, by slot; under the lock."""
        self.bad_placements = 0
        """How often a BAR was put where it can't be: over another BAR, over what else `taken` names, beyond all
        addresses."""
        self.refusals = 0
        """How often the hypervisor refused what would follow the guest."""
        self._owner = owner
        self._log = log
        self._highest_first = highest_first
        self._placed: dict[tuple[int, int], Placement] = {}
        self._misplaced: set[Placement] = set()
        self._published = True
        """Whether the last change has come as far as the table."""

    @property
    def functions(self) -> list[PluggedT]:
        """What is plugged, in the order of slots."""
        with self.lock:
            return [self.plugged[slot] for slot in sorted(self.plugged)]

    @property
    def placements(self) -> list[Placement]:
        """BARs that answer now."""
        with self.lock:
            return list(self._placed.values())

    def free_slot(self, wanted: int | None) -> int:
        """The slot that is wanted, or the first that is free. Raises: InvalidArgument, Conflict (taken, or all are)."""
        with self.lock:
            if wanted is None:
                free = [slot for slot in SLOTS if slot not in self.plugged]
                if not free:
                    raise Conflict(f"all {len(SLOTS)} slots of the {self._owner} are taken")
                return free[-1] if self._highest_first else free[0]
            if wanted not in SLOTS:
                raise InvalidArgument(f"slot {wanted}: a {self._owner} has slots {SLOTS[0]} to {SLOTS[-1]}, on bus 0")
            if wanted in self.plugged:
                raise Conflict(f"slot {wanted} has {self.plugged[wanted].attachment.device}")
            return wanted

    def withdraw(self, slot: int) -> PluggedT:
        """Let no BAR of a slot decode any more, before the bus takes its function from `plugged`. Raises: NotFound; as
        `settle`.
        """
        with self.lock:
            plugged = self.plugged.get(slot)
            if plugged is None:
                raise NotFound(f"slot {slot} is empty")
            plugged.present = False
            self.settle()
            return plugged

    def synchronise(self, slot: int | None = None) -> None:
        """Let BARs and interrupts (of one slot) follow configuration space. Raises: as `settle` and `route`."""
        with self.lock:
            self.settle()
            for plugged in self.functions:
                if slot in (None, plugged.slot):
                    self.route(plugged)

    def settle(self) -> None:
        """Bring what is placed in line with what decodes: first what goes, then the table, then what comes.

        A BAR over what is there already isn't placed, and is counted. Raises: what the bus's methods raise; the next
        call does the rest, but for the one BAR that `put_up` failed of, which is in the table without it.
        """
        with self.lock:
            wanted = {(p.slot, p.region): p for plugged in self.functions for p in _decoding(plugged)}
            kept = {key: p for key, p in self._placed.items() if wanted.get(key) == p and self._fits(p, ())}
            gone = [p for key, p in self._placed.items() if key not in kept]
            added: list[Placement] = []
            misplaced: set[Placement] = set()
            for key, placement in sorted(wanted.items()):
                if key in kept:
                    continue
                if self._fits(placement, kept.values()):
                    kept[key] = placement
                    added.append(placement)
                else:
                    misplaced.add(placement)
            for placement in misplaced - self._misplaced:
                self.bad_placements += 1
                self._tell(self.bad_placements, "%s is not mapped: something else is there", placement)
            self._misplaced = misplaced
            if gone or added:
                self._published = False
            if self._published:
                return
            for placement in gone:
                self.take_down(placement)
                del self._placed[placement.slot, placement.region]
            self.publish(list(kept.values()))
            self._published = True
            for placement in added:
                self._placed[placement.slot, placement.region] = placement
                self.put_up(placement)

    def forget_placements(self) -> None:
        """The hypervisor has forgotten all of them: `settle` places anew what decodes."""
        with self.lock:
            self._placed.clear()
            self._misplaced.clear()

    def refuse(self, text: str, *arguments: object) -> None:
        """Count and log (printf style) what the hypervisor refused. The guest chooses addresses: it ends nothing."""
        self.refusals += 1
        self._tell(self.refusals, text, *arguments)

    def taken(self, *, io: bool) -> Sequence[tuple[int, int]]:  # noqa: ARG002 none unless a bus says so
        """Starts and ends of ports (`io`) or memory where no BAR may lie; none unless a bus says so."""
        return ()

    def route(self, plugged: PluggedT) -> None:
        """Let a function's messages go where configuration space says; nothing unless a bus says so."""

    @abstractmethod
    def take_down(self, placement: Placement) -> None:
        """Undo `put_up`, before the table changes."""

    @abstractmethod
    def publish(self, placements: Sequence[Placement]) -> None:
        """Let these be what accesses are looked up in, and nothing else."""

    @abstractmethod
    def put_up(self, placement: Placement) -> None:
        """Do what a BAR that is in the table needs beside."""

    def _fits(self, placement: Placement, others: Iterable[Placement]) -> bool:
        """Address 0 is what a BAR has that was given none."""
        return (
            placement.address > 0
            and placement.end <= (_PORTS_END if placement.io else _MEMORY_END)
            and not any(start < placement.end and placement.address < end for start, end in self.taken(io=placement.io))
            and not any(placement.overlaps(other) for other in others)
        )

    def _tell(self, count: int, text: str, *arguments: object) -> None:
        self._log.log(logging.WARNING if count <= self.WARNINGS else logging.DEBUG, text, *arguments)


def _decoding(plugged: PluggedFunction) -> Iterable[Placement]:
    """What configuration space says. Without the device lock: who writes there comes here afterwards."""
    config = plugged.attachment.device.config
    for index, bar in config.bars.items():
        if plugged.present and config.bar_decodes(index):
            yield Placement(plugged.slot, index, config.bar_address(index), bar.size, bar.kind == "io")
