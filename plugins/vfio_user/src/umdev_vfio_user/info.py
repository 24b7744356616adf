"""What the device looks like: replies to GET requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .protocol import DeviceFlag, IrqInfoFlag, RegionInfoFlag
from .protocol import structs as layout
from .protocol.constants import CAP_SPARSE_MMAP, IRQ_COUNT, REGION_COUNT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from umdev.driver import RegionInfo

INTX = 0
MSIX = 2


def device_info() -> bytes:
    """A PCI function that can be reset."""
    return layout.DEVICE_INFO.pack(layout.DEVICE_INFO.size, DeviceFlag.RESET | DeviceFlag.PCI, REGION_COUNT, IRQ_COUNT)


def region_info(index: int, info: RegionInfo | None, room: int) -> tuple[bytes, int | None]:
    """The payload for a client that takes `room` bytes, and the descriptor that goes with it.

    Where capabilities do not fit, flags and `argsz` say that there are some, and the client asks again. The offset of
    the first one is given even then: QEMU looks at it before it compares the sizes.
    """
    if info is None or info.size == 0:
        return layout.REGION_INFO.pack(layout.REGION_INFO.size, 0, index, 0, 0, 0), None
    flags = RegionInfoFlag(0)
    if info.readable:
        flags |= RegionInfoFlag.READ
    if info.writable:
        flags |= RegionInfoFlag.WRITE
    capabilities = b""
    descriptor = info.descriptor if info.areas else None
    if descriptor is not None:
        flags |= RegionInfoFlag.MMAP
        whole = len(info.areas) == 1 and info.areas[0].length == info.size
        if not whole:
            flags |= RegionInfoFlag.CAPS
            capabilities = layout.CAPABILITY.pack(CAP_SPARSE_MMAP, 1, 0) + layout.SPARSE_MMAP.pack(len(info.areas), 0)
            capabilities += b"".join(layout.SPARSE_AREA.pack(area.offset, area.length) for area in info.areas)
    start = layout.REGION_INFO.size if capabilities else 0
    needed = layout.REGION_INFO.size + len(capabilities)
    payload = layout.REGION_INFO.pack(needed, flags, index, start, info.size, 0)
    if needed > room:
        return payload, None
    return payload + capabilities, descriptor


def irq_info(index: int, counts: Sequence[int]) -> bytes:
    """INTx masks itself when it has been signalled; the others are set up as a whole; ERR and REQ have no masks."""
    flags = IrqInfoFlag.EVENTFD | (IrqInfoFlag.AUTOMASKED if index == INTX else IrqInfoFlag.NORESIZE)
    if index <= MSIX:
        flags |= IrqInfoFlag.MASKABLE
    return layout.IRQ_INFO.pack(layout.IRQ_INFO.size, flags, index, counts[index])
