"""Little-endian accesses of 8 to 64 bits over whatever reads and writes bytes at an offset."""

from __future__ import annotations

import abc
import time

from ..errors import TimedOut

_FIRST_PAUSE, _LAST_PAUSE = 0.000_05, 0.001
"""Seconds between two looks of `wait32`: the device may answer at once, or need the processor that looks."""


class Words(abc.ABC):
    """Each call is one access of its width; bytes are little-endian, as PCI's are."""

    @abc.abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`."""

    @abc.abstractmethod
    def write(self, offset: int, data: bytes) -> None:
        """Store `data` at `offset`."""

    def read8(self, offset: int) -> int:
        """One byte."""
        return self._load(offset, 1)

    def read16(self, offset: int) -> int:
        """Two bytes."""
        return self._load(offset, 2)

    def read32(self, offset: int) -> int:
        """Four bytes."""
        return self._load(offset, 4)

    def read64(self, offset: int) -> int:
        """Eight bytes."""
        return self._load(offset, 8)

    def write8(self, offset: int, value: int) -> None:
        """One byte; higher bits of `value` are dropped, as of a register."""
        self._store(offset, value, 1)

    def write16(self, offset: int, value: int) -> None:
        """Two bytes; higher bits of `value` are dropped."""
        self._store(offset, value, 2)

    def write32(self, offset: int, value: int) -> None:
        """Four bytes; higher bits of `value` are dropped."""
        self._store(offset, value, 4)

    def write64(self, offset: int, value: int) -> None:
        """Eight bytes; higher bits of `value` are dropped."""
        self._store(offset, value, 8)

    def wait32(self, offset: int, mask: int, value: int, *, timeout: float) -> int:
        """Read four bytes again and again until they are `value` under `mask`; returns what was read, all of it.

        At least one read, and one after `timeout` seconds have passed. A function that is gone reads as all ones: wait
        for a bit that becomes 0 where there is a choice.

        Raises: TimedOut with what was read last, and what `read32` raises.
        """
        deadline = time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while True:
            left = deadline - time.monotonic()
            found = self.read32(offset)
            if found & mask == value:
                return found
            if left <= 0:
                raise TimedOut(
                    f"{offset:#x} of {self!r} still reads {found:#x} after {timeout} s: under {mask:#x} that is "
                    f"{found & mask:#x}, not {value:#x}"
                )
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LAST_PAUSE)

    def _load(self, offset: int, width: int) -> int:
        return int.from_bytes(self.read(offset, width), "little")

    def _store(self, offset: int, value: int, width: int) -> None:
        self.write(offset, (value & (1 << 8 * width) - 1).to_bytes(width, "little"))
