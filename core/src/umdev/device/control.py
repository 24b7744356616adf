"""What writes to configuration space do to the rest of the function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..addresses import RegionOffset
from ..pci.reset import ResetKind

if TYPE_CHECKING:
    from .model import Device


class Control:
    """`umdev.pci.FunctionControl` of one device. Every method is called with the device lock held."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def memory_enable(self, enabled: bool) -> None:
        """Command bit 1: memory BARs decode (PCI Local Bus 3.0, 6.2.2)."""
        for index, bar in self._device.layout.items():
            if bar.kind.startswith("memory"):
                self._device.native.set_region_enabled(index, enabled)

    def io_enable(self, enabled: bool) -> None:
        """Command bit 0: I/O BARs decode."""
        for index, bar in self._device.layout.items():
            if bar.kind == "io":
                self._device.native.set_region_enabled(index, enabled)

    def rom_enable(self, enabled: bool) -> None:
        """Expansion ROM enable together with command bit 1 (6.2.5.2)."""
        for index, bar in self._device.layout.items():
            if bar.kind == "rom":
                self._device.native.set_region_enabled(index, enabled)

    def bus_master(self, enabled: bool) -> None:
        """Command bit 2: the function may start transactions."""
        self._device.address_space.bus_master = enabled

    def interrupt_state(self, flags: int) -> None:
        """MSI, MSI-X, masks and INTx disable changed."""
        self._device.interrupts.set_state(flags)

    def bar_moved(self, index: int, address: int) -> None:
        """A BAR decodes at another address; buses that place BARs themselves are told by the attachment."""
        self._device.bar_moved(index, RegionOffset(address))

    def function_reset(self) -> None:
        """Initiate Function Level Reset was written (PCI Express Base 5.0, 7.5.3.4)."""
        self._device.reset(ResetKind.FLR)

    def power_state(self, state: int) -> None:
        """D3hot to D0 resets a function without No_Soft_Reset (PCI Power Management 1.2, 5.4.1)."""
        if state == 0:
            self._device.reset(ResetKind.D3HOT)
