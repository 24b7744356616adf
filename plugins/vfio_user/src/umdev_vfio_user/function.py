"""The driver's view of a function behind vfio-user."""

from __future__ import annotations

import logging
import os
import socket
import threading
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from umdev.addresses import RegionOffset
from umdev.driver import DriverDoorbell, Function, RegionInfo
from umdev.errors import InvalidArgument, NotSupported, ProtocolError, StateError
from umdev.services import Area

from .buffers import ClientBuffer, ClientMemory
from .client import TIMEOUT, Client
from .io_fds import decode_io_fds, expect_eventfd
from .protocol import IrqAction, IrqData, RegionInfoFlag
from .protocol import structs as layout
from .protocol.constants import CAP_SPARSE_MMAP, IRQ_COUNT, MAX_FDS, REGION_COUNT, Command
from .protocol.version import OURS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from struct import Struct

log = logging.getLogger("umdev.vfio_user")

INFO_ROOM = 1 << 16
"""Bytes of reply to GET_REGION_INFO, which are 4,000 areas, and to GET_REGION_IO_FDS."""

MAX_CAPABILITIES = 16
MAX_VECTORS = 2048
"""Of one kind, MSI-X having the most (PCI Local Bus 3.0, 6.8.2.3)."""
FIRST_BAR = 0x10
BARS = 6
CONFIG = 7


