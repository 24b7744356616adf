"""A register of configuration space, as a declaration: what it resets to and what the driver may do to each bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class ConfigRegister:
    """`offset` is in bytes from the start of what the register belongs to; masks have the register's width.

    A bit in none of the masks is read-only. `clears` bits are cleared by writing 1 (W1C). `survives` bits keep their
    value over FLR and D3hot.
    """

    name: str
    offset: int
    width: int
    reset: int = 0
    writable: int = 0
    clears: int = 0
    survives: int = 0

    @property
    def end(self) -> int:
        """The offset of the byte after it."""
        return self.offset + self.width

    @property
    def changeable(self) -> int:
        """The bits that hold state; those that it shows of something else (levels, pending bits) do not."""
        return self.writable | self.clears


def placed(registers: Iterable[ConfigRegister], base: int, prefix: str) -> list[ConfigRegister]:
    """The registers of a structure at `base`, with full names."""
    return [replace(r, offset=base + r.offset, name=f"{prefix}.{r.name}") for r in registers]


class RegisterImage:
    """The bytes of all registers, and for each byte what a write does to it."""

    def __init__(self, size: int, registers: Sequence[ConfigRegister]) -> None:
        self.size = size
        self.registers = {register.name: register for register in registers}
        self._reset = bytearray(size)
        self._writable = bytearray(size)
        self._clears = bytearray(size)
        self._survives = bytearray(size)
        for r in registers:
            for target, mask in (
                (self._reset, r.reset),
                (self._writable, r.writable),
                (self._clears, r.clears),
                (self._survives, r.survives),
            ):
                target[r.offset : r.end] = mask.to_bytes(r.width, "little")
        self.values = bytearray(self._reset)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes; all of them lie inside."""
        return bytes(self.values[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        """What a driver's write does: read-only bits stay."""
        for at, new in enumerate(data, offset):
            writable = self._writable[at]
            self.values[at] = (self.values[at] & ~writable | new & writable) & ~(new & self._clears[at])

    def __getitem__(self, name: str) -> int:
        register = self.registers[name]
        return int.from_bytes(self.values[register.offset : register.end], "little")

    def __setitem__(self, name: str, value: int) -> None:
        register = self.registers[name]
        self.values[register.offset : register.end] = value.to_bytes(register.width, "little")

    def reset(self, *, keep_survivors: bool) -> None:
        """Every register to its reset value."""
        for at in range(self.size):
            keep = self._survives[at] if keep_survivors else 0
            self.values[at] = self.values[at] & keep | self._reset[at] & ~keep
