"""What the blitter's commands have in common: rectangles, surfaces, depths, write masks, clipping.

Formats: Intel Graphics PRM, Kaby Lake, volume 2a: dword 1 has the pitch (signed bytes; dwords when tiled) in its low
half, the raster operation in bits 23:16 and the depth in 25:24.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev_softgpu import Rect, Surface, Tiling

if TYPE_CHECKING:
    from .execution import Execution

BYTES_PER_PIXEL = (1, 2, 2, 4)
"""By depth: 8 bits, 565, 1555, 8888."""
TILED_TARGET, TILED_SOURCE = 1 << 11, 1 << 15
WRITE_COLOURS, WRITE_ALPHA = 1 << 20, 1 << 21
CLIPPED = 1 << 30


def signed(value: int) -> int:
    """The low 16 bits as a coordinate or a pitch."""
    return (value & 0xFFFF) - ((value & 0x8000) << 1)


def address(command: tuple[int, ...], at: int) -> int:
    """48 bits, in dword `at` and the next."""
    return command[at] | (command[at + 1] & 0xFFFF) << 32


def rectangle(first: int, last: int) -> Rect:
    """From two dwords: top and left, bottom and right, which lie outside."""
    x, y = signed(first), signed(first >> 16)
    return Rect(x, y, signed(last) - x, signed(last >> 16) - y)


def surface(execution: Execution, address: int, pitch: int, *, tiled: int) -> Surface:
    """Of the process's memory."""
    bytes_of_pitch = signed(pitch) * (4 if tiled else 1)
    return Surface(execution.context.ppgtt, address, bytes_of_pitch, Tiling.X if tiled else Tiling.LINEAR)


def pixel_bytes(control: int) -> int:
    """By the depth in dword 1."""
    return BYTES_PER_PIXEL[control >> 24 & 3]


def write_mask(header: int, control: int) -> int:
    """The bits of a pixel that are written: with 32 bits, colours and alpha one by one."""
    size = pixel_bytes(control)
    if size != 4:
        return (1 << 8 * size) - 1
    return (0xFF_FFFF if header & WRITE_COLOURS else 0) | (0xFF00_0000 if header & WRITE_ALPHA else 0)


def clip(execution: Execution, control: int) -> Rect | None:
    """What a setup has left, where dword 1 asks for it."""
    return execution.clip if control & CLIPPED else None
