"""Requests: from payload to event, every number distrusted."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from umdev.errors import ProtocolError

from . import structs
from .constants import (
    IRQ_ACTION_MASK,
    IRQ_COUNT,
    IRQ_DATA_MASK,
    MAX_TRANSFER,
    REGION_COUNT,
    Command,
    DmaMapFlag,
    DmaUnmapFlag,
    IrqAction,
    IrqData,
    command_name,
)
from .events import (
    DeviceFeature,
    DeviceReset,
    DmaMap,
    DmaRead,
    DmaUnmap,
    DmaWrite,
    GetDeviceInfo,
    GetIrqInfo,
    GetRegionInfo,
    GetRegionIoFds,
    Message,
    RegionRead,
    RegionWrite,
    RegionWriteMulti,
    Request,
    SetIrqs,
    Version,
)
from .version import decode_version

if TYPE_CHECKING:
    from collections.abc import Callable
    from struct import Struct

END_OF_ADDRESSES = 1 << 64


class Refused(ProtocolError):
    """The request is answered with `errno`; the connection goes on."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.errno = code


def _fixed(message: Message, layout: Struct, *, exact: bool = True) -> tuple[int, ...]:
    """The fields of the fixed part. With `exact`, nothing may follow it."""
    length = len(message.payload)
    if length < layout.size or (exact and length != layout.size):
        raise Refused(errno.EINVAL, f"{command_name(message.command)} with {length} bytes of payload")
    fields: tuple[int, ...] = layout.unpack_from(message.payload)
    return fields


def _require(condition: bool, text: str, code: int = errno.EINVAL) -> None:
    if not condition:
        raise Refused(code, text)


def _no_descriptors(message: Message) -> None:
    _require(not message.descriptors, f"{command_name(message.command)} with descriptors")


def _range(address: int, size: int) -> None:
    _require(0 < size <= END_OF_ADDRESSES - address, f"range {address:#x}+{size:#x}")


def _version(message: Message) -> Request:
    major, minor, capabilities = decode_version(message.payload)
    return Version(major, minor, capabilities)


def _dma_map(message: Message) -> Request:
    argsz, flags, offset, address, size = _fixed(message, structs.DMA_MAP)
    _require(argsz >= structs.DMA_MAP.size, f"DMA_MAP argsz {argsz}")
    _require(flags != 0 and not flags & ~3, f"DMA_MAP flags {flags:#x}")
    _range(address, size)
    _require(len(message.descriptors) <= 1, f"DMA_MAP with {len(message.descriptors)} descriptors")
    _require(offset <= (1 << 63) - size, f"DMA_MAP offset {offset:#x}")
    descriptor = message.descriptors[0] if message.descriptors else None
    return DmaMap(address, size, offset, DmaMapFlag(flags), descriptor)


def _dma_unmap(message: Message) -> Request:
    _no_descriptors(message)
    argsz, flags, address, size = _fixed(message, structs.DMA_UNMAP, exact=False)
    _require(argsz >= structs.DMA_UNMAP.size, f"DMA_UNMAP argsz {argsz}")
    _require(not flags & DmaUnmapFlag.GET_DIRTY_BITMAP, "dirty page logging is not offered", errno.EOPNOTSUPP)
    # int(): the inversion of a flag knows named bits only.
    _require(not flags & ~int(DmaUnmapFlag.ALL), f"DMA_UNMAP flags {flags:#x}")
    _require(len(message.payload) == structs.DMA_UNMAP.size, f"DMA_UNMAP with {len(message.payload)} bytes of payload")
    everything = bool(flags & DmaUnmapFlag.ALL)
    if everything:
        _require(address == 0 and size == 0, "DMA_UNMAP of all maps with a range")
    else:
        # QEMU unmaps ranges that end at the end of the address space, and beyond: what lies inside goes.
        _require(size > 0, "DMA_UNMAP of nothing")
    return DmaUnmap(address, min(size, END_OF_ADDRESSES - address), everything, message.payload)


