"""A client's memory: what the device reaches, shared by descriptor or served by message."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from bisect import bisect_right, insort
from typing import TYPE_CHECKING

from umdev.addresses import PAGE_MASK, PAGE_SIZE, Iova
from umdev.driver import DmaBuffer
from umdev.errors import InvalidArgument, NotMapped, TransportError

from .protocol import DmaMapFlag
from .protocol import structs as layout
from .protocol.constants import Command

if TYPE_CHECKING:
    from .client import Client

FIRST_ADDRESS = 1 << 20
"""Buffers start low, so that a device with few address bits reaches them."""

LAST_ADDRESS = 1 << 48


class ClientBuffer(DmaBuffer):
    """One DMA map, from `ClientMemory.allocate`."""

    def __init__(self, memory: ClientMemory, address: Iova, size: int, *, shared: bool) -> None:
        super().__init__(address, size)
        self._memory = memory
        self.descriptor = os.memfd_create("umdev-dma", os.MFD_CLOEXEC) if shared else None
        if self.descriptor is None:
            self._bytes = mmap.mmap(-1, size)
        else:
            try:
                os.ftruncate(self.descriptor, size)
                self._bytes = mmap.mmap(self.descriptor, size)
            except BaseException:
                os.close(self.descriptor)
                raise

    def load(self, offset: int, length: int) -> bytes:
        """What the device reads; the range lies inside."""
        return self._bytes[offset : offset + length]

    def store(self, offset: int, data: bytes) -> None:
        """What the device writes; the range lies inside."""
        self._bytes[offset : offset + len(data)] = data

    def release(self) -> None:
        """Close mapping and descriptor."""
        self._bytes.close()
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def _load_bytes(self, offset: int, length: int) -> bytes:
        return self.load(offset, length)

    def _store_bytes(self, offset: int, data: bytes) -> None:
        self.store(offset, data)

    def _release(self) -> None:
        self._memory.free(self)


class ClientMemory:
    """Buffers by address. Any thread.

    `shared` False: maps carry no descriptor; the server sends DMA_READ and DMA_WRITE, which `read` and `write` serve.
    """

    def __init__(self, *, shared: bool) -> None:
        self.shared = shared
        self._guard = threading.Lock()
        self._addresses: list[int] = []
        self._buffers: dict[int, ClientBuffer] = {}
        self._client: Client | None = None

    def open(self, client: Client) -> None:
        """Whom to tell of maps."""
        self._client = client

    def allocate(self, size: int) -> ClientBuffer:
        """A new buffer, mapped.

        Raises: InvalidArgument, TransportError when there is no memory or descriptor left, and what the server answers.
        """
        if size < 1:
            raise InvalidArgument(f"a DMA buffer of {size} bytes")
        size = (size + PAGE_MASK) & ~PAGE_MASK
        with self._guard:
            address = self._find(size)
            try:
                buffer = ClientBuffer(self, address, size, shared=self.shared)
            except OSError as error:
                failed = TransportError(f"a DMA buffer of {size:#x} bytes: {error.strerror or error}")
                failed.errno = error.errno or errno.EIO
                raise failed from error
            insort(self._addresses, address)
            self._buffers[address] = buffer
        flags = DmaMapFlag.READABLE | DmaMapFlag.WRITABLE
        payload = layout.DMA_MAP.pack(layout.DMA_MAP.size, flags, 0, address, size)
        descriptors = () if buffer.descriptor is None else (buffer.descriptor,)
        try:
            self._connected().request(Command.DMA_MAP, payload, descriptors)
        except BaseException:
            self._forget(buffer)
            raise
        return buffer

    def free(self, buffer: ClientBuffer) -> None:
        """Unmap: when it returns the server uses the memory no more. After `close` there is nothing to do."""
        with self._guard:
            if buffer.address not in self._buffers:
                return
        payload = layout.DMA_UNMAP.pack(layout.DMA_UNMAP.size, 0, buffer.address, buffer.size)
        try:
            self._connected().request(Command.DMA_UNMAP, payload)
        finally:
            self._forget(buffer)

    def read(self, address: int, count: int) -> bytes:
        """Raises: NotMapped."""
        with self._guard:
            return b"".join(buffer.load(start, length) for buffer, start, length in self._parts(address, count))

    def write(self, address: int, data: bytes) -> None:
        """Raises: NotMapped, and nothing is stored."""
        with self._guard:
            for buffer, start, length in list(self._parts(address, len(data))):
                buffer.store(start, data[:length])
                data = data[length:]

    def close(self) -> None:
        """Forget every buffer; the connection is gone already."""
        for buffer in list(self._buffers.values()):
            self._forget(buffer)

    def _find(self, size: int) -> Iova:
        """The first gap, with a page that is never mapped behind it: a device that overruns is seen."""
        address = FIRST_ADDRESS
        for taken in self._addresses:
            if address + size + PAGE_SIZE <= taken:
                break
            address = taken + self._buffers[taken].size + PAGE_SIZE
        if address + size > LAST_ADDRESS:
            raise InvalidArgument(f"no room for a DMA buffer of {size:#x} bytes")
        return Iova(address)

    def _parts(self, address: int, count: int) -> list[tuple[ClientBuffer, int, int]]:
        parts = []
        while count:
            index = bisect_right(self._addresses, address) - 1
            buffer = self._buffers[self._addresses[index]] if index >= 0 else None
            if buffer is None or address >= buffer.address + buffer.size:
                raise NotMapped(f"no buffer at {address:#x}", address, count)
            length = min(count, buffer.address + buffer.size - address)
            parts.append((buffer, address - buffer.address, length))
            address += length
            count -= length
        return parts

    def _forget(self, buffer: ClientBuffer) -> None:
        with self._guard:
            if self._buffers.pop(buffer.address, None) is not None:
                self._addresses.remove(buffer.address)
                buffer.release()

    def _connected(self) -> Client:
        assert self._client is not None, "open() comes first"
        return self._client
