"""Commands of the NVM command set (section 6): they move blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .commands import CommandError, Status
from .identify import BLOCK_SHIFT, MAXIMUM_TRANSFER, NAMESPACES
from .logs import ALL_NAMESPACES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .admin import Handler
    from .commands import Command
    from .controller import Nvme


def flush(_controller: Nvme, command: Command) -> int:
    """Section 6.8. There is no volatile cache, so all is where it should be."""
    if command.namespace != ALL_NAMESPACES:
        _check_namespace(command)
    return 0


def write(controller: Nvme, command: Command) -> int:
    """Section 6.15."""
    offset, length = _range(controller, command, MAXIMUM_TRANSFER)
    data = controller.receive(command, length)
    try:
        controller.store.write(offset, data)
    except OSError as error:
        raise CommandError(Status.WRITE_FAULT) from error
    controller.writes += 1
    controller.bytes_written += length
    return 0


def read(controller: Nvme, command: Command) -> int:
    """Section 6.9."""
    offset, length = _range(controller, command, MAXIMUM_TRANSFER)
    try:
        data = controller.store.read(offset, length)
    except OSError as error:
        raise CommandError(Status.UNRECOVERED_READ_ERROR) from error
    controller.send(command, data)
    controller.reads += 1
    controller.bytes_read += length
    return 0


def write_zeroes(controller: Nvme, command: Command) -> int:
    """Section 6.17."""
    offset, length = _range(controller, command)
    try:
        controller.store.zero(offset, length)
    except OSError as error:
        raise CommandError(Status.WRITE_FAULT) from error
    return 0


COMMANDS: Mapping[int, Handler] = {0x00: flush, 0x01: write, 0x02: read, 0x08: write_zeroes}
"""By opcode (section 6)."""


def length_of(command: Command) -> int:
    """The bytes that a command names, if its opcode has blocks at all."""
    return (command.cdw12 & 0xFFFF) + 1 << BLOCK_SHIFT


def _range(controller: Nvme, command: Command, most: int | None = None) -> tuple[int, int]:
    """Offset and length in bytes. Raises: CommandError where they are not within the namespace."""
    _check_namespace(command)
    offset = (command.cdw10 | command.cdw11 << 32) << BLOCK_SHIFT
    length = length_of(command)
    if most is not None and length > most:
        raise CommandError(Status.INVALID_FIELD)
    if offset + length > controller.capacity:
        raise CommandError(Status.LBA_OUT_OF_RANGE)
    return offset, length


def _check_namespace(command: Command) -> None:
    if not 0 < command.namespace <= NAMESPACES:
        raise CommandError(Status.INVALID_NAMESPACE)