def _device_info(message: Message) -> Request:
    _no_descriptors(message)
    argsz, *_ = _fixed(message, structs.DEVICE_INFO)
    _require(argsz >= structs.DEVICE_INFO.size, f"DEVICE_GET_INFO argsz {argsz}")
    return GetDeviceInfo(argsz)


def _region_info(message: Message) -> Request:
    _no_descriptors(message)
    argsz, _, index, *_ = _fixed(message, structs.REGION_INFO)
    _require(argsz >= structs.REGION_INFO.size, f"DEVICE_GET_REGION_INFO argsz {argsz}")
    _require(index < REGION_COUNT, f"region {index}")
    return GetRegionInfo(index, argsz)


def _region_io_fds(message: Message) -> Request:
    _no_descriptors(message)
    argsz, flags, index, count = _fixed(message, structs.REGION_IO_FDS)
    _require(argsz >= structs.REGION_IO_FDS.size, f"DEVICE_GET_REGION_IO_FDS argsz {argsz}")
    _require(flags == 0 and count == 0, "DEVICE_GET_REGION_IO_FDS flags or count")
    _require(index < REGION_COUNT, f"region {index}")
    return GetRegionIoFds(index, argsz)


def _irq_info(message: Message) -> Request:
    _no_descriptors(message)
    argsz, _, index, _ = _fixed(message, structs.IRQ_INFO)
    _require(argsz >= structs.IRQ_INFO.size, f"DEVICE_GET_IRQ_INFO argsz {argsz}")
    _require(index < IRQ_COUNT, f"interrupt type {index}")
    return GetIrqInfo(index, argsz)


def _set_irqs(message: Message) -> Request:
    argsz, flags, index, start, count = _fixed(message, structs.IRQ_SET, exact=False)
    rest = message.payload[structs.IRQ_SET.size :]
    _require(argsz >= structs.IRQ_SET.size, f"DEVICE_SET_IRQS argsz {argsz}")
    _require(index < IRQ_COUNT, f"interrupt type {index}")
    _require(not flags & ~(IRQ_DATA_MASK | IRQ_ACTION_MASK), f"DEVICE_SET_IRQS flags {flags:#x}")
    try:
        data, action = IrqData(flags & IRQ_DATA_MASK), IrqAction(flags & IRQ_ACTION_MASK)
    except ValueError as error:
        raise Refused(errno.EINVAL, f"DEVICE_SET_IRQS flags {flags:#x}") from error
    _require(start + count <= 1 << 16, f"DEVICE_SET_IRQS vectors {start}+{count}")
    chosen: tuple[bool, ...] = ()
    if data is IrqData.BOOL:
        _require(len(rest) == count, f"DEVICE_SET_IRQS with {len(rest)} booleans for {count} vectors")
        chosen = tuple(byte != 0 for byte in rest)
    else:
        _require(not rest, f"DEVICE_SET_IRQS with {len(rest)} bytes of data")
    if data is IrqData.EVENTFD:
        fits = not message.descriptors or len(message.descriptors) == count
        _require(fits, f"DEVICE_SET_IRQS with {len(message.descriptors)} descriptors for {count} vectors")
    else:
        _no_descriptors(message)
    if count == 0:
        _require(data is IrqData.NONE and action is IrqAction.TRIGGER and start == 0, "DEVICE_SET_IRQS for no vector")
    return SetIrqs(index, start, count, data, action, chosen, message.descriptors)


def _access(offset: int, region: int, count: int) -> None:
    _require(region < REGION_COUNT, f"region {region}")
    _require(count <= MAX_TRANSFER, f"{count} bytes in one message", errno.E2BIG)
    _require(offset <= END_OF_ADDRESSES - count, f"range {offset:#x}+{count:#x}")


def _region_read(message: Message) -> Request:
    _no_descriptors(message)
    offset, region, count = _fixed(message, structs.REGION_ACCESS)
    _access(offset, region, count)
    return RegionRead(region, offset, count)


