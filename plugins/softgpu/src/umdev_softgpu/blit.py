"""Rectangles: fills and copies, by raster operations, clipped, tiled, a budget at a time."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ._native import ffi, lib
from .budget import Budget, Step
from .faults import Fault, Reason, fault
from .space import READ_LIMIT

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .space import Space

FILL = 0xF0
COPY = 0xCC
PIXEL_LIMIT = 16
"""Bytes of the largest pixel."""


class Tiling(enum.IntEnum):
    """How rows lie in memory."""

    LINEAR = lib.SOFTGPU_LINEAR
    X = lib.SOFTGPU_TILED_X
    """Tiles of 512 bytes by 8 rows, row after row (Intel, "Tile X")."""
    Y = lib.SOFTGPU_TILED_Y
    """Tiles of 128 bytes by 32 rows, in columns of 16 bytes (Intel, "Tile Y")."""
    BLOCKS = lib.SOFTGPU_BLOCKS
    """Blocks of 64 bytes by `8 << block_rows` rows by `1 << block_layers` layers (NVIDIA, "block linear", GF100 and
    later); a surface is one layer."""


class Rect(NamedTuple):
    """In pixels."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Surface:
    """An image in a space: pixel (0, 0) lies at `address`."""

    space: Space
    address: int
    pitch: int
    """Bytes from row to row, of either sign; tiled: a positive multiple of a tile's width."""
    tiling: Tiling = Tiling.LINEAR
    block_rows: int = 0
    """BLOCKS: log2 of the 8-row groups in a layer of a block, 0 to 5."""
    block_layers: int = 0
    """BLOCKS: log2 of the layers in a block, 0 to 5."""

    def read(self, x: int, y: int, length: int) -> bytes | Fault:
        """Bytes of row `y` from its byte `x` on, at most 64 MiB (else INVALID)."""
        if not 0 <= length <= READ_LIMIT:
            return Fault(Reason.INVALID, self.address)
        data = bytearray(length)
        found = self._transfer(lib.softgpu_surface_read, x, y, data)
        return bytes(data) if found is None else found

    def write(self, x: int, y: int, data: Buffer) -> Fault | None:
        """Store bytes. After a fault, those that come before it have been stored."""
        return self._transfer(lib.softgpu_surface_write, x, y, data)

    def _transfer(self, function: Any, x: int, y: int, data: Buffer) -> Fault | None:
        native, failed = ffi.new("softgpu_surface *"), ffi.new("softgpu_fault *")
        try:
            _surface(native, self)
            with ffi.from_buffer("uint8_t[]", data) as raw:
                return fault(failed) if function(native, x, y, raw, len(raw), failed) else None
        except OverflowError:  # more bits than C has for it
            return Fault(Reason.INVALID, self.address)


@dataclass(frozen=True, slots=True)
class Brush:
    """A pattern of 8 by 8 pixels of 1, 2 or 4 bytes; its first pixel falls on (x, y) of the target."""

    pixels: bytes
    x: int = 0
    y: int = 0


