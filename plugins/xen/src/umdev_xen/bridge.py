"""Functions in a domain's PCI slots, and their BARs where the guest puts them."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from umdev.bus import HostBridge, PluggedFunction
from umdev.errors import HypervisorError

from .interrupts import FunctionInterrupts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from umdev.bus import Attachment, Placement

    from .native import Native
    from .passthrough import PassedWindows
    from .server import IoreqServer

__all__ = ["Bridge", "Plugged"]

log = logging.getLogger("umdev.xen")

LATCH = 0xCF8
_CONFIGURATION = (0xCF8, 0xD00)
"""Ports of configuration accesses (PCI Local Bus 3.0, 3.2.2.3.2): Xen's own, and the latch's."""


@dataclass
class Plugged(PluggedFunction):
    """A function in its slot, with what the domain hears and sees of it."""

    interrupts: FunctionInterrupts | None = None
    windows: PassedWindows | None = None
    """Parts of BARs whose pages are the domain's own."""


class Bridge(HostBridge[Plugged]):
    """A domain's host bridge, or what knows of it. Every write to configuration space is followed by `synchronise` of
    its slot.

    A range that Xen refuses is answered by nobody.
    """

    def __init__(self, native: Native, server: IoreqServer, *, host_bridge: bool, others: bool) -> None:
        """`host_bridge`: be 00:00.0 and port 0xCF8, too. `others`: another device model has the low slots, where Xen
        would send accesses to the one of the two that came last. Raises: HypervisorError.
        """
        super().__init__("domain", log, highest_first=others)
        self._native = native
        self._server = server
        if host_bridge:
            native.set_bridge(present=True)
            server.map_function(0)
            server.map_range(LATCH, 4, io=True)

    def plug(self, attachment: Attachment, slot: int, windows: PassedWindows | None, *, intx: bool) -> Plugged:
        """Put an attached function into a free slot. `intx`: the domain has controllers for it.

        Raises: HypervisorError, Conflict; the slot is free then, and no processor is inside the function.
        """
        try:
            return self._plug(Plugged(slot, attachment, windows=windows), intx=intx)
        except BaseException:
            self._native.drain()  # a processor may have found it already
            raise

    def unplug(self, slot: int) -> Plugged:
        """Take a function away: no processor is inside it when this returns. Raises: NotFound."""
        with self.lock:
            plugged = self.withdraw(slot)
            self._native.set_function(slot, 0)
            self._try(f"slot {slot}", self._server.unmap_function, slot)
            del self.plugged[slot]
            if plugged.interrupts is not None:
                plugged.interrupts.close()
        self._native.drain()
        return plugged

    def taken(self, *, io: bool) -> Sequence[tuple[int, int]]:
        """The ports that lead to configuration space."""
        return (_CONFIGURATION,) if io else ()

    def route(self, plugged: Plugged) -> None:
        """MSI goes where its registers say."""
        if plugged.interrupts is not None:
            plugged.interrupts.synchronise()

    def publish(self, placements: Sequence[Placement]) -> None:
        """To the table that requests are looked up in."""
        self._native.publish([self._range(placement) for placement in placements])

    def put_up(self, placement: Placement) -> None:
        """Have Xen send its accesses here, and show its windows."""
        windows = self.plugged[placement.slot].windows
        self._try(f"{placement}", self._server.map_range, placement.address, placement.length, io=placement.io)
        if windows is not None:
            self._try(f"{placement}", windows.place, placement.region, placement.address)

    def take_down(self, placement: Placement) -> None:
        """Undo it."""
        plugged = self.plugged.get(placement.slot)  # none: it could not be plugged
        windows = plugged.windows if plugged is not None else None
        if windows is not None:
            self._try(f"{placement}", windows.withdraw, placement.region)
        self._try(f"{placement}", self._server.unmap_range, placement.address, placement.length, io=placement.io)

    # Inside.

    def _plug(self, plugged: Plugged, *, intx: bool) -> Plugged:
        slot, attachment = plugged.slot, plugged.attachment
        with self.lock, contextlib.ExitStack() as failed:
            self._native.set_function(slot, attachment.native.address)
            failed.callback(self._native.set_function, slot, 0)
            self._server.map_function(slot)
            failed.callback(self._try, f"slot {slot}", self._server.unmap_function, slot)
            plugged.interrupts = FunctionInterrupts(attachment, self._native, slot, intx=intx)
            failed.callback(plugged.interrupts.close)
            self.plugged[slot] = plugged
            failed.callback(self.plugged.pop, slot)
            self.synchronise(slot)
            failed.pop_all()
            return plugged

    def _range(self, placement: Placement) -> tuple[object, ...]:
        native = self.plugged[placement.slot].attachment.native
        return placement.address, placement.length, native.address, placement.region, placement.io

    def _try(self, name: str, call: Callable[..., None], *arguments: int, **options: bool) -> None:
        """The guest chooses addresses, and may be gone: a refusal of Xen's is logged, and ends nothing."""
        try:
            call(*arguments, **options)
        except HypervisorError as error:
            self.refuse("%s: %s", name, error)
