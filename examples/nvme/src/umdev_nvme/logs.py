"""Log pages (section 5.14)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from .commands import CommandError, Status
from .events import ERROR_LOG
from .identify import FIRMWARE, MAXIMUM_TRANSFER, NAMESPACES

if TYPE_CHECKING:
    from .commands import Command
    from .controller import Nvme

ALL_NAMESPACES = 0xFFFF_FFFF
HEALTH_LOG, FIRMWARE_LOG = 0x02, 0x03
_PAGE_SIZE = 512
_RETAIN = 1 << 15
_KELVIN = 300
_UNIT = 1000 * 512  # bytes of a "data unit", rounded up


def get_log_page(controller: Nvme, command: Command) -> int:
    """Get Log Page. What lies beyond a log's end reads as zeros."""
    length = ((command.cdw10 >> 16 | (command.cdw11 & 0xFFFF) << 16) + 1) * 4
    offset = command.cdw12 | command.cdw13 << 32
    if length > MAXIMUM_TRANSFER or offset % 4:
        raise CommandError(Status.INVALID_FIELD)
    if command.namespace not in (0, ALL_NAMESPACES) and command.namespace > NAMESPACES:
        raise CommandError(Status.INVALID_NAMESPACE)
    page = command.cdw10 & 0xFF
    if page == ERROR_LOG:
        data = b"".join(controller.errors)
    elif page == HEALTH_LOG:
        data = _health(controller)
    elif page == FIRMWARE_LOG:
        data = struct.pack("<B7x8s", 1, FIRMWARE.encode().ljust(8)).ljust(_PAGE_SIZE, b"\0")
    else:
        raise CommandError(Status.INVALID_LOG_PAGE)
    if offset > max(len(data), _PAGE_SIZE):
        raise CommandError(Status.INVALID_FIELD)
    controller.send(command, data[offset : offset + length].ljust(length, b"\0"))
    if page == ERROR_LOG and not command.cdw10 & _RETAIN:
        controller.events_masked = False
    return 0


def _health(controller: Nvme) -> bytes:
    """SMART / health information (section 5.14.1.2): cool, unworn, and what was read and written."""
    read, written = (-(-count // _UNIT) for count in (controller.bytes_read, controller.bytes_written))
    data = bytearray(_PAGE_SIZE)
    struct.pack_into("<BHBBB", data, 0, 0, _KELVIN, 100, 10, 0)
    numbers = (read, written, controller.reads, controller.writes)
    for index, number in enumerate(numbers):
        data[32 + 16 * index : 48 + 16 * index] = number.to_bytes(16, "little")
    data[176:192] = controller.error_count.to_bytes(16, "little")
    return bytes(data)
