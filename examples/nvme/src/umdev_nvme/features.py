"""Features: what Set Features keeps and Get Features tells (sections 5.13 and 5.21)."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from .commands import CommandError, Status
from .identify import BURST_SHIFT, WARNING_KELVIN
from .registers import IO_QUEUES, QUEUES

if TYPE_CHECKING:
    from .commands import Command
    from .controller import Nvme

ALL_QUEUES = IO_QUEUES - 1 | IO_QUEUES - 1 << 16
_SAVE = 1 << 31
_UNDER = 1 << 20  # THSEL: the threshold below which it is too cold
_ALL_SENSORS = 0xF << 16
_NO_QUEUES = 0xFFFF


class Feature(enum.IntEnum):
    """Identifiers (section 5.21.1)."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR = 0x09
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENTS = 0x0B


def defaults() -> list[int]:
    """Values by identifier, as after a controller reset."""
    values = [0] * (max(Feature) + 1)
    values[Feature.ARBITRATION] = BURST_SHIFT
    values[Feature.TEMPERATURE_THRESHOLD] = WARNING_KELVIN
    values[Feature.NUMBER_OF_QUEUES] = ALL_QUEUES
    return values


def get_feature(controller: Nvme, command: Command) -> int:
    """Get Features; the values fit into the completion."""
    feature = _feature(command)
    if feature is Feature.INTERRUPT_VECTOR:
        return _vector(command) | 1 << 16  # its coalescing is disabled, like that of all
    if feature is Feature.TEMPERATURE_THRESHOLD and command.cdw11 & (_UNDER | _ALL_SENSORS):
        return 0  # no sensor but the composite, and no limit below
    return controller.features[feature]


def set_feature(controller: Nvme, command: Command) -> int:
    """Set Features."""
    feature = _feature(command)
    value = command.cdw11
    if command.cdw10 & _SAVE:
        raise CommandError(Status.FEATURE_NOT_SAVEABLE)
    if feature is Feature.NUMBER_OF_QUEUES:
        return _set_number_of_queues(controller, value)
    if feature is Feature.POWER_MANAGEMENT and value & 0x1F:
        raise CommandError(Status.INVALID_FIELD)  # there is power state 0 alone
    if feature is Feature.INTERRUPT_VECTOR:
        _vector(command)
    elif feature is Feature.TEMPERATURE_THRESHOLD:
        if not value & _UNDER:
            controller.features[feature] = value & 0xFFFF
    else:
        controller.features[feature] = value
    return 0


def _set_number_of_queues(controller: Nvme, value: int) -> int:
    """Both numbers are less one; the driver gets what there is (section 5.21.1.7)."""
    submission, completion = value & 0xFFFF, value >> 16
    if _NO_QUEUES in (submission, completion):
        raise CommandError(Status.INVALID_FIELD)
    if controller.has_io_queues:
        raise CommandError(Status.COMMAND_SEQUENCE_ERROR)
    granted = min(submission, IO_QUEUES - 1) | min(completion, IO_QUEUES - 1) << 16
    controller.features[Feature.NUMBER_OF_QUEUES] = granted
    return granted


def _feature(command: Command) -> Feature:
    try:
        return Feature(command.cdw10 & 0xFF)
    except ValueError:
        raise CommandError(Status.INVALID_FIELD) from None


def _vector(command: Command) -> int:
    vector = command.cdw11 & 0xFFFF
    if vector >= QUEUES:
        raise CommandError(Status.INVALID_FIELD)
    return vector
