"""Admin commands (section 5). Each handler returns the completion's dword 0; None: it completes later."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import identify
from .commands import CommandError, Status
from .events import REQUESTS
from .features import Feature, get_feature, set_feature
from .logs import get_log_page
from .registers import QUEUE_ENTRIES, QUEUES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from .commands import Command
    from .controller import Nvme

    Handler: TypeAlias = Callable[[Nvme, Command], int | None]

_CONTIGUOUS, _INTERRUPTS = 1 << 0, 1 << 1
_NOT_ABORTED = 1


def create_completion_queue(controller: Nvme, command: Command) -> int:
    """Section 5.3."""
    number, size = _new_queue(controller, command, shift=16)
    queue = controller.registers.completion[number]
    if queue.size:
        raise CommandError(Status.INVALID_QUEUE_IDENTIFIER)
    vector = command.cdw11 >> 16
    if vector >= QUEUES:
        raise CommandError(Status.INVALID_INTERRUPT_VECTOR)
    queue.create(command.prp1, size, vector, interrupts=bool(command.cdw11 & _INTERRUPTS))
    return 0


def create_submission_queue(controller: Nvme, command: Command) -> int:
    """Section 5.4. The priority counts for nothing: arbitration is round robin."""
    number, size = _new_queue(controller, command, shift=0)
    queue = controller.registers.submission[number]
    completion = command.cdw11 >> 16
    if queue.size or not 0 < completion < QUEUES:
        raise CommandError(Status.INVALID_QUEUE_IDENTIFIER)
    if not controller.registers.completion[completion].size:
        raise CommandError(Status.COMPLETION_QUEUE_INVALID)
    queue.create(command.prp1, size, completion)
    return 0


def delete_submission_queue(controller: Nvme, command: Command) -> int:
    """Section 5.6. No command of it is under way, since commands run one after the other."""
    queue = controller.registers.submission[_queue_number(command)]
    if not queue.size:
        raise CommandError(Status.INVALID_QUEUE_IDENTIFIER)
    queue.delete()
    return 0


def delete_completion_queue(controller: Nvme, command: Command) -> int:
    """Section 5.5."""
    number = _queue_number(command)
    queue = controller.registers.completion[number]
    if not queue.size:
        raise CommandError(Status.INVALID_QUEUE_IDENTIFIER)
    if any(user.size and user.completion == number for user in controller.registers.submission):
        raise CommandError(Status.INVALID_QUEUE_DELETION)
    queue.delete()
    controller.settle_interrupts()
    return 0


def identify_something(controller: Nvme, command: Command) -> int:
    """Section 5.15: the controller, the namespace, the list of namespaces, the namespace's names."""
    number = command.namespace
    what = command.cdw10 & 0xFF
    if what in (0x00, 0x03) and not 0 < number <= identify.NAMESPACES:
        raise CommandError(Status.INVALID_NAMESPACE)
    match what:
        case 0x00:
            data = identify.namespace(controller.capacity)
        case 0x01:
            data = identify.controller(controller.context.uuid, controller.pci, controller.capacity)
        case 0x02:
            if number >= 0xFFFF_FFFE:
                raise CommandError(Status.INVALID_NAMESPACE)
            data = identify.active_namespaces(number)
        case 0x03:
            data = identify.descriptors(controller.context.uuid)
        case _:
            raise CommandError(Status.INVALID_FIELD)
    controller.send(command, data)
    return 0


def abort(_controller: Nvme, _command: Command) -> int:
    """Section 5.1: what was fetched has ended already, and nothing else can be aborted."""
    return _NOT_ABORTED


def request_async_event(controller: Nvme, command: Command) -> None:
    """Section 5.2: completes with the next event."""
    if len(controller.event_requests) >= REQUESTS:
        raise CommandError(Status.ASYNC_EVENT_LIMIT_EXCEEDED)
    controller.event_requests.append(command.id)


COMMANDS: Mapping[int, Handler] = {
    0x00: delete_submission_queue,
    0x01: create_submission_queue,
    0x02: get_log_page,
    0x04: delete_completion_queue,
    0x05: create_completion_queue,
    0x06: identify_something,
    0x08: abort,
    0x09: set_feature,
    0x0A: get_feature,
    0x0C: request_async_event,
}
"""By opcode (section 5)."""


def _queue_number(command: Command) -> int:
    """Of an I/O queue, which may not exist. Raises: CommandError."""
    number = command.cdw10 & 0xFFFF
    if not 0 < number < QUEUES:
        raise CommandError(Status.INVALID_QUEUE_IDENTIFIER)
    return number


def _new_queue(controller: Nvme, command: Command, shift: int) -> tuple[int, int]:
    """Identifier and size of a queue to create; `shift` finds the granted number of its kind in the feature."""
    number, size = _queue_number(command), (command.cdw10 >> 16) + 1
    if number > (controller.features[Feature.NUMBER_OF_QUEUES] >> shift & 0xFFFF) + 1:
        raise CommandError(Status.INVALID_QUEUE_IDENTIFIER)
    if not 2 <= size <= QUEUE_ENTRIES:
        raise CommandError(Status.INVALID_QUEUE_SIZE)
    if not command.cdw11 & _CONTIGUOUS:
        raise CommandError(Status.INVALID_FIELD)
    if command.prp1 % controller.page_size:
        raise CommandError(Status.PRP_OFFSET_INVALID)
    if not controller.entry_sizes_fit:
        raise CommandError(Status.INVALID_QUEUE_SIZE)
    return number, size
