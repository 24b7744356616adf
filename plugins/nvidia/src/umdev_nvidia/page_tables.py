"""GF100's page tables, and the instance blocks that point to them.

Facts: Linux, drivers/gpu/drm/nouveau (nvkm/subdev/mmu/vmmgf100.c): 40 bits of address, a directory of 8192 entries of
128 MiB each, tables of 4 KiB or of 128 KiB pages. An instance block has the directory's address at 0x200 (bits 1:0: 0
video memory, 2 and 3 the system's) and the last valid address at 0x208.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from umdev_softgpu import Decoder, Fault, Format, Level, Target

from ._fast import ffi, lib

if TYPE_CHECKING:
    from umdev_softgpu import MemoryPort, Space

ADDRESS_BITS = 40
LEVELS = (Level(27, 13, 8), Level(12, 15, 8), Level(17, 10, 8))
DECODER = Decoder(int(ffi.cast("uintptr_t", ffi.addressof(lib, "nv_decode"))))
_DIRECTORY = 0x200
_PAIR = struct.Struct("<QQ")


class Tables(NamedTuple):
    """Where a directory is, and the last address that it may be asked for."""

    target: Target
    address: int
    limit: int


def tables_of(vram: Space, instance: int) -> Tables | Fault:
    """What the instance block at an offset of video memory says."""
    raw = vram.read(instance + _DIRECTORY, _PAIR.size)
    if isinstance(raw, Fault):
        return raw
    directory, limit = _PAIR.unpack(raw)
    target = Target.SYSTEM if directory & 2 else Target.LOCAL
    return Tables(target, directory & 0xFF_FFFF_F000, limit | 0xFFF)


def address_space(port: MemoryPort, tables: Tables) -> Space:
    """Addresses as they are behind the tables; a limit counts as the next power of two."""
    space = port.paged(Format(LEVELS, min(tables.limit.bit_length(), ADDRESS_BITS)), DECODER)
    space.set_root(tables.address, tables.target)
    return space
