"""Interrupts of a plugged function: the pin by irqfd with resampling, messages by routes and irqfd."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from umdev.bus import IrqIndex
from umdev.errors import HypervisorError

from . import layout
from .vm import CAP_IRQ_ROUTING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from umdev.bus import Attachment

    from .vm import Vm

_ENTRY = struct.Struct("<IIII")
"""Of the MSI-X table: address low and high, data, vector control (PCI Local Bus 3.0, 6.8.2)."""


_INTERRUPTS = 0xFEE
"""Bits 63:20 of a message's address (Intel SDM volume 3A, "Message Address Register Format")."""


def _interrupts(address: int) -> bool:
    """KVM takes any address for an interrupt's; in a PC others are memory, where a message means nothing."""
    return address >> 20 == _INTERRUPTS


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


@dataclass
class Route:
    """One message: the eventfd that the device signals becomes `data` written to `address` in the guest."""

    gsi: int
    descriptor: int
    address: int
    data: int


class Routes:
    """All message routes of a machine; KVM takes them as one table. The bridge's lock is held."""

    def __init__(self) -> None:
        self._routes: dict[int, Route] = {}
        self._free: list[int] = []
        self._next = layout.MESSAGE_GSI
        self._vm: Vm | None = None
        self._limit = 0

    def rebuild(self, vm: Vm) -> None:
        """The machine got new kernel objects. Raises: HypervisorError."""
        self._vm = vm
        self._limit = vm.extension(CAP_IRQ_ROUTING) or 1024
        self._publish()
        for route in self._routes.values():
            _drain(route.descriptor)
            vm.set_irqfd(route.gsi, route.descriptor)

    def add(self, address: int, data: int) -> Route:
        """A new route. Raises: HypervisorError."""
        assert self._vm is not None, "the bridge has a machine before it has functions"
        gsi = self._free.pop() if self._free else self._next
        if gsi >= self._limit:
            raise HypervisorError(f"KVM_SET_GSI_ROUTING: this kernel has {self._limit} interrupts; none is left")
        self._next = max(self._next, gsi + 1)
        try:
            route = self._routes[gsi] = Route(gsi, _eventfd(), address, data)
            self._publish()
            self._vm.set_irqfd(gsi, route.descriptor)
        except BaseException:
            failed = self._routes.pop(gsi, None)
            if failed is not None:
                os.close(failed.descriptor)
            self._free.append(gsi)
            raise
        return route

    def change(self, route: Route, address: int, data: int) -> None:
        """Send `route` elsewhere from now on.

        Raises: HypervisorError, and it leads nowhere then; where it did, if KVM has no memory for such a table either.
        """
        if (route.address, route.data) != (address, data):
            route.address, route.data = address, data
            try:
                self._publish()
            except HypervisorError:
                route.address = route.data = 0  # else no table with it would be taken any more, whatever changes
                self._publish()
                raise

    def release(self) -> None:
        """The kernel's objects are about to go, with every route in them."""
        self._vm = None

    def remove(self, route: Route) -> None:
        """Forget a route, and close its eventfd."""
        del self._routes[route.gsi]
        if self._vm is not None:
            self._vm.set_irqfd(route.gsi, route.descriptor, assign=False)
        os.close(route.descriptor)
        self._free.append(route.gsi)
        self._publish()

    def close(self) -> None:
        """Close the eventfds; the kernel's objects are gone already."""
        for route in self._routes.values():
            os.close(route.descriptor)
        self._routes.clear()

    def _publish(self) -> None:
        if self._vm is not None:
            # One that is left out leads nowhere: its eventfd may be signalled, and nothing happens.
            routes = [route for route in self._routes.values() if _interrupts(route.address)]
            self._vm.set_messages([(route.gsi, route.data, route.address) for route in routes])


class FunctionInterrupts:
    """The interrupts of the function in one slot, wired to the guest. The bridge's lock is held."""

    mechanism = "irqfd: the pin with resampling, MSI and MSI-X by interrupt routes"

    def __init__(self, attachment: Attachment, slot: int, routes: Routes) -> None:
        self._port = attachment.interrupts
        self._native = attachment.native
        self._config: Mapping[str, int] = attachment.device.config  # type: ignore[assignment]  # by register name
        self._known = attachment.device.config.registers
        self._routes = routes
        self._gsi = layout.intx_gsi(slot, self._port.pin) if self._port.pin else None
        self._pin: tuple[int, int] | None = None
        self._msi: dict[int, Route] = {}
        self._msix: dict[int, Route] = {}
        self._vm: Vm | None = None

    def rebuild(self, vm: Vm) -> None:
        """The machine got new kernel objects: the pin is connected to them. Raises: HypervisorError."""
        self._vm = vm
        self._drop_pin()
        if self._gsi is not None:
            signal = _eventfd()
            try:
                self._pin = (signal, _eventfd())
            except BaseException:
                os.close(signal)
                raise
            vm.set_irqfd(self._gsi, *self._pin)
            self._port.connect(IrqIndex.INTX, 0, self._pin[0])
            self._port.connect_unmask(IrqIndex.INTX, 0, self._pin[1])

    def synchronise(self) -> None:
        """Configuration space may have changed: MSI goes where its registers say. Raises: HypervisorError."""
        if "msi.control" not in self._known:
            return
        control = self._config["msi.control"]
        if not control & 1:
            return
        address = self._config["msi.address_low"]
        if "msi.address_high" in self._known:
            address |= self._config["msi.address_high"] << 32
        data = self._config["msi.data"]
        for vector in range(1 << min(control >> 4 & 7, control >> 1 & 7)):
            # The function puts the vector into the low bits (PCI Local Bus 3.0, 6.8.1.6).
            self._send(self._msi, IrqIndex.MSI, vector, address, data | vector)

    def write_table(self, region: int, table: int, offset: int, data: bytes) -> None:
        """The guest is about to write to the MSI-X table, which begins at `table` of the region.

        The routes come first: the write may unmask a vector that pends. Raises: HypervisorError.
        """
        first = max(0, offset - table) // _ENTRY.size
        last = (offset + len(data) - 1 - table) // _ENTRY.size
        for vector in range(first, min(last, self._port.vectors(IrqIndex.MSIX) - 1) + 1):
            start = table + vector * _ENTRY.size
            entry = bytearray(self._native.read(region, start, _ENTRY.size))
            for number, byte in enumerate(data, offset - start):
                if 0 <= number < len(entry):
                    entry[number] = byte
            low, high, message, _ = _ENTRY.unpack(entry)
            self._send(self._msix, IrqIndex.MSIX, vector, (low & ~3) | high << 32, message)

    def close(self) -> None:
        """Take everything back. May be called twice."""
        for table in (self._msi, self._msix):
            while table:
                self._routes.remove(table.popitem()[1])
        self._drop_pin()

    def _send(self, table: dict[int, Route], index: int, vector: int, address: int, data: int) -> None:
        route = table.get(vector)
        if route is not None:
            self._routes.change(route, address, data)
        if route is not None or not _interrupts(address):
            return
        table[vector] = route = self._routes.add(address, data)
        self._port.connect(index, vector, route.descriptor)

    def _drop_pin(self) -> None:
        if self._pin is None:
            return
        self._port.disable(IrqIndex.INTX)  # with the mask that an unanswered signal left
        for descriptor in self._pin:
            os.close(descriptor)
        self._pin = None


def _drain(descriptor: int) -> None:
    """Forget signals of the machine's old life."""
    try:
        os.eventfd_read(descriptor)
    except BlockingIOError:
        return
