"""Memory that the device can reach: what a driver allocates for rings, descriptors and data."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

from ..errors import InvalidArgument, StateError
from .words import Words

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from ..addresses import Iova


class DmaBuffer(Words):
    """`size` bytes that the device sees contiguously at `address`, page-aligned, zeros at first.

    The driver's reads and writes are those of a CPU: what the device wrote before its interrupt is seen after `wait`.
    A back end derives from this and gives `_load_bytes`, `_store_bytes`, `_release`; bounds and state are checked here.
    """

    def __init__(self, address: Iova, size: int) -> None:
        self.address = address
        self.size = size
        self._freed = False

    def __repr__(self) -> str:
        return f"<DMA buffer {self.address:#x}+{self.size:#x}{', freed' if self._freed else ''}>"

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`. Raises: InvalidArgument beyond the buffer, StateError after `free`."""
        self._check(offset, length)
        return self._load_bytes(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """Store `data` at `offset`. Raises: InvalidArgument beyond the buffer, StateError after `free`."""
        self._check(offset, len(data))
        self._store_bytes(offset, data)

    def free(self) -> None:
        """Give the memory back; the device must not use it any more. May be called twice."""
        if not self._freed:
            self._freed = True
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.free()

    @abc.abstractmethod
    def _load_bytes(self, offset: int, length: int) -> bytes:
        """Read; the range lies inside."""

    @abc.abstractmethod
    def _store_bytes(self, offset: int, data: bytes) -> None:
        """Write; the range lies inside."""

    @abc.abstractmethod
    def _release(self) -> None:
        """Called once by `free`."""

    def _check(self, offset: int, length: int) -> None:
        if self._freed:
            raise StateError(f"the DMA buffer at {self.address:#x} was freed")
        if offset < 0 or length < 0 or offset + length > self.size:
            raise InvalidArgument(f"{length} bytes at {offset:#x} are not within the buffer of {self.size:#x} bytes")
