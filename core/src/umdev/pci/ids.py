"""What a function is: the read-only identity in its configuration header."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import DeclarationError


@dataclass(frozen=True, slots=True)
class PciId:
    """Identity of a function (PCI Local Bus 3.0, 6.2.1).

    `class_code` has 24 bits: base class, sub-class, programming interface, as lspci -n shows them (0x070002 is a 16550
    serial controller). Without subsystem ids the function repeats its own, since zeros are not valid (6.2.4).

    Raises: DeclarationError for a number that does not fit.
    """

    vendor: int
    device: int
    class_code: int
    revision: int = 0
    subsystem_vendor: int | None = None
    subsystem_device: int | None = None

    def __post_init__(self) -> None:
        for name, bits in (("vendor", 16), ("device", 16), ("class_code", 24), ("revision", 8)):
            _check_width(name, getattr(self, name), bits)
        for name in ("subsystem_vendor", "subsystem_device"):
            if getattr(self, name) is not None:
                _check_width(name, getattr(self, name), 16)
        if self.vendor == 0xFFFF:
            raise DeclarationError("PciId: vendor 0xffff is what an absent function reads as (PCI Local Bus 3.0, 6.1)")

    @property
    def subsystem(self) -> tuple[int, int]:
        """Subsystem vendor and device, as the header shows them."""
        vendor = self.vendor if self.subsystem_vendor is None else self.subsystem_vendor
        device = self.device if self.subsystem_device is None else self.subsystem_device
        return vendor, device

    def __str__(self) -> str:
        return f"{self.vendor:04x}:{self.device:04x}"


def _check_width(name: str, value: int, bits: int) -> None:
    if not 0 <= value < 1 << bits:
        raise DeclarationError(f"PciId: {name} {value:#x} does not fit in {bits} bits")
