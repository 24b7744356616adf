"""Driver buffers in guest memory of this process, where bus addresses are guest-physical."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..addresses import PAGE_MASK, Iova
from ..driver import DmaBuffer
from ..errors import InvalidArgument

if TYPE_CHECKING:
    from .guest import GuestMemory

__all__ = ["GuestBuffer"]


class GuestBuffer(DmaBuffer):
    """A part of guest memory, in whole pages. The driver's loads and stores run in C, without the GIL."""

    def __init__(self, memory: GuestMemory, size: int) -> None:
        """`size` is rounded up. Raises: InvalidArgument, UmdevError when guest memory is used up."""
        if size < 1:
            raise InvalidArgument(f"a DMA buffer of {size} bytes")
        size = (size + PAGE_MASK) & ~PAGE_MASK
        super().__init__(Iova(memory.allocate(size)), size)
        self._memory = memory

    def _load_bytes(self, offset: int, length: int) -> bytes:
        return self._memory.load(self.address + offset, length)

    def _store_bytes(self, offset: int, data: bytes) -> None:
        self._memory.store(self.address + offset, data)

    def _release(self) -> None:
        self._memory.free(self.address)
