"""A ring or a batch buffer as the streamer reads it: page by page, each dword once."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from umdev.device import PAGE_SIZE
from umdev_softgpu import Fault

from .. import scan

if TYPE_CHECKING:
    from umdev_softgpu import Space

DWORD = 4
LONGEST = 257
"""Dwords of the longest command."""
NOTHING: tuple[int, ...] = ()


class Stream:
    """Dwords from an address on. `privileged`: its commands may use the global table and privileged registers."""

    def __init__(self, space: Space, address: int, *, privileged: bool) -> None:
        self.space, self.privileged = space, privileged
        self._next = address  # of the dword after what was fetched
        self._content = b""
        self._at = 0  # dwords consumed of what was fetched
        self._scanner = scan.Scanner()
        self.passed = 0
        self.unknown = 0

    @property
    def address(self) -> int:
        """Of the next dword."""
        return self._next - (len(self._content) - self._at * DWORD)

    @property
    def ended(self) -> bool:
        """Whether there is no more to read; a batch ends by a command only."""
        return False

    def take(self) -> tuple[int, ...] | Fault | None:
        """The next command that has an effect. Empty: the stream ended, or the next dword is no command.

        None: none so far, look at the budget. A page of memory that is mapped everywhere is padding for hours.
        """
        while True:
            count = len(self._content) // DWORD
            if self._at >= count:
                if self.ended:
                    return NOTHING
                if (fault := self._fetch()) is not None:
                    return fault
                continue
            found = self._scanner.scan(self._content, self._at, count)
            self._at += found.at
            self.passed += found.commands
            if found.stop == scan.END:
                return None
            if found.stop == scan.EXECUTE:
                command = struct.unpack_from(f"<{found.length}I", self._content, self._at * DWORD)
                self._at += found.length
                return command
            if found.stop == scan.UNKNOWN:
                (self.unknown,) = struct.unpack_from("<I", self._content, self._at * DWORD)
                return NOTHING
            if found.stop == scan.PARTIAL:
                if self._no_more():
                    self.unknown = struct.unpack_from("<I", self._content, self._at * DWORD)[0]
                    return NOTHING
                if (fault := self._fetch()) is not None:
                    return fault
                if found.commands:
                    return None  # as for a page that ends with a command

    def _no_more(self) -> bool:
        return False

    def _fetch(self) -> Fault | None:
        """To the end of the page; what is left of the page before stays in front."""
        length = self._room()
        found = self.space.read(self._next, length)
        if isinstance(found, Fault):
            return found
        self._content = self._content[self._at * DWORD :] + found
        self._at = 0
        self._advance(length)
        return None

    def _room(self) -> int:
        return PAGE_SIZE - self._next % PAGE_SIZE

    def _advance(self, length: int) -> None:
        self._next += length


class Batch(Stream):
    """A batch buffer: its end is a command."""


class Limited(Stream):
    """A batch of so many bytes, as an indirect context's."""

    def __init__(self, space: Space, address: int, length: int) -> None:
        super().__init__(space, address, privileged=True)
        self._left = length

    @property
    def ended(self) -> bool:
        return self._left == 0

    def _no_more(self) -> bool:
        return self._left == 0

    def _room(self) -> int:
        return min(super()._room(), self._left)

    def _advance(self, length: int) -> None:
        super()._advance(length)
        self._left -= length


class Ring(Stream):
    """A ring: from its head to its tail, around its end."""

    def __init__(self, space: Space, start: int, size: int, head: int, tail: int) -> None:
        super().__init__(space, start + head, privileged=True)
        self.start, self.size, self.tail = start, size, tail

    @property
    def head(self) -> int:
        """Offset of the next dword."""
        return (self.address - self.start) % self.size

    @property
    def address(self) -> int:
        left = len(self._content) - self._at * DWORD
        return self.start + (self._next - self.start - left) % self.size

    @property
    def ended(self) -> bool:
        return self._fetched == self.tail

    @property
    def _fetched(self) -> int:
        return (self._next - self.start) % self.size

    def _no_more(self) -> bool:
        return self.ended

    def _room(self) -> int:
        fetched = self._fetched
        end = self.tail if self.tail > fetched else self.size
        return min(super()._room(), end - fetched)

    def _advance(self, length: int) -> None:
        self._next += length
        if self._next == self.start + self.size:
            self._next = self.start
