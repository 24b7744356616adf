"""The machine's memory: files that the guest and the devices map each for themselves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from umdev.addresses import GuestPhys
from umdev.errors import InvalidArgument, NotMapped
from umdev.hypervisor import GuestMemory

from . import layout

if TYPE_CHECKING:
    from collections.abc import Iterator

RESERVE = 2 << 20
"""Bytes at the start that the allocator of driver buffers leaves to payloads, tables and the hole."""


@dataclass(frozen=True, slots=True)
class RamPart:
    """`length` bytes at guest address `guest`: at `offset` of `file`, and in the guest mapping at `host`."""

    guest: GuestPhys
    length: int
    file: GuestMemory
    offset: int

    @property
    def end(self) -> int:
        """One past the last address."""
        return self.guest + self.length

    @property
    def host(self) -> int:
        """Where the guest mapping of it begins: for memory slots and protectors, never for Python stores."""
        return self.file.address + self.offset


class Ram:
    """All memory of one machine. `read` and `write` go through the files, so they meet no write-protection."""

    def __init__(self, size: int) -> None:
        """Raises: InvalidArgument."""
        parts = layout.ram_parts(size)
        low = min(size, layout.RAM_LIMIT)
        self.main = GuestMemory(size, reserve=min(RESERVE, low))
        """The first file; its allocator gives out driver buffers (below 4 GiB offsets are addresses)."""
        self.parts = [RamPart(GuestPhys(guest), length, self.main, offset) for guest, length, offset in parts]

    @property
    def size(self) -> int:
        """Usable bytes."""
        return sum(part.length for part in self.parts)

    def add(self, size: int) -> RamPart:
        """More memory, above all there is and above 4 GiB. Raises: InvalidArgument."""
        guest = max(layout.HIGH_BASE, *(part.end for part in self.parts))
        if guest + size > layout.MEMORY64[0]:
            raise InvalidArgument(
                f"{size:#x} bytes of memory at {guest:#x} leave no room for BARs: they begin at 256 GiB"
            )
        part = RamPart(GuestPhys(guest), size, GuestMemory(size, reserve=0), 0)
        self.parts.append(part)
        return part

    def drop(self, part: RamPart) -> None:
        """Undo an `add`."""
        self.parts.remove(part)
        part.file.close()

    def read(self, guest: int, length: int) -> bytes:
        """Bytes as they are in memory. Raises: NotMapped."""
        return b"".join(
            os.pread(part.file.descriptor, count, offset) for part, offset, count in self._pieces(guest, length)
        )

    def write(self, guest: int, data: bytes) -> None:
        """Store bytes. Raises: NotMapped, and nothing is stored."""
        pieces = list(self._pieces(guest, len(data)))
        view = memoryview(data)
        for part, offset, count in pieces:
            os.pwrite(part.file.descriptor, view[:count], offset)
            view = view[count:]

    def _pieces(self, guest: int, length: int) -> Iterator[tuple[RamPart, int, int]]:
        reached, end = guest, guest + length
        while reached < end:
            part = next((part for part in self.parts if part.guest <= reached < part.end), None)
            if part is None:
                raise NotMapped(f"{reached:#x} is no memory of the machine", reached, end - reached)
            count = min(end, part.end) - reached
            yield part, part.offset + reached - part.guest, count
            reached += count

    def close(self) -> None:
        """Give the memory back. May be called twice."""
        for part in self.parts:
            part.file.close()