class VfioUserFunction(Function):
    """A `umdev.driver.Function` over a vfio-user connection, of umdev's server or any other.

    MSI-X table, masks and pending bits are the server's: it is told so when the connection begins.
    """

    def __init__(
        self,
        server: str | os.PathLike[str] | socket.socket,
        *,
        share_memory: bool = True,
        posted: bool = False,
        timeout: float = TIMEOUT,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """Connect to the path, or take over the connected socket.

        `share_memory` False: buffers are not mapped by the server but reached by messages, which a thread serves.
        `posted`: writes to memory BARs do not wait for the device. `timeout`: seconds for each reply. `on_close` is
        called once, after the connection is gone.

        Raises: SocketPathError, ProtocolError, Disconnected, TransportError.
        """
        self._memory = ClientMemory(shared=share_memory)
        ours = replace(OURS, vector_state="core")
        if isinstance(server, socket.socket):
            self._client = Client(server, memory=self._memory, timeout=timeout, capabilities=ours)
        else:
            path = os.fspath(server)
            self._client = Client.connect(path, memory=self._memory, timeout=timeout, capabilities=ours)
        self._memory.open(self._client)
        self._on_close = on_close
        self._posted: frozenset[int] = frozenset()
        self._regions: dict[int, RegionInfo] = {}
        self._irq_counts: list[int] = []
        self._asking = threading.Lock()
        self._doorbells: dict[int, dict[int, DriverDoorbell]] = {}
        self._bell_descriptors: list[int] = []
        self._closed = False
        try:
            self._discover()
            if posted:  # asked once: a question per write would wait for the device
                self._posted = frozenset(index for index in self._regions if self._is_memory(index))
            if not share_memory:
                self._client.serve_memory()
        except BaseException:
            self.close()
            raise

    @property
    def regions(self) -> dict[int, RegionInfo]:
        """As the server described them when the connection began."""
        return self._regions

    def region_read(self, index: int, offset: int, length: int) -> bytes:
        """One REGION_READ. Raises: InvalidArgument; Disconnected, TransportError."""
        payload, _ = self._client.request(Command.REGION_READ, self._access(index, offset, length))
        data = payload[layout.REGION_ACCESS.size :]
        if len(data) != length:
            raise ProtocolError(f"{len(data)} bytes for a read of {length}")
        return data

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        """One REGION_WRITE, without a reply for memory BARs of a function that was opened `posted`."""
        payload = self._access(index, offset, len(data)) + bytes(data)
        if index in self._posted:
            self._client.post(Command.REGION_WRITE, payload)
        else:
            self._client.request(Command.REGION_WRITE, payload)

    def allocate(self, size: int) -> ClientBuffer:
        """A buffer with a DMA map of its own."""
        return self._memory.allocate(size)

    def irq_count(self, index: int) -> int:
        """As the server said when the connection began."""
        return self._irq_counts[index] if 0 <= index < len(self._irq_counts) else 0

    def connect_irq(self, index: int, descriptors: Sequence[int]) -> None:
        """SET_IRQS, in as many messages as the server's limit of descriptors asks for.

        After a failure vectors of the first messages may be connected anew, and those of the failed one are silent.
        """
        count = self.irq_count(index)
        if len(descriptors) > count:
            raise InvalidArgument(f"{len(descriptors)} descriptors for {count} vectors")
        descriptors = (*descriptors, *(-1,) * (count - len(descriptors)))
        most = min(self._client.server.max_msg_fds, MAX_FDS)
        start = 0
        for empty, group in groupby(descriptors, lambda descriptor: descriptor < 0):
            rest = list(group)
            while rest:
                part, rest = rest[:most], rest[most:]
                self._set_irqs(index, start, len(part), IrqData.EVENTFD, IrqAction.TRIGGER, () if empty else part)
                start += len(part)

    def connect_unmask(self, index: int, descriptor: int) -> None:
        """Let an eventfd unmask INTx; -1 ends it. Raises: InvalidArgument."""
        descriptors = () if descriptor < 0 else (descriptor,)
        self._set_irqs(index, 0, 1, IrqData.EVENTFD, IrqAction.UNMASK, descriptors)

    def disable_irq(self, index: int) -> None:
        """SET_IRQS for no vector."""
        if self.irq_count(index):
            self._set_irqs(index, 0, 0, IrqData.NONE, IrqAction.TRIGGER)

    def mask_irq(self, index: int, vector: int = 0) -> None:
        """Hold a vector back at the server."""
        self._set_irqs(index, vector, 1, IrqData.NONE, IrqAction.MASK)

    def unmask_irq(self, index: int, vector: int = 0) -> None:
        """Undo it."""
        self._set_irqs(index, vector, 1, IrqData.NONE, IrqAction.UNMASK)

    def trigger_irq(self, index: int, vector: int = 0) -> None:
        """Let the server signal a vector as a test of the connection."""
        self._set_irqs(index, vector, 1, IrqData.NONE, IrqAction.TRIGGER)

    def doorbells(self, index: int) -> Mapping[int, DriverDoorbell]:
        """What the server offers as ioeventfds (GET_REGION_IO_FDS); it is asked once per region.

        Raises: InvalidArgument, StateError; ProtocolError for a bad answer; Disconnected, TransportError.
        """
        if index not in self._regions:
            raise InvalidArgument(f"{self} has no region {index}")
        with self._asking:
            if self._closed:
                raise StateError(f"{self} is closed")
            if index not in self._doorbells:
                self._doorbells[index] = self._ask_doorbells(index)
            return self._doorbells[index]

    def reset(self) -> None:
        """DEVICE_RESET."""
        self._client.request(Command.DEVICE_RESET)

    def close(self) -> None:
        """End the connection: the server lets go of everything that was this client's. In a process that was forked
        since, only the copies of descriptors are given back.

        What `on_close` raises is logged.
        """
        if self._closed:
            return
        self._closed = True
        self._client.close()
        self._memory.close()
        with self._asking:
            for bells in self._doorbells.values():
                for bell in bells.values():
                    bell.close()
            for descriptor in self._bell_descriptors:
                os.close(descriptor)
        for info in self._regions.values():
            if info.descriptor is not None:
                os.close(info.descriptor)
        if self._on_close is not None:
            try:
                self._on_close()
            except Exception:
                log.exception("%s: what ends it has failed", self)

    def _access(self, index: int, offset: int, length: int) -> bytes:
        if index not in self._regions or not 0 <= offset < 1 << 64 or not 0 <= length < 1 << 32:
            raise InvalidArgument(f"{length} bytes at {offset:#x} of region {index}")
        return layout.REGION_ACCESS.pack(offset, index, length)

    def _is_memory(self, index: int) -> bool:
        return index < BARS and not self.region_read(CONFIG, FIRST_BAR + 4 * index, 4)[0] & 1

    def _set_irqs(
        self, index: int, start: int, count: int, data: IrqData, action: IrqAction, descriptors: Sequence[int] = ()
    ) -> None:
        if not 0 <= start <= start + count <= self.irq_count(index):
            raise InvalidArgument(f"interrupt index {index} has {self.irq_count(index)} vectors; there is no {start}")
        payload = layout.IRQ_SET.pack(layout.IRQ_SET.size, data | action, index, start, count)
        self._client.request(Command.DEVICE_SET_IRQS, payload, descriptors)

    def _discover(self) -> None:
        info = layout.DEVICE_INFO.pack(layout.DEVICE_INFO.size, 0, 0, 0)
        reply, _ = self._client.request(Command.DEVICE_GET_INFO, info)
        _, _, regions, irqs = _unpack(layout.DEVICE_INFO, reply)
        for index in range(min(regions, REGION_COUNT)):
            region = self._region_info(index)
            if region.size:
                self._regions[index] = region
        for index in range(min(irqs, IRQ_COUNT)):
            question = layout.IRQ_INFO.pack(layout.IRQ_INFO.size, 0, index, 0)
            try:
                reply, _ = self._client.request(Command.DEVICE_GET_IRQ_INFO, question)
            except InvalidArgument:
                self._irq_counts.append(0)  # the server has no such type
            else:
                count = _unpack(layout.IRQ_INFO, reply)[3]
                if count > MAX_VECTORS:
                    raise ProtocolError(f"interrupt index {index} is said to have {count} vectors")
                self._irq_counts.append(count)

    def _ask_doorbells(self, index: int) -> dict[int, DriverDoorbell]:
        question = layout.REGION_IO_FDS.pack(INFO_ROOM, 0, index, 0)
        try:
            reply, descriptors = self._client.request(Command.DEVICE_GET_REGION_IO_FDS, question)
        except NotSupported:
            return {}
        try:
            found: dict[int, DriverDoorbell] = {}
            for part in decode_io_fds(reply, index, self._regions[index].size, len(descriptors)):
                expect_eventfd(descriptors[part.descriptor])
                bell = DriverDoorbell(descriptors[part.descriptor], part.offset, part.size, part.value)
                found.setdefault(part.offset, bell)
        except BaseException:
            for unused in descriptors:
                os.close(unused)
            raise
        self._bell_descriptors += descriptors
        return found

    def _region_info(self, index: int) -> RegionInfo:
        question = layout.REGION_INFO.pack(INFO_ROOM, 0, index, 0, 0, 0)
        reply, descriptors = self._client.request(Command.DEVICE_GET_REGION_INFO, question)
        try:
            _, flags, _, start, size, offset = _unpack(layout.REGION_INFO, reply)
            descriptor = descriptors[0] if descriptors and flags & RegionInfoFlag.MMAP else None
            areas: tuple[Area, ...] = ()
            if descriptor is not None:
                areas = (Area(index, RegionOffset(0), size),)
                if flags & RegionInfoFlag.CAPS:
                    areas = _areas(index, size, reply, start)
        except BaseException:
            for unused in descriptors:
                os.close(unused)
            raise
        for unused in descriptors[1 if descriptor is not None else 0 :]:
            os.close(unused)
        return RegionInfo(
            index=index,
            size=size,
            readable=bool(flags & RegionInfoFlag.READ),
            writable=bool(flags & RegionInfoFlag.WRITE),
            areas=areas,
            descriptor=descriptor,
            descriptor_offset=offset,
        )


def _unpack(form: Struct, reply: bytes, start: int = 0) -> tuple[int, ...]:
    if start < 0 or start + form.size > len(reply):
        raise ProtocolError(f"a reply with {len(reply)} bytes, where {start + form.size} are needed")
    fields: tuple[int, ...] = form.unpack_from(reply, start)
    return fields


def _areas(region: int, size: int, reply: bytes, start: int) -> tuple[Area, ...]:
    """The sparse areas among the capabilities; the whole region if there is no such list."""
    for _ in range(MAX_CAPABILITIES):
        if start == 0:
            break
        kind, _, following = _unpack(layout.CAPABILITY, reply, start)
        if kind == CAP_SPARSE_MMAP:
            position = start + layout.CAPABILITY.size
            count, _ = _unpack(layout.SPARSE_MMAP, reply, position)
            position += layout.SPARSE_MMAP.size
            if count > (len(reply) - position) // layout.SPARSE_AREA.size:
                raise ProtocolError(f"{count} areas in a reply of {len(reply)} bytes")
            found = []
            for number in range(count):
                offset, length = _unpack(layout.SPARSE_AREA, reply, position + number * layout.SPARSE_AREA.size)
                if offset + length > size:
                    raise ProtocolError(f"area {offset:#x}+{length:#x} in a region of {size:#x} bytes")
                found.append(Area(region, RegionOffset(offset), length))
            return tuple(found)
        start = following
    return (Area(region, RegionOffset(0), size),)