class Blit:
    """A rectangle to be drawn: `step` it until it is done. One thread at a time.

    Each pixel becomes f(pattern, source, target), where bit n of `rop` is f of the bits of n (the "ROP3" codes of
    Windows GDI: 0xF0 fills, 0xCC copies). Source and target may overlap where both are linear with one pitch or lie in
    one surface. Numbers that no hardware would take answer INVALID at the first step, and nothing is drawn.
    """

    def __init__(
        self,
        target: Surface,
        rect: Rect,
        pixel_bytes: int,
        rop: int,
        *,
        pattern: int | Brush = 0,
        source: Surface | None = None,
        at: tuple[int, int] = (0, 0),
        clip: Rect | None = None,
        write_mask: int | None = None,
    ) -> None:
        """pattern: one pixel, or a brush. at: the pixel of `source` that the rectangle's first one comes from.

        clip: what lies outside is not touched. write_mask: the bits of a pixel that may change.
        """
        self._keep = (target, source)
        self._native = ffi.new("softgpu_blit *")
        self._valid = self._fill(target, rect, pixel_bytes, rop, pattern, source, at, clip, write_mask)

    @classmethod
    def fill(
        cls,
        target: Surface,
        rect: Rect,
        pixel_bytes: int,
        pattern: int | Brush,
        *,
        rop: int = FILL,
        clip: Rect | None = None,
        write_mask: int | None = None,
    ) -> Blit:
        """Draw a pattern."""
        return cls(target, rect, pixel_bytes, rop, pattern=pattern, clip=clip, write_mask=write_mask)

    @classmethod
    def copy(
        cls,
        target: Surface,
        source: Surface,
        rect: Rect,
        pixel_bytes: int,
        *,
        at: tuple[int, int] = (0, 0),
        rop: int = COPY,
        pattern: int | Brush = 0,
        clip: Rect | None = None,
        write_mask: int | None = None,
    ) -> Blit:
        """Draw what another place shows."""
        return cls(
            target, rect, pixel_bytes, rop, pattern=pattern, source=source, at=at, clip=clip, write_mask=write_mask
        )

    def step(self, budget: Budget) -> Step | Fault:
        """Draw on: DONE, MORE, or what went wrong; then it can't go on, and what was drawn stays."""
        if not self._valid:
            return Fault(Reason.INVALID, write=True)
        failed = ffi.new("softgpu_fault *")
        result = lib.softgpu_blit_step(self._native, ffi.cast("softgpu_budget *", budget.pointer), failed)
        if result == lib.SOFTGPU_OK:
            return Step.DONE
        return Step.MORE if result == lib.SOFTGPU_MORE else fault(failed)

    def _fill(
        self,
        target: Surface,
        rect: Rect,
        pixel_bytes: int,
        rop: int,
        pattern: int | Brush,
        source: Surface | None,
        at: tuple[int, int],
        clip: Rect | None,
        write_mask: int | None,
    ) -> bool:
        native = self._native
        if not 1 <= pixel_bytes <= PIXEL_LIMIT:
            return False
        try:
            _surface(native.target, target)
            if source is not None:
                _surface(native.source, source)
            native.x, native.y, native.width, native.height = rect
            native.source_x, native.source_y = at
            native.pixel_bytes, native.rop = pixel_bytes, rop
            if clip is not None:
                native.flags |= lib.SOFTGPU_CLIP
                native.clip_x, native.clip_y = clip.x, clip.y
                native.clip_x2, native.clip_y2 = clip.x + clip.width, clip.y + clip.height
            if isinstance(pattern, Brush):
                native.flags |= lib.SOFTGPU_BRUSH
                native.brush_x, native.brush_y = pattern.x, pattern.y
                if len(pattern.pixels) != 64 * pixel_bytes:
                    return False
                ffi.memmove(native.brush, pattern.pixels, len(pattern.pixels))
            else:
                _pixel(native.color, pattern, pixel_bytes)
            if write_mask is not None:
                native.flags |= lib.SOFTGPU_MASKED
                _pixel(native.write_mask, write_mask, pixel_bytes)
        except (OverflowError, ValueError):  # more bits than C has for it
            return False
        return bool(lib.softgpu_blit_begin(native) == lib.SOFTGPU_OK)


def _surface(native: Any, surface: Surface) -> None:
    native.space = ffi.cast("softgpu_space *", surface.space.pointer)
    native.address, native.pitch = surface.address, surface.pitch
    native.tiling = surface.tiling
    native.block_rows, native.block_layers = surface.block_rows, surface.block_layers


def _pixel(native: Any, value: int, pixel_bytes: int) -> None:
    ffi.memmove(native, (value & ((1 << (8 * pixel_bytes)) - 1)).to_bytes(16, "little"), 16)
