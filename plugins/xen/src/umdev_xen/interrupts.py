"""Interrupts of a plugged function: the pin as a level, messages injected where their registers say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .native import Native, Wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from umdev.bus import Attachment

__all__ = ["FunctionInterrupts"]


class FunctionInterrupts:
    """The interrupts of the function in one slot, wired to the domain. The bridge's lock is held."""

    def __init__(self, attachment: Attachment, native: Native, slot: int, *, intx: bool) -> None:
        self._port = attachment.interrupts
        self._config: Mapping[str, int] = attachment.device.config  # type: ignore[assignment]  # by register name
        self._known = attachment.device.config.registers
        self._wire = Wire(native, slot, self._port.pin if intx else 0)
        self.synchronise()
        if self._port.pin and intx:
            self._port.on_level(Wire.level, self._wire.pointer)
        self._port.on_message(Wire.message, self._wire.pointer)

    def synchronise(self) -> None:
        """Configuration space may have changed: MSI goes where its registers say."""
        if "msi.control" not in self._known:
            return
        control = self._config["msi.control"]
        address = self._config["msi.address_low"]
        if "msi.address_high" in self._known:
            address |= self._config["msi.address_high"] << 32
        self._wire.set_msi(address, self._config["msi.data"], 1 << min(control >> 4 & 7, control >> 1 & 7))

    def close(self) -> None:
        """The pin goes low, and nothing is sent any more. May be called twice."""
        self._port.disconnect_all()
        if self._wire.pointer is not None:
            Wire.level(self._wire.pointer, 0)
        self._wire.free()
