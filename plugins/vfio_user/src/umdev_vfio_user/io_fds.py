"""GET_REGION_IO_FDS: the reply, on both ends (specification, VFIO_USER_DEVICE_GET_REGION_IO_FDS)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from umdev.errors import ProtocolError

from .protocol import IoEventFdFlag
from .protocol import structs as layout
from .protocol.constants import IO_FD_IOEVENTFD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from umdev.bus import Doorbell

ACCESS_SIZES = (0, 1, 2, 4, 8)
"""Bytes; 0: a store of whatever size."""

EVENTFD = "anon_inode:[eventfd]"


@dataclass(frozen=True, slots=True)
class SubRegion:
    """An ioeventfd that a server offers: its place among the reply's descriptors, and which stores ring it."""

    descriptor: int
    offset: int
    size: int
    value: int | None


def encode_io_fds(index: int, doorbells: Sequence[Doorbell], room: int, *, ports: bool) -> tuple[bytes, bool]:
    """The payload for a client that takes `room` bytes, and whether the descriptors, one a doorbell, go with it.

    Where the sub-regions do not fit, `argsz` says what they need and the client asks again.
    """
    needed = layout.REGION_IO_FDS.size + len(doorbells) * layout.SUB_REGION.size
    payload = layout.REGION_IO_FDS.pack(needed, 0, index, len(doorbells))
    if needed > room:
        return payload, False
    for number, bell in enumerate(doorbells):
        flags = IoEventFdFlag.PIO if ports else IoEventFdFlag(0)
        if bell.value is not None:
            flags |= IoEventFdFlag.DATAMATCH
        payload += layout.SUB_REGION.pack(bell.offset, bell.width, number, IO_FD_IOEVENTFD, flags, 0, bell.value or 0)
    return payload, True


def decode_io_fds(reply: bytes, index: int, size: int, descriptors: int) -> list[SubRegion]:
    """The ioeventfds for region `index` of `size` bytes, in a reply that came with so many descriptors.

    Other kinds of descriptors, and flags of other machines, are left out. Raises: ProtocolError.
    """
    if len(reply) < layout.REGION_IO_FDS.size:
        raise ProtocolError(f"GET_REGION_IO_FDS answered with {len(reply)} bytes")
    argsz, flags, said, count = layout.REGION_IO_FDS.unpack_from(reply)
    if flags or said != index:
        raise ProtocolError(f"GET_REGION_IO_FDS for region {index} answered for {said}, flags {flags:#x}")
    if argsz != len(reply):
        raise ProtocolError(f"GET_REGION_IO_FDS has {argsz} bytes to say, in {len(reply)}")
    if not count:
        return []
    stride, rest = divmod(argsz - layout.REGION_IO_FDS.size, count)
    if rest or stride < layout.SUB_REGION.size:
        raise ProtocolError(f"GET_REGION_IO_FDS: {count} sub-regions in {argsz} bytes")
    found = []
    for start in range(layout.REGION_IO_FDS.size, argsz, stride):
        offset, width, number, kind, flags, _, value = layout.SUB_REGION.unpack_from(reply, start)
        # int(): the inversion of a flag knows named bits only.
        if kind != IO_FD_IOEVENTFD or flags & ~int(IoEventFdFlag.DATAMATCH | IoEventFdFlag.PIO):
            continue
        if number >= descriptors:
            raise ProtocolError(f"GET_REGION_IO_FDS: descriptor {number} of {descriptors}")
        if width not in ACCESS_SIZES or offset + width > size:
            raise ProtocolError(f"GET_REGION_IO_FDS: {width} bytes at {offset:#x} of {size:#x}")
        matches = flags & IoEventFdFlag.DATAMATCH
        if matches and width and value >> 8 * width:
            raise ProtocolError(f"GET_REGION_IO_FDS: {value:#x} in {width} bytes")
        found.append(SubRegion(number, offset, width, value if matches else None))
    return found


def expect_eventfd(descriptor: int) -> None:
    """Raises: ProtocolError for a descriptor of another kind."""
    kind = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - it names no file
    if kind != EVENTFD:
        raise ProtocolError(f"a doorbell that is no eventfd but {kind}")
