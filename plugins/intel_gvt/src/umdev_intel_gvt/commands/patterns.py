"""The blitter's setup and pattern commands: a setup is kept, and lines and pixels are drawn by it.

Formats: Intel Graphics PRM, Kaby Lake, volume 2a: XY_SETUP_BLT and the commands that use it, XY_PAT_BLT,
XY_PAT_BLT_IMMEDIATE, XY_MONO_PAT_BLT. A pattern is 8 by 8 pixels; a seed is the pattern's column, or row, that falls
on column, or row, 0 of the target. In dword 1 bit 31 makes a pattern solid, 30 clips, 28 makes a pattern of one bit
transparent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from umdev_softgpu import Blit, Brush, Fault, Rect

from . import surfaces

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .execution import Execution
    from .outcome import Outcome

Command = tuple[int, ...]
SOLID, TRANSPARENT = 1 << 31, 1 << 28
SIDE = 8


@dataclass(frozen=True, slots=True)
class Setup:
    """What XY_SETUP_BLT and XY_SETUP_MONO_PATTERN_SL_BLT leave behind; of one run of a context."""

    header: int
    control: int
    """Dword 1: pitch, raster operation, depth and flags."""
    address: int
    pattern: int | None
    """Where a coloured pattern lies; None: it is of one bit, or solid."""
    mono: int = 0
    background: int = 0
    foreground: int = 0


def setup(execution: Execution, command: Command) -> Outcome | None:
    """XY_SETUP_BLT: the pattern is read when something is drawn."""
    execution.setup = Setup(command[0], command[1], surfaces.address(command, 4), surfaces.address(command, 8))
    return setup_clip(execution, (command[0], command[2], command[3]))


def setup_mono(execution: Execution, command: Command) -> Outcome | None:
    """XY_SETUP_MONO_PATTERN_SL_BLT: background, foreground and the 64 bits of the pattern."""
    mono = command[8] | command[9] << 32
    execution.setup = Setup(command[0], command[1], surfaces.address(command, 4), None, mono, command[6], command[7])
    return setup_clip(execution, (command[0], command[2], command[3]))


def setup_clip(execution: Execution, command: Command) -> Outcome | None:
    """XY_SETUP_CLIP_BLT: for every later command that asks to be clipped."""
    execution.clip = surfaces.rectangle(command[1], command[2])
    return None


def scanlines(execution: Execution, command: Command) -> Outcome | None:
    """XY_SCANLINES_BLT: a rectangle of the setup's pattern."""
    return _draw_setup(execution, command[0], surfaces.rectangle(command[1], command[2]))


def pixel(execution: Execution, command: Command) -> Outcome | None:
    """XY_PIXEL_BLT."""
    x, y = surfaces.signed(command[1]), surfaces.signed(command[1] >> 16)
    return _draw_setup(execution, command[0], Rect(x, y, 1, 1))


def pattern(execution: Execution, command: Command) -> Outcome | None:
    """XY_PAT_BLT: the pattern lies in memory."""
    setup = Setup(command[0], command[1], surfaces.address(command, 4), surfaces.address(command, 6))
    return _draw(execution, setup, command[0], surfaces.rectangle(command[2], command[3]))


def immediate_pattern(execution: Execution, command: Command) -> Outcome | None:
    """XY_PAT_BLT_IMMEDIATE: it lies in the command."""
    size = SIDE * SIDE * surfaces.pixel_bytes(command[1])
    data = b"".join(dword.to_bytes(4, "little") for dword in command[6:])
    if len(data) < size:
        return execution.fail(f"a pattern of {len(data)} bytes in a command; it has {size}")
    setup = Setup(command[0], command[1], surfaces.address(command, 4), None)
    rect = surfaces.rectangle(command[2], command[3])
    return _draw(execution, setup, command[0], rect, data[:size])


def mono_pattern(execution: Execution, command: Command) -> Outcome | None:
    """XY_MONO_PAT_BLT: eight bytes in memory, a row each."""
    bits = execution.context.ppgtt.read(surfaces.address(command, 6), SIDE)
    if isinstance(bits, Fault):
        return execution.fail(str(bits))
    mono = int.from_bytes(bits, "little")
    setup = Setup(command[0], command[1], surfaces.address(command, 4), None, mono, command[8], command[9])
    return _draw(execution, setup, command[0], surfaces.rectangle(command[2], command[3]))


def _draw_setup(execution: Execution, header: int, rect: Rect) -> Outcome | None:
    if execution.setup is None:
        return execution.fail("a blit by a setup, and none has been made")
    return _draw(execution, execution.setup, header, rect)


def _draw(execution: Execution, setup: Setup, header: int, rect: Rect, pixels: bytes | None = None) -> Outcome | None:
    """`header` has seeds and tiling of what is drawn now."""
    control = setup.control
    size = surfaces.pixel_bytes(control)
    solid = bool(control & SOLID) and setup.pattern is None and pixels is None
    if not solid and control & TRANSPARENT and setup.pattern is None and pixels is None:
        execution.pass_over("a pattern with transparent pixels")
        return None
    if setup.pattern is not None:
        found = execution.context.ppgtt.read(setup.pattern, SIDE * SIDE * size)
        if isinstance(found, Fault):
            return execution.fail(str(found))
        pixels = found
    brush: int | Brush = setup.foreground
    if not solid:
        content = pixels if pixels is not None else _coloured(setup, size)
        brush = Brush(content, -(header >> 12 & 7), -(header >> 8 & 7))
    return execution.start_blit(
        Blit.fill(
            surfaces.surface(execution, setup.address, control, tiled=header & surfaces.TILED_TARGET),
            rect,
            size,
            brush,
            rop=control >> 16 & 0xFF,
            clip=surfaces.clip(execution, control),
            write_mask=surfaces.write_mask(setup.header, control),
        )
    )


def _coloured(setup: Setup, size: int) -> bytes:
    """A pattern of one bit in the target's colours: a row is a byte, its leftmost pixel the highest bit."""
    colours = [
        (colour & ((1 << 8 * size) - 1)).to_bytes(size, "little") for colour in (setup.background, setup.foreground)
    ]
    rows = setup.mono.to_bytes(SIDE, "little")
    return b"".join(colours[row >> 7 - column & 1] for row in rows for column in range(SIDE))


HANDLERS: Mapping[int, tuple[Callable[[Execution, Command], Outcome | None], int]] = {
    0x01: (setup, 10),
    0x03: (setup_clip, 3),
    0x11: (setup_mono, 10),
    0x24: (pixel, 2),
    0x25: (scanlines, 3),
    0x51: (pattern, 8),
    0x52: (mono_pattern, 10),
    0x72: (immediate_pattern, 6),
}
"""Opcode -> what to do, and the least number of dwords."""
