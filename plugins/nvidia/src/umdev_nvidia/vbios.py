"""A VBIOS for the driver to read: the few tables without which nouveau does not go on.

Layouts: NVIDIA, open-gpu-doc (BIOS-Information-Table, DCB), and Linux, drivers/gpu/drm/nouveau (nvkm/subdev/bios).
The image says that there is no display, nothing to initialise and nothing to clock.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .config_space import NVIDIA, TESLA_M10

SIZE = 4096
SECTOR = 512


class Table(NamedTuple):
    """Bytes at a place of the image."""

    offset: int
    content: bytes


class Information(NamedTuple):
    """A table that the BIT names by a letter."""

    letter: str
    version: int
    table: Table


DISPLAYS = Table(0x300, struct.pack("<BBBBHI", 0x40, 0x1B, 0, 8, 0, 0x4EDC_BDCB).ljust(0x1B, b"\0"))
"""DCB 4.0: a header of 0x1b bytes, no entry of 8 bytes, and its signature: no outputs."""
MEMORY_TIMINGS = Table(0x340, bytes((0x11, 0x15, 0x0C, 0x0B, 0, 0)).ljust(0x15, b"\0"))
"""RAMMAP 1.1: a header of 0x15 bytes, and no entry of 12 bytes with 11 sub-entries."""
VOLTAGES = Table(0x380, bytes((0x12, 2, 0, 0, 0)))
"""Version 1.2: no entry of 2 bytes, and no pins that choose one."""
IDENTITY = Information("i", 2, Table(0x200, bytes(0x20)))
"""Version 0 of the VBIOS: older code looks no further."""
SCRIPTS = Information("I", 1, Table(0x220, bytes(0x20)))
"""No initialisation scripts."""
PERFORMANCE = Information(
    "P",
    2,
    Table(0x240, struct.pack("<IIII", 0, MEMORY_TIMINGS.offset, 0, VOLTAGES.offset).ljust(0x40, b"\0")),
)
"""Where memory timings (at 4) and voltages (at 12) are."""


def _pci_data(offset: int) -> Table:
    """The structure by which any expansion ROM says whose it is: a PC's code, and the last image."""
    class_code = b"\0\x02\x03"
    body = struct.pack("<4sHHHHB", b"PCIR", NVIDIA, TESLA_M10, 0, 0x18, 0) + class_code
    return Table(offset, body + struct.pack("<HHBB", SIZE // SECTOR, 0, 0, 0x80))


def _directory(offset: int, tables: tuple[Information, ...]) -> Table:
    """The BIT: a header of 12 bytes, and entries of 6."""
    header = b"\xff\xb8BIT\0" + struct.pack("<HBBBB", 0x100, 12, 6, len(tables), 0)
    entries = (
        struct.pack("<cBHH", letter.encode(), version, len(table.content), table.offset)
        for letter, version, table in tables
    )
    return Table(offset, header + b"".join(entries))


def build() -> bytes:
    """The image: a ROM header, the tables at their places, and a last byte that makes all of them add up to 0."""
    information = (IDENTITY, SCRIPTS, PERFORMANCE)
    pci_data = _pci_data(0x40)
    image = bytearray(SIZE)
    image[:3] = b"\x55\xaa" + bytes([SIZE // SECTOR])
    struct.pack_into("<H", image, 0x18, pci_data.offset)
    struct.pack_into("<H", image, 0x36, DISPLAYS.offset)
    placed = (pci_data, _directory(0x80, information), DISPLAYS, MEMORY_TIMINGS, VOLTAGES)
    for offset, content in (*placed, *(entry.table for entry in information)):
        image[offset : offset + len(content)] = content
    image[-1] = -sum(image) & 0xFF
    return bytes(image)


IMAGE = build()
