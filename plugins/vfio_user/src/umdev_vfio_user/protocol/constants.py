"""Commands, flags and limits."""

from __future__ import annotations

import enum

MAX_FDS = 16
"""Descriptors that one message may carry: what QEMU can send and take."""

MAX_TRANSFER = 1 << 20
"""Bytes of data in one message: the specification's default for `max_data_xfer_size`."""

MAX_MESSAGE = MAX_TRANSFER + 4096
"""Bytes of a whole message: data, headers, and room for long requests. Anything longer ends the connection."""

MAX_DMA_MAPS = 65535
"""The specification's default for `max_dma_maps`."""

REGION_COUNT = 9
IRQ_COUNT = 5


class Command(enum.IntEnum):
    """Specification, "Commands"."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    DIRTY_PAGES = 14  # withdrawn; number 14 stays reserved
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


def command_name(command: int) -> str:
    """The name of a command, or its number for one that the specification does not have."""
    try:
        return Command(command).name
    except ValueError:
        return f"COMMAND_{command}"


class HeaderFlag(enum.IntFlag):
    """Specification, "Header". The low four bits are the message's type: command 0, reply 1."""

    REPLY = 0x01
    NO_REPLY = 0x10
    ERROR = 0x20


TYPE_MASK = 0x0F


class DmaMapFlag(enum.IntFlag):
    """Specification, VFIO_USER_DMA_MAP."""

    READABLE = 1
    WRITABLE = 2


class DmaUnmapFlag(enum.IntFlag):
    """vfio.h, VFIO_DMA_UNMAP_FLAG_*."""

    GET_DIRTY_BITMAP = 1
    ALL = 2


class DeviceFlag(enum.IntFlag):
    """vfio.h, VFIO_DEVICE_FLAGS_*."""

    RESET = 1
    PCI = 2


class RegionInfoFlag(enum.IntFlag):
    """vfio.h, VFIO_REGION_INFO_FLAG_*."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


CAP_SPARSE_MMAP = 1
"""vfio.h, VFIO_REGION_INFO_CAP_SPARSE_MMAP."""


IO_FD_IOEVENTFD = 0
"""Specification, VFIO_USER_IO_FD_TYPE_IOEVENTFD."""


class IoEventFdFlag(enum.IntFlag):
    """kvm.h, KVM_IOEVENTFD_FLAG_*."""

    DATAMATCH = 1
    PIO = 2


class IrqInfoFlag(enum.IntFlag):
    """vfio.h, VFIO_IRQ_INFO_*."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


class IrqData(enum.IntEnum):
    """vfio.h, VFIO_IRQ_SET_DATA_*: what comes with SET_IRQS."""

    NONE = 1
    BOOL = 2
    EVENTFD = 4


class IrqAction(enum.IntEnum):
    """vfio.h, VFIO_IRQ_SET_ACTION_*: what SET_IRQS does."""

    MASK = 8
    UNMASK = 16
    TRIGGER = 32


IRQ_DATA_MASK = 0x07
IRQ_ACTION_MASK = 0x38
