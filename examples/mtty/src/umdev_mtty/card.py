"""The card: one or two UARTs, each in an I/O BAR of eight bytes, sharing INTx.

Identity: Linux, samples/vfio-mdev/mtty.c (4348:3253, class 07/00/02); its in-tree driver is 8250_pci.
"""

from __future__ import annotations

from contextlib import ExitStack

from umdev.device import Device, Interrupts, IoBar, PciId, ResetKind, State, query

from .port import HostPort
from .uart import Uart


class Card(Device):
    """What single- and dual-port cards share."""

    pci = PciId(vendor=0x4348, device=0x3253, class_code=0x070002, revision=0x10)
    interrupts = Interrupts(intx=True)
    capabilities = ()
    ports: State[list[HostPort]] = State(list, save=False)

    @property
    def uarts(self) -> list[Uart]:
        """The card's UARTs, first port first."""
        return [region.block for region in self.regions.values() if isinstance(region.block, Uart)]

    def on_open(self) -> None:
        with ExitStack() as undo:  # a card has all of its ports, or takes nothing of the host
            for number, uart in enumerate(self.uarts):
                where = self.context.attributes.get(f"port{number}", "pty")
                uart.port, uart.source = HostPort(where, uart, self.locked), number
                undo.callback(uart.port.close)
                self.ports.append(uart.port)
            undo.pop_all()
        for port in self.ports:
            port.start()

    def on_reset(self, kind: ResetKind) -> None:
        for uart, port in zip(self.uarts, self.ports, strict=True):
            uart.carrier(port.connected)

    def on_close(self) -> None:
        for port in self.ports:
            port.close()

    @query
    def terminals(self) -> list[str]:
        """Where each port is connected on the host."""
        return [port.path for port in self.ports]

    @query
    def lost(self) -> list[int]:
        """Bytes of each port that a driver wrote while the transmitter was busy."""
        return [port.lost for port in self.ports]


class Mtty1(Card):
    """A single-port card."""

    port0 = IoBar(0, Uart, size=8, sizes=(1, 2, 4))


class Mtty2(Card):
    """A dual-port card."""

    port0 = IoBar(0, Uart, size=8, sizes=(1, 2, 4))
    port1 = IoBar(1, Uart, size=8, sizes=(1, 2, 4))
