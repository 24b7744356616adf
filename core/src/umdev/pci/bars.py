"""Base address registers: what may be declared, and the registers that come of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from ..errors import DeclarationError
from .registers import ConfigRegister

if TYPE_CHECKING:
    from collections.abc import Sequence

BarKind: TypeAlias = Literal["memory32", "memory64", "io", "rom"]

ROM_INDEX = 6
_MIN_SIZE: dict[str, int] = {"memory32": 16, "memory64": 16, "io": 4, "rom": 1 << 11}
_MAX_SIZE: dict[str, int] = {"memory32": 1 << 31, "memory64": 1 << 63, "io": 1 << 16, "rom": 1 << 24}


@dataclass(frozen=True, slots=True)
class BarInfo:
    """One BAR, `size` in bytes; the ROM has index 6 and kind "rom". A 64-bit BAR takes the next index as well.

    Sizes are powers of two (PCI Local Bus 3.0, 6.2.5.1): memory from 16 bytes, to 2 GiB below 64 bits; I/O from 4 bytes
    to all 64 KiB of x86 (6.2.5.1 asks new devices to stay within 256); the ROM from 2 KiB to 16 MiB (6.2.5.2).

    Raises: DeclarationError.
    """

    index: int
    size: int
    kind: BarKind
    prefetchable: bool = False

    def __post_init__(self) -> None:
        if self.kind not in _MIN_SIZE:
            raise DeclarationError(f"{self}: kind {self.kind!r} is none of {', '.join(_MIN_SIZE)}")
        if (self.kind == "rom") != (self.index == ROM_INDEX) or not 0 <= self.index <= ROM_INDEX:
            raise DeclarationError(f"{self}: BARs have index 0 to 5, the ROM has {ROM_INDEX}")
        if self.kind == "memory64" and self.index == ROM_INDEX - 1:
            raise DeclarationError(f"{self}: a 64-bit BAR takes two registers, and BAR 5 is the last")
        if self.size <= 0 or self.size & (self.size - 1):
            raise DeclarationError(f"{self}: the size {self.size:#x} is no power of two")
        low, high = _MIN_SIZE[self.kind], _MAX_SIZE[self.kind]
        if not low <= self.size <= high:
            raise DeclarationError(
                f"{self}: the size {self.size:#x} is not within {low:#x} to {high:#x} of {self.kind}"
            )
        if self.prefetchable and not self.kind.startswith("memory"):
            raise DeclarationError(f"{self}: only memory can be prefetchable")

    @property
    def indexes(self) -> tuple[int, ...]:
        """The registers that it takes."""
        return (self.index, self.index + 1) if self.kind == "memory64" else (self.index,)

    @property
    def register_offset(self) -> int:
        """Where its register stands in configuration space (PCI Local Bus 3.0, 6.1)."""
        return 0x30 if self.kind == "rom" else 0x10 + 4 * self.index

    @property
    def flags(self) -> int:
        """The read-only low bits (6.2.5.1): 0 for I/O, 2:1 for 64-bit, 3 for prefetchable."""
        return {"io": 1, "memory64": 4}.get(self.kind, 0) | self.prefetchable << 3

    @property
    def address_mask(self) -> int:
        """The bits of the register, or register pair, that hold the address."""
        bits = 64 if self.kind == "memory64" else 32
        return (1 << bits) - self.size

    @property
    def register(self) -> ConfigRegister:
        """Sizing by all ones needs no code: the low bits take no write (6.2.5.1). ROM bit 0 enables (6.2.5.2)."""
        width = 8 if self.kind == "memory64" else 4
        writable = self.address_mask | (self.kind == "rom")
        return ConfigRegister(self.name, self.register_offset, width, reset=self.flags, writable=writable)

    @property
    def name(self) -> str:
        """As in saved state and traces."""
        return "rom" if self.kind == "rom" else f"bar{self.index}"

    def __str__(self) -> str:
        return "the ROM" if self.index == ROM_INDEX else f"BAR {self.index}"


def check_bars(bars: Sequence[BarInfo]) -> None:
    """Raises: DeclarationError where two claim one register."""
    taken: dict[int, BarInfo] = {}
    for bar in bars:
        for index in bar.indexes:
            other = taken.setdefault(index, bar)
            if other is not bar:
                raise DeclarationError(f"{bar} and {other} both claim register {index}" + _pair_hint(bar, other))


def _pair_hint(*bars: BarInfo) -> str:
    wide = next((bar for bar in bars if bar.kind == "memory64"), None)
    return f": {wide} is 64-bit and takes {wide.index} and {wide.index + 1}" if wide else ""
