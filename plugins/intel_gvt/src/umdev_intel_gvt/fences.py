"""Fence registers: the parts of the aperture that the processor sees untiled.

Layout (gen7 and later): Intel Graphics PRM, Kaby Lake, volume 2c: bit 0 valid, bit 1 Y-tiled (else X),
bits 31:12 the first page, bits 43:32 the pitch in units of 128 bytes less one, bits 63:44 the last page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from umdev.device import PAGE_SIZE, RESERVED, Block, Register64, RegisterArray

if TYPE_CHECKING:
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

FENCES = 4
"""What each vGPU has; its own are numbered from 0."""
HARDWARE_FENCES = 32
PITCH_UNIT = 128
X_TILE_WIDTH = 512


@dataclass(frozen=True, slots=True)
class Fence:
    """A tiled range of graphics memory, first byte and end; pitch in bytes. The empty one covers nothing."""

    first: int = 0
    end: int = 0
    pitch: int = 0
    y_tiled: bool = False

    @classmethod
    def of(cls, value: int) -> Fence:
        """What a register says; one with an impossible pitch or range covers nothing."""
        first, end = value & 0xFFFF_F000, (value >> 44 << 12) + PAGE_SIZE
        pitch, y_tiled = ((value >> 32 & 0xFFF) + 1) * PITCH_UNIT, bool(value & 2)
        if not value & 1 or first >= end or pitch % (PITCH_UNIT if y_tiled else X_TILE_WIDTH):
            return cls()
        return cls(first, end, pitch, y_tiled)


class FenceRegisters(Block["Vgpu"]):
    """The array at 0x100000 of BAR 0: the vGPU's own, then those that are not there."""

    fence = RegisterArray(0x00, Register64, count=FENCES)
    absent = RegisterArray(8 * FENCES, Register64, RESERVED, count=HARDWARE_FENCES - FENCES)

    @fence.on_write
    def changed(self, index: int, value: int) -> None:
        """The aperture follows."""
        self.device.aperture.set_fence(index, Fence.of(value))
