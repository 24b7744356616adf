"""What the blitter must do, in numpy: whole rectangles at once, addresses by the tilings' definitions."""

import numpy as np
from umdev_softgpu import Brush, Tiling


def addresses(surface, x, y):
    """Byte addresses in the space of byte columns `x` (one axis) and rows `y` (the other)."""
    x, y = np.asarray(x, dtype=np.int64)[None, :], np.asarray(y, dtype=np.int64)[:, None]
    if surface.tiling is Tiling.LINEAR:
        return surface.address + y * surface.pitch + x
    if surface.tiling is Tiling.X:
        tile = y // 8 * (surface.pitch // 512) + x // 512
        return surface.address + tile * 4096 + y % 8 * 512 + x % 512
    if surface.tiling is Tiling.Y:
        tile = y // 32 * (surface.pitch // 128) + x // 128
        return surface.address + tile * 4096 + x % 128 // 16 * 512 + y % 32 * 16 + x % 16
    rows = 8 << surface.block_rows
    block = y // rows * (surface.pitch // 64) + x // 64
    gob = (block << surface.block_rows + surface.block_layers) + y % rows // 8
    # Bits of the place in a group of 512 bytes: x5, y2, y1, x4, y0, x3..x0 from high to low.
    bit = lambda value, number: value >> number & 1  # noqa: E731
    within = bit(x, 5) << 8 | bit(y, 2) << 7 | bit(y, 1) << 6 | bit(x, 4) << 5 | bit(y, 0) << 4 | x & 15
    return surface.address + gob * 512 + within


def clipped(rect, at, clip):
    """The rectangle and its place in the source after clipping."""
    x1, y1, x2, y2 = rect.x, rect.y, rect.x + rect.width, rect.y + rect.height
    if clip is not None:
        x1, y1 = max(x1, clip.x), max(y1, clip.y)
        x2, y2 = min(x2, clip.x + clip.width), min(y2, clip.y + clip.height)
    return x1, y1, max(x2, x1), max(y2, y1), at[0] + x1 - rect.x, at[1] + y1 - rect.y


def rop3(rop, pattern, source, target):
    """Bit by bit, by the definition: bit n of `rop` is the answer for n = pattern * 4 + source * 2 + target."""
    result = np.zeros_like(target)
    for bit in range(8):
        number = (pattern >> bit & 1) * 4 + (source >> bit & 1) * 2 + (target >> bit & 1)
        result |= ((rop >> number.astype(np.int64)) & 1).astype(np.uint8) << bit
    return result


def pattern_bytes(pattern, pixel_bytes, x, y):
    """The pattern under byte columns `x` and rows `y`."""
    x, y = np.asarray(x)[None, :], np.asarray(y)[:, None]
    if isinstance(pattern, Brush):
        pixels = np.frombuffer(pattern.pixels, np.uint8).reshape(8, 8, pixel_bytes)
        return pixels[(y - pattern.y) % 8, (x // pixel_bytes - pattern.x) % 8, x % pixel_bytes]
    pixel = np.frombuffer((pattern % (1 << 8 * pixel_bytes)).to_bytes(pixel_bytes, "little"), np.uint8)
    return np.broadcast_to(pixel[x % pixel_bytes], (y.shape[0], x.shape[1]))


def draw(memory, physical, target, rect, pixel_bytes, rop, *, pattern=0, source=None, at=(0, 0), clip=None, mask=None):
    """Change `memory` as a blit does; `physical(addresses)` is where a space's addresses lie in it."""
    x1, y1, x2, y2, source_x, source_y = clipped(rect, at, clip)
    x, y = np.arange(x1 * pixel_bytes, x2 * pixel_bytes), np.arange(y1, y2)
    place = physical(addresses(target, x, y))
    old = memory[place]
    shown = np.zeros_like(old)
    if source is not None:
        columns = np.arange(source_x * pixel_bytes, source_x * pixel_bytes + len(x))
        shown = memory[physical(addresses(source, columns, np.arange(source_y, source_y + len(y))))]
    new = rop3(rop, pattern_bytes(pattern, pixel_bytes, x, y), shown, old)
    if mask is not None:
        bits = pattern_bytes(mask, pixel_bytes, x, y)
        new = (old & ~bits) | (new & bits)
    memory[place] = new
