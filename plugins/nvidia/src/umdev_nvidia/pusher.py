"""From a channel's ring to methods: ring entries, push buffers, headers.

Formats: NVIDIA, open-gpu-doc (manuals, dev_ram and dev_pbdma; class cla16f.h): an entry of the ring has the address in
bits 39:2 and the length in dwords in bits 62:42; a header has its kind in bits 31:29, count or data in 28:16,
subchannel in 15:13 and the method's dword in 11:0. Each dword is read once.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from umdev_softgpu import Fault

from .trouble import Client, HostError, PageFault, PbdmaError

if TYPE_CHECKING:
    from umdev_softgpu import Space

    from .user_page import UserPage

CHUNK = 1024
"""Dwords that are fetched at a time."""
INCREASING, NON_INCREASING, IMMEDIATE, INCREASE_ONCE = 1, 3, 4, 5
_ENTRY = struct.Struct("<II")


class Method(NamedTuple):
    """What a header and a dword come to."""

    subchannel: int
    method: int
    data: int


NOTHING = Method(0, 0x08, 0)
"""The host's no-operation: what a stretch without methods comes to."""


class Pusher:
    """One channel's way through its ring. Not two threads at once."""

    def __init__(self, space: Space, ring: int, entries: int) -> None:
        """`ring`: its address in the channel's space; `entries`: a power of two."""
        self.space, self.ring, self.entries = space, ring, entries
        self.get = 0
        """The entry that is next."""
        self.address = 0
        """Where the push buffer goes on."""
        self.last = 0
        """Where the last push buffer ended."""
        self._began = False
        self._left = 0  # dwords of it that were not fetched
        self._words: tuple[int, ...] = ()
        self._at = 0
        self._kind = self._count = self._method = self._subchannel = 0
        self.fetched = 0
        self.finished = False
        """An entry has come to its end since somebody last looked."""

    def take(self, user_page: UserPage) -> Method | None:
        """The next method; None when the ring is empty up to the put pointer. A bounded amount of work.

        Raises: PageFault, HostError (what was wrong is passed over).
        """
        if self._at == len(self._words) and not self._fetch(user_page):
            return None
        while self._at < len(self._words):
            word = self._words[self._at]
            self._at += 1
            if self._count:
                method = Method(self._subchannel, self._method, word)
                self._count -= 1
                if self._kind != NON_INCREASING:
                    self._method += 4
                if self._kind == INCREASE_ONCE:
                    self._kind = NON_INCREASING
                return method
            if word and (immediate := self._header(word)) is not None:
                return immediate
        return NOTHING

    def _header(self, word: int) -> Method | None:
        """Zero dwords are padding; so is a header that counts none."""
        kind, count, subchannel, method = word >> 29, word >> 16 & 0x1FFF, word >> 13 & 7, (word & 0xFFF) << 2
        if kind == IMMEDIATE:
            return Method(subchannel, method, count)
        if kind not in (INCREASING, NON_INCREASING, INCREASE_ONCE):
            self._drop()
            raise HostError(PbdmaError.PBENTRY, method, word, subchannel)
        self._kind, self._count, self._method, self._subchannel = kind, count, method, subchannel
        return None

    def _fetch(self, user_page: UserPage) -> bool:
        """More dwords, at most CHUNK and perhaps none; False: the ring is empty."""
        if not self._left:
            self._finish()
            put = user_page.put
            if put >= self.entries:
                raise HostError(PbdmaError.GPPTR, data=put)
            if self.get == put:
                return False
            low, high = _ENTRY.unpack(self._read(self.ring + 8 * self.get, 8))
            self._began = True
            self.address, self._left = (high & 0xFF) << 32 | low & ~3, high >> 10 & 0x1F_FFFF
        count = min(self._left, CHUNK)
        self._words = struct.unpack(f"<{count}I", self._read(self.address, 4 * count))
        self._at = 0
        self._left -= count
        self.address += 4 * count
        self.fetched += count
        return True

    def _finish(self) -> None:
        """An entry has come to its end; one without dwords is control of the host's, of which none is needed here."""
        if self._began:
            self._began, self.finished = False, True
            self.last = self.address
            self.get = (self.get + 1) % self.entries

    def _drop(self) -> None:
        """Go on with the next entry."""
        self._left = self._count = 0
        self._words, self._at = (), 0

    def _read(self, address: int, length: int) -> bytes:
        raw = self.space.read(address, length)
        if isinstance(raw, Fault):
            raise PageFault(raw, Client.HOST)
        return raw
