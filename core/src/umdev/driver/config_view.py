"""Configuration space as a driver reads and writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import NotSupported, ProtocolError
from ..pci.capabilities import PciExpress
from ..pci.indexes import RegionIndex
from ..pci.layout import CONVENTIONAL_SIZE, FIRST_CAPABILITY, STATUS_CAPABILITIES
from .words import Words

if TYPE_CHECKING:
    from .function import Function

_COMMAND, _STATUS = 0x04, 0x06


class ConfigView(Words):
    """Registers of the header by name, and the capability lists. Every access goes to the device."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def __repr__(self) -> str:
        return f"<configuration space of {self._function}>"

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`."""
        return self._function.region_read(RegionIndex.CONFIG, offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """Store `data` at `offset`; when it returns, what follows from it has happened."""
        self._function.region_write(RegionIndex.CONFIG, offset, data)

    @property
    def vendor_id(self) -> int:
        """0xffff: no function answers."""
        return self.read16(0x00)

    @property
    def device_id(self) -> int:
        """The vendor's number for it."""
        return self.read16(0x02)

    @property
    def command(self) -> int:
        """The Command register; it can be assigned."""
        return self.read16(_COMMAND)

    @command.setter
    def command(self, value: int) -> None:
        self.write16(_COMMAND, value)

    @property
    def status(self) -> int:
        """The Status register."""
        return self.read16(_STATUS)

    @property
    def revision(self) -> int:
        """Revision ID."""
        return self.read8(0x08)

    @property
    def class_code(self) -> int:
        """Base class, sub-class and programming interface in 24 bits."""
        return self.read32(0x08) >> 8

    @property
    def subsystem(self) -> tuple[int, int]:
        """Subsystem vendor and device."""
        return self.read16(0x2C), self.read16(0x2E)

    @property
    def interrupt_pin(self) -> int:
        """0 for none, 1 to 4 for INTA to INTD."""
        return self.read8(0x3D)

    def capabilities(self) -> list[tuple[int, int]]:
        """(ID, offset) along the chain. Raises: ProtocolError for a chain that loops or leaves configuration space."""
        found: list[tuple[int, int]] = []
        at = self.read8(0x34) & ~3 if self.status & STATUS_CAPABILITIES else 0
        seen: set[int] = set()
        while at:
            if at in seen or not FIRST_CAPABILITY <= at < CONVENTIONAL_SIZE:
                raise ProtocolError(
                    f"the capability chain leads to {at:#x}, which is visited already or no place for one"
                )
            seen.add(at)
            header = self.read16(at)
            found.append((header & 0xFF, at))
            at = header >> 8 & ~3
        return found

    def find_capability(self, capability: int) -> int | None:
        """The offset of the first capability with this ID, or None. Raises: ProtocolError as `capabilities`."""
        return next((at for found, at in self.capabilities() if found == capability), None)

    def require_capability(self, capability: int, name: str) -> int:
        """As `find_capability`. Raises: NotSupported naming it where the function has none."""
        at = self.find_capability(capability)
        if at is None:
            raise NotSupported(f"{self._function} has no {name} capability")
        return at

    def function_level_reset(self) -> None:
        """Reset the function through its PCI Express capability (PCI Express Base 5.0, 6.6.2); done when it returns.

        BARs, Command and interrupts are at their reset values then. Raises: NotSupported without FLR.
        """
        at = self.require_capability(PciExpress.id, "PCI Express")
        if not self.read32(at + 4) & 1 << 28:
            raise NotSupported(f"{self._function} has no Function Level Reset")
        self.write16(at + 8, self.read16(at + 8) | 1 << 15)
