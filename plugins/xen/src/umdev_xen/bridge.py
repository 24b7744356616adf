"""Functions in a domain's PCI slots, and their BARs where the guest puts them."""

from __future__ import annotations

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

    def __init__(self, native: Native, server: IoreqServer, *, host_bridge: bool) -> None:
        """`host_bridge`: be 00:00.0 and port 0xCF8, too. Raises: HypervisorError."""
        super().__init__("domain", log)
        self._native = native
        self._server = server
        if host_bridge:
            native.set_bridge(present=True)
            server.map_function(0)
            server.map_range(LATCH, 4, io=True)

    def plug(self, attachment: Attachment, slot: int, windows: PassedWindows | None, *, intx: bool) -> Plugged:
        """Put an attached function into a free slot. `intx`: the domain has controllers for it.

        Raises: HypervisorError.
        """
        with self.lock:
            plugged = Plugged(slot, attachment, windows=windows)
            self._native.set_function(slot, attachment.native.address)
            try:
                self._server.map_function(slot)
            except HypervisorError:
                self._native.set_function(slot, 0)
                raise
            plugged.interrupts = FunctionInterrupts(attachment, self._native, slot, intx=intx)
            self.plugged[slot] = plugged
            self.synchronise(slot)
            return plugged

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
        windows = self.plugged[placement.slot].windows
        if windows is not None:
            self._try(f"{placement}", windows.withdraw, placement.region)
        self._try(f"{placement}", self._server.unmap_range, placement.address, placement.length, io=placement.io)

    # Inside.

    def _range(self, placement: Placement) -> tuple[object, ...]:
        native = self.plugged[placement.slot].attachment.native
        return placement.address, placement.length, native.address, placement.region, placement.io

    def _try(self, name: str, call: Callable[..., None], *arguments: int, **options: bool) -> None:
        """The guest chooses addresses, and may be gone: a refusal of Xen's is logged, and ends nothing."""
        try:
            call(*arguments, **options)
        except HypervisorError as error:
            self.refuse("%s: %s", name, error)
