"""The blitter's commands: fills and copies between rectangles of a process's memory.

Formats: Intel Graphics PRM, Kaby Lake, volume 2a and volume 10 (copy engine): pitches are signed bytes in the low
half of dword 1 (dwords when tiled), bits 23:16 are the raster operation and 25:24 the depth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev_softgpu import Blit, Rect, Surface, Tiling

from . import patterns, surfaces
from .names import blit_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .execution import Execution
    from .outcome import Outcome

Command = tuple[int, ...]


def execute(execution: Execution, command: Command) -> Outcome | None:
    """Begin one. What is not drawn here is passed over and counted; an opcode that is none stops the engine."""
    opcode = command[0] >> 22 & 0x7F
    found = _HANDLERS.get(opcode)
    if found is None:
        if (name := blit_name(opcode)) is None:
            return execution.fail(f"blitter opcode {opcode:#04x} is not known")
        execution.pass_over(name)  # hardware draws it, and goes on
        return None
    handler, least = found
    if len(command) < least:
        return execution.fail(f"blitter opcode {opcode:#04x} of {len(command)} dwords; it has {least} at least")
    return handler(execution, command)


def _surface(execution: Execution, command: Command, at: int, pitch: int, *, tiled: int) -> Surface:
    return surfaces.surface(execution, surfaces.address(command, at), pitch, tiled=tiled)


def _fill(execution: Execution, command: Command) -> Outcome | None:
    """XY_COLOR_BLT."""
    target = _surface(execution, command, 4, command[1], tiled=command[0] & surfaces.TILED_TARGET)
    return execution.start_blit(
        Blit.fill(
            target,
            surfaces.rectangle(command[2], command[3]),
            surfaces.pixel_bytes(command[1]),
            command[6],
            rop=command[1] >> 16 & 0xFF,
            clip=surfaces.clip(execution, command[1]),
            write_mask=surfaces.write_mask(command[0], command[1]),
        )
    )


def _copy(execution: Execution, command: Command) -> Outcome | None:
    """XY_SRC_COPY_BLT."""
    target = _surface(execution, command, 4, command[1], tiled=command[0] & surfaces.TILED_TARGET)
    source = _surface(execution, command, 8, command[7], tiled=command[0] & surfaces.TILED_SOURCE)
    return execution.start_blit(
        Blit.copy(
            target,
            source,
            surfaces.rectangle(command[2], command[3]),
            surfaces.pixel_bytes(command[1]),
            at=(surfaces.signed(command[6]), surfaces.signed(command[6] >> 16)),
            rop=command[1] >> 16 & 0xFF,
            clip=surfaces.clip(execution, command[1]),
            write_mask=surfaces.write_mask(command[0], command[1]),
        )
    )


def _bytes_rectangle(command: Command) -> Rect:
    """Dword 2 of the commands without coordinates: rows in its upper half, bytes of a row in the lower one."""
    return Rect(0, 0, command[2] & 0xFFFF, command[2] >> 16)


def _plain_fill(execution: Execution, command: Command) -> Outcome | None:
    """COLOR_BLT: rows of bytes from an address on."""
    depth = surfaces.pixel_bytes(command[1])
    x, y, width, height = _bytes_rectangle(command)
    target = _surface(execution, command, 3, command[1], tiled=0)
    rect = Rect(x, y, width // depth, height)
    return execution.start_blit(Blit.fill(target, rect, depth, command[5], rop=command[1] >> 16 & 0xFF))


def _plain_copy(execution: Execution, command: Command) -> Outcome | None:
    """SRC_COPY_BLT: rows of bytes from an address on."""
    target = _surface(execution, command, 3, command[1], tiled=0)
    source = _surface(execution, command, 6, command[5], tiled=0)
    rect = _bytes_rectangle(command)
    return execution.start_blit(Blit.copy(target, source, rect, 1, rop=command[1] >> 16 & 0xFF))


_FAST_DEPTHS: Mapping[int, int] = {0: 1, 1: 2, 3: 4, 4: 8, 5: 16}
_FAST_TILINGS: Mapping[int, Tiling] = {0: Tiling.LINEAR, 1: Tiling.X, 2: Tiling.Y}


def _fast_copy(execution: Execution, command: Command) -> Outcome | None:
    """XY_FAST_COPY_BLT: depths to 128 bits, tilings in bits 14:13 and 21:20, no raster operation."""
    depth = _FAST_DEPTHS.get(command[1] >> 24 & 7)
    tilings = [_FAST_TILINGS.get(command[0] >> shift & 3) for shift in (13, 20)]
    if depth is None or tilings[0] is None or tilings[1] is None:
        return execution.fail(f"fast copy {command[0]:#010x} {command[1]:#010x}")
    pair = [
        Surface(
            execution.context.ppgtt,
            surfaces.address(command, at),
            surfaces.signed(pitch) * (1 if tiling is Tiling.LINEAR else 4),
            tiling,
        )
        for at, pitch, tiling in ((4, command[1], tilings[0]), (8, command[7], tilings[1]))
    ]
    return execution.start_blit(
        Blit.copy(
            pair[0],
            pair[1],
            surfaces.rectangle(command[2], command[3]),
            depth,
            at=(surfaces.signed(command[6]), surfaces.signed(command[6] >> 16)),
        )
    )


_HANDLERS: Mapping[int, tuple[Callable[[Execution, Command], Outcome | None], int]] = {
    0x40: (_plain_fill, 6),
    0x42: (_fast_copy, 10),
    0x43: (_plain_copy, 8),
    0x50: (_fill, 7),
    0x53: (_copy, 10),
    **patterns.HANDLERS,
}
"""Opcode -> what to do, and the least number of dwords."""
