"""What writes to configuration space do to the rest of the function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..pci.reset import ResetKind

if TYPE_CHECKING:
    from .model import Device

D0 = 0


class Control:
    """`umdev.pci.FunctionControl` of one device. Every method is called with the device lock held."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def memory_enable(self, enabled: bool) -> None:
        """Command bit 1: memory BARs decode (PCI Local Bus 3.0, 6.2.2)."""
        self._gate({"memory32", "memory64"}, enabled)

    def io_enable(self, enabled: bool) -> None:
        """Command bit 0: I/O BARs decode."""
        self._gate({"io"}, enabled)

    def rom_enable(self, enabled: bool) -> None:
        """The ROM's own enable bit together with Command bit 1 (6.2.5.2)."""
        self._gate({"rom"}, enabled)

    def bus_master(self, enabled: bool) -> None:
        """Command bit 2: the function may start transactions."""
        self._device.address_space.bus_master = enabled

    def interrupt_state(self, flags: int) -> None:
        """Enables, the function mask and INTx disable changed."""
        self._device.interrupts.set_state(flags)

    def msi_state(self, allocated: int, mask: int) -> None:
        """The driver allocated MSI messages, or masked some."""
        self._device.interrupts.set_msi(allocated, mask)

    def msi_pending(self) -> int:
        """The pending bits that the driver reads."""
        return self._device.interrupts.msi_pending

    def interrupt_level(self) -> bool:
        """Status bit 3: whether a source of INTx is high."""
        return self._device.interrupts.level

    def bar_moved(self, index: int, address: int) -> None:
        """A BAR decodes at another address; buses that place BARs themselves are told by the attachment."""
        self._device.bar_moved(index, address)

    def function_reset(self) -> None:
        """Initiate Function Level Reset was written (PCI Express Base 5.0, 7.5.3.4)."""
        self._device.reset(ResetKind.FLR)

    def power_state(self, state: int) -> None:
        """D3hot to D0 resets a function without No_Soft_Reset (PCI Power Management 1.2, 5.4.1)."""
        if state == D0:
            self._device.reset(ResetKind.D3HOT)

    def _gate(self, kinds: set[str], enabled: bool) -> None:
        for region in self._device.regions.values():
            if region.kind in kinds:
                self._device.native.set_region_enabled(region.index, enabled)
