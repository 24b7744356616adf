"""The little of ACPI's machine language that a root bridge needs (ACPI 6.5, chapter 20; resources: 6.4)."""

from __future__ import annotations

import struct

_NAME, _BUFFER, _PACKAGE, _SCOPE, _DEVICE = b"\x08", b"\x11", b"\x12", b"\x10", b"\x5b\x82"


def integer(value: int) -> bytes:
    """A constant, in the shortest form (20.2.3)."""
    if value < 2:
        return bytes([value])
    for prefix, form, limit in ((b"\x0a", "<B", 1 << 8), (b"\x0b", "<H", 1 << 16), (b"\x0c", "<I", 1 << 32)):
        if value < limit:
            return prefix + struct.pack(form, value)
    return b"\x0e" + struct.pack("<Q", value)


def eisa_id(name: str) -> bytes:
    """`PNP0A08` as the number that stands for it (19.6.36)."""
    letters = 0
    for letter in name[:3]:
        letters = letters << 5 | ord(letter) - 0x40
    return b"\x0c" + struct.pack(">HH", letters, int(name[3:], 16))


def name(segment: str, value: bytes) -> bytes:
    """Name (segment, value)."""
    return _NAME + segment.encode() + value


def scope(segment: str, *terms: bytes) -> bytes:
    """Scope (segment) { terms }."""
    return _SCOPE + _sized(segment.encode() + b"".join(terms))


def device(segment: str, *terms: bytes) -> bytes:
    """Device (segment) { terms }."""
    return _DEVICE + _sized(segment.encode() + b"".join(terms))


def package(*elements: bytes) -> bytes:
    """Package () { elements }."""
    return _PACKAGE + _sized(bytes([len(elements)]) + b"".join(elements))


def resources(*descriptors: bytes) -> bytes:
    """ResourceTemplate () { descriptors }."""
    content = b"".join(descriptors) + b"\x79\x00"
    return _BUFFER + _sized(integer(len(content)) + content)


def bus_range(first: int, last: int) -> bytes:
    """WordBusNumber: buses below the bridge."""
    return _word(2, 0, first, last)


def port_window(first: int, last: int) -> bytes:
    """WordIO: ports below the bridge."""
    return _word(1, 3, first, last)


def ports(first: int, length: int) -> bytes:
    """IO: ports of the bridge itself."""
    return struct.pack("<BBHHBB", 0x47, 1, first, first, 1, length)


def memory_window(start: int, end: int) -> bytes:
    """DWordMemory or QWordMemory: addresses below the bridge, neither cached nor prefetched."""
    tag, form, length = (0x87, "<BHBBBIIIII", 23) if end <= 1 << 32 else (0x8A, "<BHBBBQQQQQ", 43)
    return struct.pack(form, tag, length, 0, _FIXED, 1, 0, start, end - 1, 0, end - start)


_FIXED = 0x0C  # both ends of the range are fixed, and it is produced for what lies below


def _word(kind: int, flags: int, first: int, last: int) -> bytes:
    return struct.pack("<BHBBBHHHHH", 0x88, 13, kind, _FIXED, flags, 0, first, last, 0, last - first + 1)


def _sized(content: bytes) -> bytes:
    """Content after its length, which counts itself (20.2.4)."""
    length = len(content)
    if length + 1 < 1 << 6:
        return bytes([length + 1]) + content
    for more in (1, 2, 3):
        total = length + 1 + more
        if total < 1 << 4 + 8 * more:
            return bytes([more << 6 | total & 15]) + (total >> 4).to_bytes(more, "little") + content
    raise AssertionError("no table of ours is so long")
