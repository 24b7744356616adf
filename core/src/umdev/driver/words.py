"""Little-endian accesses of 8 to 64 bits over whatever reads and writes bytes at an offset."""

from __future__ import annotations

import abc


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

    def _load(self, offset: int, width: int) -> int:
        return int.from_bytes(self.read(offset, width), "little")

    def _store(self, offset: int, value: int, width: int) -> None:
        self.write(offset, (value & (1 << 8 * width) - 1).to_bytes(width, "little"))
