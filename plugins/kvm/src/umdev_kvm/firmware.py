"""What firmware does before a kernel runs: BARs get addresses, so that bare payloads find their devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.bus import RegionIndex
from umdev.errors import NotSupported

from . import layout

if TYPE_CHECKING:
    from umdev.bus import Attachment

    from .machine import Machine

_ROM_OFFSET = 0x30
_COMMAND = 4
_INTERRUPT_LINE = 0x3C


class Firmware:
    """Places BARs one after the other in their windows, largest alignment first within a function."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._next: dict[str, int] = {}
        self._restart()

    def place_all(self) -> None:
        """After a reset: every function anew. Raises: NotSupported where a window is full."""
        self._restart()
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
            limit = {"memory32": layout.MEMORY32, "memory64": layout.MEMORY64, "io": layout.PORTS}[kind][1]
            size = max(bar.size, 4096) if kind != "io" else bar.size  # a memory slot needs pages of its own
            address = -(-self._next[kind] // size) * size
            if address + size > limit:
                raise NotSupported(f"no room for BAR {bar.index} of {attachment.device}: {size:#x} bytes of {kind}")
            self._next[kind] = address + size
            offset = _ROM_OFFSET if bar.index == RegionIndex.ROM else 0x10 + 4 * bar.index
            width = 8 if bar.kind == "memory64" else 4
            native.write(RegionIndex.CONFIG, offset, address.to_bytes(width, "little"))
        for plugged in self._machine.bridge.functions:
            if plugged.attachment is attachment and attachment.interrupts.pin:
                line = layout.intx_gsi(plugged.slot, attachment.interrupts.pin)
                native.write(RegionIndex.CONFIG, _INTERRUPT_LINE, bytes([line]))

    def enable(self, slot: int, command: int = 7) -> None:
        """Set the Command register of a function: I/O, memory, bus mastering. Raises: NotFound."""
        for plugged in self._machine.bridge.functions:
            if plugged.slot == slot:
                plugged.attachment.native.write(RegionIndex.CONFIG, _COMMAND, command.to_bytes(2, "little"))
                self._machine.bridge.synchronise(slot)

    def address(self, slot: int, region: int) -> int:
        """Where a BAR was put, whether it decodes or not."""
        plugged = next(plugged for plugged in self._machine.bridge.functions if plugged.slot == slot)
        return int(plugged.attachment.device.config.bar_address(region))

    def _restart(self) -> None:
        self._next = {"memory32": layout.MEMORY32[0], "memory64": layout.MEMORY64[0], "io": layout.PORTS[0]}
