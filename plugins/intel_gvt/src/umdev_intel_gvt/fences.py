"""Fence registers: the parts of the aperture that the processor sees untiled.

Layout (gen7 and later): Intel Graphics PRM, Kaby Lake, volume 2c: bit 0 valid, bit 1 Y-tiled (else X),
bits 31:12 the first page, bits 43:32 the pitch in units of 128 bytes less one, bits 63:44 the last page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from umdev.device import RESERVED, Block, Register64, RegisterArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

FENCES = 4
"""What each vGPU has; its own are numbered from 0."""
HARDWARE_FENCES = 32
TILE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Fence:
    """A tiled range of graphics memory, first byte and end; pitch in bytes."""

    first: int
    end: int
    pitch: int
    y_tiled: bool

    def untile(self, address: int) -> int:
        """Where the byte lies that the processor sees at `address`.

        A tile is 4 KiB: X has 8 rows of 512 bytes; Y has 8 columns, 16 bytes wide and 32 rows high (PRM, volume 5,
        memory views).
        """
        row, column = divmod(address - self.first, self.pitch)
        width, height = (128, 32) if self.y_tiled else (512, 8)
        tile = row // height * (self.pitch // width) + column // width
        x, y = column % width, row % height
        within = x // 16 * 512 + y * 16 + x % 16 if self.y_tiled else y * 512 + x
        return self.first + tile * TILE_BYTES + within


class FenceRegisters(Block["Vgpu"]):
    """The array at 0x100000 of BAR 0: the vGPU's own, then those that are not there."""

    fence = RegisterArray(0x00, Register64, count=FENCES)
    absent = RegisterArray(8 * FENCES, Register64, RESERVED, count=HARDWARE_FENCES - FENCES)

    def valid(self) -> Iterator[Fence]:
        """The fences in use; one with an impossible pitch or range is none."""
        for register in self.fence:
            value = register.value
            if not value & 1:
                continue
            first, end = value & 0xFFFF_F000, (value >> 44 << 12) + 4096
            pitch, y_tiled = ((value >> 32 & 0xFFF) + 1) * 128, bool(value & 2)
            if first < end and (y_tiled or pitch % 512 == 0):
                yield Fence(first, end, pitch, y_tiled)

    def at(self, address: int) -> Fence | None:
        """The fence that covers an address."""
        return next((fence for fence in self.valid() if fence.first <= address < fence.end), None)
