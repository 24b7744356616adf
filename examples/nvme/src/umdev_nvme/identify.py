"""What Identify tells (section 5.15)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from .commands import COMPLETION_SIZE, ENTRY_SIZE
from .events import LOG_ENTRIES, REQUESTS
from .registers import PAGE_SHIFT_LEAST, VERSION

if TYPE_CHECKING:
    import uuid

    from umdev.device import PciId

DATA_SIZE = 4096
NAMESPACES = 1
BLOCK_SHIFT = 9
BLOCK_SIZE = 1 << BLOCK_SHIFT
MODEL, FIRMWARE = "umdev NVMe", "1"
TRANSFER_SHIFT = 7
MAXIMUM_TRANSFER = 1 << TRANSFER_SHIFT + PAGE_SHIFT_LEAST
"""Bytes of data that one command may move (MDTS)."""
BURST_SHIFT = 3
"""The recommended arbitration burst (RAB)."""
WARNING_KELVIN, CRITICAL_KELVIN = 343, 353
NAME_LENGTH = 256

_CONTROLLER = 1  # CNTRLTYPE: an I/O controller
_LPA_EXTENDED = 1 << 2  # Get Log Page takes an offset and a 32-bit length
_ONCS_WRITE_ZEROES = 1 << 3


def controller(identity: uuid.UUID, pci: PciId, capacity: int) -> bytes:
    """The controller (section 5.15.2.2). `capacity` is in bytes; `identity` makes serial number and subsystem name."""
    data = bytearray(DATA_SIZE)

    def put(offset: int, form: str, *values: int | bytes) -> None:
        struct.pack_into(f"<{form}", data, offset, *values)

    put(0, "HH", pci.vendor, pci.subsystem_vendor or pci.vendor)
    put(4, "20s40s8s", _text(identity.hex[:20], 20), _text(MODEL, 40), _text(FIRMWARE, 8))
    put(72, "B", BURST_SHIFT)
    put(77, "B", TRANSFER_SHIFT)
    put(80, "I", VERSION)
    put(111, "B", _CONTROLLER)
    put(258, "BBBBB", 3, REQUESTS - 1, 1 << 1 | 1, _LPA_EXTENDED, LOG_ENTRIES - 1)  # ACL, AERL, FRMW, LPA, ELPE
    put(266, "HH", WARNING_KELVIN, CRITICAL_KELVIN)
    put(280, "QQ", capacity, 0)
    put(512, "BB", _entry_sizes(ENTRY_SIZE), _entry_sizes(COMPLETION_SIZE))
    put(516, "IH", NAMESPACES, _ONCS_WRITE_ZEROES)
    put(525, "B", 0b11 << 1)  # VWC: no volatile write cache, and a Flush may name all namespaces
    put(768, f"{NAME_LENGTH}s", f"nqn.2014-08.org.nvmexpress:uuid:{identity}".encode())
    put(2048, "H", 1)  # power state 0, the only one: 0.01 W
    return bytes(data)


def namespace(capacity: int) -> bytes:
    """A namespace of `capacity` bytes (section 5.15.2.1): one format, without metadata."""
    data = bytearray(DATA_SIZE)
    blocks = capacity >> BLOCK_SHIFT
    struct.pack_into("<QQQ", data, 0, blocks, blocks, blocks)
    struct.pack_into("<I", data, 128, BLOCK_SHIFT << 16)
    return bytes(data)


def active_namespaces(after: int) -> bytes:
    """Identifiers of the namespaces above `after`, ascending (section 5.15.2.3)."""
    found = [number for number in range(1, NAMESPACES + 1) if number > after]
    return struct.pack(f"<{len(found)}I", *found).ljust(DATA_SIZE, b"\0")


def descriptors(identity: uuid.UUID) -> bytes:
    """The namespace's names (section 5.15.2.4): its UUID."""
    return struct.pack("<BB2x16s", 3, 16, identity.bytes).ljust(DATA_SIZE, b"\0")


def _text(text: str, length: int) -> bytes:
    return text.encode("ascii").ljust(length)


def _entry_sizes(size: int) -> int:
    """Least and greatest size of a queue's entries, which are the same, as powers of two."""
    shift = size.bit_length() - 1
    return shift << 4 | shift
