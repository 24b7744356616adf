"""Messages that are almost right."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass

NUMBERS = (
    *(0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 31, 32, 0x3F, 0x40, 0xFFF, 0x1000, 0x1001, 0x4000, 0xFFFF, 0x10000),
    *((1 << 20) - 1, 1 << 20, (1 << 20) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32),
    *((1 << 63) - 1, 1 << 63, (1 << 64) - 0x1000, (1 << 64) - 1),
)
HEADER = struct.Struct("<HHIII")


@dataclass(slots=True)
class Sent:
    """One message: bytes, descriptors, and whether it must be answered."""

    number: int
    command: int
    data: bytes
    fds: tuple[int, ...]
    wants_reply: bool


class Files:
    """Descriptors of every kind that a client could send."""

    def __init__(self) -> None:
        self.memory = os.memfd_create("memory")
        os.ftruncate(self.memory, 1 << 20)
        self.read_only = os.open(f"/proc/self/fd/{self.memory}", os.O_RDONLY)
        self.event = os.eventfd(0, os.EFD_NONBLOCK)
        self.full = os.eventfd(0)
        os.eventfd_write(self.full, (1 << 64) - 2)
        self.pipe = os.pipe()
        self.null = os.open("/dev/null", os.O_RDWR)
        self.truncated = os.memfd_create("truncated")

    def good_memory(self) -> int:
        """Mostly memory as it should be; the truncated one is long when it is mapped and short afterwards."""
        if random.random() < 0.2:
            os.ftruncate(self.truncated, random.choice((0, 1 << 12, 1 << 20)))
            return self.truncated
        return self.memory

    def any(self) -> int:
        """Anything."""
        return random.choice(
            (self.memory, self.read_only, self.event, self.full, *self.pipe, self.null, self.truncated)
        )


def number(usual: int, odds: float = 0.12) -> int:
    """`usual`, or now and then something else."""
    return usual if random.random() > odds else random.choice(NUMBERS)


def u32(usual: int) -> int:
    """As above, 32 bits."""
    return number(usual) & 0xFFFFFFFF


def _access(files: Files) -> tuple[int, bytes, list[int]]:
    region = u32(random.choice((0, 0, 0, 2, 4, 5, 7)))
    count = random.choice((1, 2, 4, 4, 8, 16))
    offset = number(random.choice((0, 4, 0x10, 0x10, 0x18, 0x1C, 0x20, 0x24, 0x1000, 0x1FFE)))
    if random.random() < 0.6:
        return 9, struct.pack("<QII", offset, region, u32(count)), []
    value = random.choice((b"\0" * count, (0x100000).to_bytes(16, "little")[:count], random.randbytes(count)))
    return 10, struct.pack("<QII", offset, region, u32(count)) + value, []


def _multi(files: Files) -> tuple[int, bytes, list[int]]:
    count = random.randrange(6)
    entries = b"".join(
        struct.pack(
            "<QII8s", number(4 * random.randrange(10), 0.03), u32(0), number(4, 0.03) & 0xFFFFFFFF, random.randbytes(8)
        )
        for _ in range(count)
    )
    return 15, struct.pack("<Q", number(count)) + entries, []


def _map(files: Files) -> tuple[int, bytes, list[int]]:
    fds = [files.good_memory()] if random.random() < 0.8 else []
    address = random.randrange(64) << 16
    payload = struct.pack(
        "<IIQQQ", u32(32), u32(3), number(random.randrange(16) << 12), number(address), number(1 << 16)
    )
    return 2, payload, fds


def _unmap(files: Files) -> tuple[int, bytes, list[int]]:
    if random.random() < 0.1:
        return 3, struct.pack("<IIQQ", 24, 2, 0, 0), []
    payload = struct.pack("<IIQQ", u32(24), u32(0), number(random.randrange(64) << 16), number(1 << 16))
    return 3, payload, []


def _irqs(files: Files) -> tuple[int, bytes, list[int]]:
    flags = random.choice((0x24, 0x24, 0x24, 0x21, 0x22, 0x11, 0x12, 0x09, 0x14, 0x0C, random.randrange(0x80)))
    count = random.randrange(4)
    data = b"\1\0\1"[:count] if flags & 2 else b""
    fds = (
        [random.choice((files.event, files.event, files.full, files.pipe[1])) for _ in range(count)]
        if flags & 4
        else []
    )
    index = u32(random.randrange(5))
    return 8, struct.pack("<IIIII", u32(20), flags, index, u32(random.randrange(4)), u32(count)) + data, fds


def _question(files: Files) -> tuple[int, bytes, list[int]]:
    command = random.choice((4, 5, 6, 7))
    if command == 5:
        return 5, struct.pack("<IIIIQQ", u32(random.choice((32, 256))), 0, u32(random.randrange(9)), 0, 0, 0), []
    return command, struct.pack("<IIII", u32(random.choice((16, 256))), 0, u32(random.randrange(6)), 0), []


def _dma(files: Files) -> tuple[int, bytes, list[int]]:
    """Enable bus mastering, say where the memory is, or let the device reach for it."""
    kind = random.randrange(6)
    if kind == 0:
        return 10, struct.pack("<QII", 4, 7, 2) + b"\7\0", []
    if kind == 1:
        return 2, struct.pack("<IIQQQ", 32, 3, 0, random.randrange(8) << 16, 1 << 16), []
    if kind == 2:
        address = (random.randrange(8) << 16) + random.choice((0, 8, 0xFFE, 0xFFFE, 0x12345))
        return 10, struct.pack("<QIIQ", 0x10, 0, 8, address), []
    if kind == 3:
        return 9, struct.pack("<QII", 0x18, 0, 4), []
    return 10, struct.pack("<QIII", random.choice((0x1C, 0x20)), 0, 4, random.randrange(1000)), []


def _other(files: Files) -> tuple[int, bytes, list[int]]:
    command = random.choice((13, 13, 16, 17, 18, 14, 11, 12, 1, 0, random.randrange(1 << 16)))
    return command, random.randbytes(random.choice((0, 0, 8, 16, 40))) if command != 13 else b"", []


KINDS: tuple[Callable[[Files], tuple[int, bytes, list[int]]], ...] = (
    *[_access] * 10, *[_multi] * 3, *[_map] * 2, *[_unmap] * 2, *[_irqs] * 3, *[_dma] * 5, _question, _other,
)  # fmt: skip


def message(identity: int, files: Files) -> Sent:
    """One message with a whole header."""
    command, payload, fds = random.choice(KINDS)(files)
    odds = random.random()
    if odds < 0.02:
        payload = payload[: random.randrange(len(payload) + 1)]
    elif odds < 0.04:
        payload += random.randbytes(random.choice((1, 4, 8, 4096)))
    elif odds < 0.06:
        position = random.randrange(len(payload)) if payload else 0
        payload = payload[:position] + random.randbytes(1) + payload[position + 1 :]
    if random.random() < 0.01:
        fds = [files.any() for _ in range(random.randrange(1, 16))]
    posted = random.random() < (0.6 if command in (10, 15) else 0.02)
    flags = 0x10 if posted else 0
    if random.random() < 0.01:
        flags |= random.choice((0x20, 0x40, 0x80, 1 << 31))
    header = HEADER.pack(identity, command & 0xFFFF, 16 + len(payload), flags, random.choice((0, 0, 22)))
    return Sent(identity, command & 0xFFFF, header + payload, tuple(fds), not posted)


def chaos() -> bytes:
    """What no reply can be expected to."""
    kind = random.randrange(5)
    if kind == 0:
        return HEADER.pack(1, 9, random.choice((0, 1, 15)), 0, 0)
    if kind == 1:
        return HEADER.pack(1, 9, random.choice(((1 << 20) + 5000, 1 << 31, (1 << 32) - 1)), 0, 0)
    if kind == 2:
        return HEADER.pack(1, random.randrange(20), 16, random.randrange(2, 16), 0)
    if kind == 3:
        return HEADER.pack(1, 2, 48, 0, 0) + random.randbytes(random.randrange(32))
    return random.randbytes(random.randrange(1, 200))