def _region_write(message: Message) -> Request:
    _no_descriptors(message)
    offset, region, count = _fixed(message, structs.REGION_ACCESS, exact=False)
    data = message.payload[structs.REGION_ACCESS.size :]
    _require(len(data) == count, f"REGION_WRITE of {count} with {len(data)} bytes")
    _access(offset, region, count)
    return RegionWrite(region, offset, data)


def _region_write_multi(message: Message) -> Request:
    _no_descriptors(message)
    (count,) = _fixed(message, structs.MULTI_COUNT, exact=False)
    rest = message.payload[structs.MULTI_COUNT.size :]
    _require(len(rest) == count * structs.MULTI_ENTRY.size, f"REGION_WRITE_MULTI of {count} with {len(rest)} bytes")
    writes = []
    for offset, region, length, data in structs.MULTI_ENTRY.iter_unpack(rest):
        _require(length <= len(data), f"REGION_WRITE_MULTI of {length} bytes")
        _access(offset, region, length)
        writes.append(RegionWrite(region, offset, data[:length]))
    return RegionWriteMulti(tuple(writes))


def _dma_read(message: Message) -> Request:
    _no_descriptors(message)
    address, count = _fixed(message, structs.DMA_ACCESS)
    _require(count <= MAX_TRANSFER, f"{count} bytes in one message", errno.E2BIG)
    _require(count <= END_OF_ADDRESSES - address, f"range {address:#x}+{count:#x}")
    return DmaRead(address, count)


def _dma_write(message: Message) -> Request:
    _no_descriptors(message)
    address, count = _fixed(message, structs.DMA_ACCESS, exact=False)
    data = message.payload[structs.DMA_ACCESS.size :]
    _require(count <= MAX_TRANSFER, f"{count} bytes in one message", errno.E2BIG)
    _require(len(data) == count, f"DMA_WRITE of {count} with {len(data)} bytes")
    _require(count <= END_OF_ADDRESSES - address, f"range {address:#x}+{count:#x}")
    return DmaWrite(address, data)


def _reset(message: Message) -> Request:
    _no_descriptors(message)
    _require(not message.payload, f"DEVICE_RESET with {len(message.payload)} bytes of payload")
    return DeviceReset()


def _feature(message: Message) -> Request:
    _no_descriptors(message)
    argsz, flags = _fixed(message, structs.DEVICE_FEATURE, exact=False)
    _require(argsz >= structs.DEVICE_FEATURE.size, f"DEVICE_FEATURE argsz {argsz}")
    return DeviceFeature(flags & 0xFFFF, flags & ~0xFFFF, message.payload[structs.DEVICE_FEATURE.size :])


FROM_CLIENT: dict[int, Callable[[Message], Request]] = {
    Command.VERSION: _version,
    Command.DMA_MAP: _dma_map,
    Command.DMA_UNMAP: _dma_unmap,
    Command.DEVICE_GET_INFO: _device_info,
    Command.DEVICE_GET_REGION_INFO: _region_info,
    Command.DEVICE_GET_REGION_IO_FDS: _region_io_fds,
    Command.DEVICE_GET_IRQ_INFO: _irq_info,
    Command.DEVICE_SET_IRQS: _set_irqs,
    Command.REGION_READ: _region_read,
    Command.REGION_WRITE: _region_write,
    Command.DEVICE_RESET: _reset,
    Command.REGION_WRITE_MULTI: _region_write_multi,
    Command.DEVICE_FEATURE: _feature,
}
"""Decoders of what a server is sent."""

FROM_SERVER: dict[int, Callable[[Message], Request]] = {Command.DMA_READ: _dma_read, Command.DMA_WRITE: _dma_write}
"""Decoders of what a client is sent."""


def decode_request(message: Message, decoders: dict[int, Callable[[Message], Request]]) -> Request:
    """The request in a message.

    Raises: Refused with the errno to answer: EINVAL for a malformed one, EOPNOTSUPP for a command that this role does
    not serve, E2BIG for too much data. ProtocolError when the connection must end (VERSION only).
    """
    decoder = decoders.get(message.command)
    if decoder is None:
        raise Refused(errno.EOPNOTSUPP, f"{command_name(message.command)} is not served here")
    return decoder(message)
