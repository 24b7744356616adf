"""What firmware does before a kernel runs: BARs get addresses, so that bare payloads find their devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.bus import RegionIndex
from umdev.errors import NotFound, NotSupported

from . import layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from umdev.bus import Attachment
    from umdev.pci import BarInfo

    from .bridge import Plugged
    from .machine import Machine

_ROM_OFFSET = 0x30
_COMMAND = 4
_INTERRUPT_LINE = 0x3C
_PAGE = 4096
"""A memory slot needs pages of its own."""
_WINDOWS = {"memory32": layout.MEMORY32, "memory64": layout.MEMORY64, "io": layout.PORTS}


class Firmware:
    """Places BARs where no other BAR is, as low as they fit in their windows, the largest of a function first.

    It remembers nothing: configuration space says what is taken, so addresses are free again when a function is
    unplugged, and where the guest has moved a BAR no other one comes.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def place_all(self) -> None:
        """After a reset: every function anew. Raises: NotSupported where a window is full."""
        for plugged in self._machine.bridge.functions:
            if plugged.interrupts is not None:
                self.place(plugged.attachment)
        self._machine.bridge.synchronise()

    def place(self, attachment: Attachment) -> None:
        """Give the function's BARs addresses; decoding stays off, the ROM stays disabled. Raises: NotSupported."""
        native = attachment.native
        bars = attachment.device.config.bars.values()
        for bar in sorted(bars, key=lambda bar: bar.size, reverse=True):
            kind = "memory32" if bar.kind == "rom" else bar.kind
            size = _span(bar)
            address = self._room(kind, size)
            if address is None:
                raise NotSupported(f"no room for BAR {bar.index} of {attachment.device}: {size:#x} bytes of {kind}")
            offset = _ROM_OFFSET if bar.index == RegionIndex.ROM else 0x10 + 4 * bar.index
            width = 8 if bar.kind == "memory64" else 4
            native.write(RegionIndex.CONFIG, offset, address.to_bytes(width, "little"))
        for plugged in self._machine.bridge.functions:
            if plugged.attachment is attachment and attachment.interrupts.pin:
                line = layout.intx_gsi(plugged.slot, attachment.interrupts.pin)
                native.write(RegionIndex.CONFIG, _INTERRUPT_LINE, bytes([line]))

    def enable(self, slot: int, command: int = 7) -> None:
        """Set the Command register of a function: I/O, memory, bus mastering. Raises: NotFound."""
        native = self._function(slot).attachment.native
        native.write(RegionIndex.CONFIG, _COMMAND, command.to_bytes(2, "little"))
        self._machine.bridge.synchronise(slot)

    def address(self, slot: int, region: int) -> int:
        """Where a BAR was put, whether it decodes or not. Raises: NotFound where the slot is empty."""
        return int(self._function(slot).attachment.device.config.bar_address(region))

    def _function(self, slot: int) -> Plugged:
        for plugged in self._machine.bridge.functions:
            if plugged.slot == slot:
                return plugged
        raise NotFound(f"slot {slot} is empty")

    def _room(self, kind: str, size: int) -> int | None:
        """The lowest address in the window, aligned as a BAR must be, where so much is free."""
        start, limit = _WINDOWS[kind]
        address = -(-start // size) * size
        for taken, end in sorted(self._taken(io=kind == "io")):
            if address + size <= taken:
                break
            address = max(address, -(-end // size) * size)
        return address if address + size <= limit else None

    def _taken(self, *, io: bool) -> Iterator[tuple[int, int]]:
        """First address, and one past the last, of every BAR that was given any, whether it decodes or not."""
        for plugged in self._machine.bridge.functions:
            config = plugged.attachment.device.config
            for index, bar in config.bars.items():
                address = config.bar_address(index)
                if address and (bar.kind == "io") == io:
                    yield address, address + _span(bar)


def _span(bar: BarInfo) -> int:
    """Bytes of its window that a BAR takes."""
    return bar.size if bar.kind == "io" else max(bar.size, _PAGE)
