"""The controller: its life from enable to reset, arbitration between queues, interrupts."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, ClassVar

from umdev.device import Device, DmaAborted, DmaError, Interrupts, MemoryBar, PciId, State, query

from . import admin, nvm
from .commands import COMPLETION_SIZE, ENTRY_SIZE, Command, CommandError, Status
from .events import LOG_ENTRIES, NO_COMMAND, ErrorEvent, error_entry
from .features import defaults
from .identify import BURST_SHIFT
from .prp import segments
from .registers import (
    BAR_SIZE,
    MSIX_PBA,
    MSIX_TABLE,
    PAGE_SHIFT_LEAST,
    PAGE_SHIFT_MOST,
    QUEUES,
    SHUTDOWN_COMPLETE,
    Registers,
)
from .store import Store

if TYPE_CHECKING:
    from .queues import CompletionQueue, SubmissionQueue

log = logging.getLogger("umdev.nvme")

STEP = 4 << 20
"""The work of one step, in bytes: the device lock is held meanwhile, so a driver must not make it long."""
COMMAND_COST = 64 << 10
"""What a command counts for beside its data."""
ALL_VECTORS = range(QUEUES)


def _no_store() -> Store:
    raise AssertionError("on_open sets it")


class Nvme(Device):
    """One controller with one namespace of `capacity` bytes.

    A doorbell only starts work: commands are fetched and run in `step`, outside of any access of the driver. So DMA
    works where the driver's memory is reached by messages, and a driver that never stops submitting shares the
    device lock fairly.
    """

    pci = PciId(vendor=0x1234, device=0x4E56, class_code=0x010802)  # 01/08/02: NVM Express (section 2.1.5)
    interrupts = Interrupts(
        msi=QUEUES, msix=QUEUES, intx=True, msix_bar=0, msix_table_offset=MSIX_TABLE, msix_pba_offset=MSIX_PBA
    )
    registers = MemoryBar(0, Registers, size=BAR_SIZE, sizes=(4, 8), width=64)
    capacity: ClassVar[int] = 64 << 20

    store: State[Store] = State(_no_store, save=False)
    scheduled = State(bool)
    turn = State(int)
    """The submission queue whose turn is next."""
    features = State(defaults)
    event_requests: State[list[int]] = State(list)
    """Asynchronous Event Requests that wait, by command identifier."""
    events: State[list[int]] = State(list)
    """Results for them: one of a kind at most."""
    events_masked = State(bool)
    """Whether an event was told and its log not yet read (section 5.2)."""
    failures = State(int, keep=True)
    errors: State[deque[bytes]] = State(lambda: deque(maxlen=LOG_ENTRIES), keep=True)
    error_count = State(int, keep=True)
    reads = State(int, keep=True)
    writes = State(int, keep=True)
    bytes_read = State(int, keep=True)
    bytes_written = State(int, keep=True)

    def on_open(self) -> None:
        self.store = Store(self.context.attributes.get("store", "memory"), self.capacity)

    def on_close(self) -> None:
        self.store.close()

    @query
    def blocks(self) -> str:
        """The file that holds the namespace's bytes."""
        return self.store.path

    # The controller's life.

    @property
    def running(self) -> bool:
        """Whether commands are carried out."""
        status = self.registers.csts
        return status.rdy and not status.cfs and not status.shst

    @property
    def page_size(self) -> int:
        """In bytes, as the driver chose it."""
        return 1 << PAGE_SHIFT_LEAST + self.registers.cc.mps

    @property
    def entry_sizes_fit(self) -> bool:
        """Whether the driver has set the sizes of I/O queue entries; until then it can't create such queues."""
        cc = self.registers.cc
        return (1 << cc.iosqes, 1 << cc.iocqes) == (ENTRY_SIZE, COMPLETION_SIZE)

    @property
    def has_io_queues(self) -> bool:
        """Whether the driver has created any."""
        regs = self.registers
        return any(sq.size or cq.size for sq, cq in zip(regs.submission[1:], regs.completion[1:], strict=True))

    def enable(self) -> None:
        """CC.EN was set: begin with the admin queues (section 7.6.1)."""
        regs = self.registers
        regs.csts.value = 0
        cc, aqa, addresses = regs.cc, regs.aqa, (regs.asq.value, regs.acq.value)
        wrong_mode = cc.css or cc.ams or cc.mps > PAGE_SHIFT_MOST - PAGE_SHIFT_LEAST
        if wrong_mode or not (aqa.asqs and aqa.acqs) or any(at % self.page_size for at in addresses):
            self.fail(f"was enabled with {cc.text()}, {aqa.text()}, {regs.asq.text()}, {regs.acq.text()}")
            return
        regs.submission[0].create(addresses[0], aqa.asqs + 1, completion=0)
        regs.completion[0].create(addresses[1], aqa.acqs + 1, vector=0, interrupts=True)
        regs.csts.rdy = True

    def disable(self) -> None:
        """CC.EN was cleared: a controller reset (section 7.3.2). Nothing of the old life writes memory any more."""
        self.end_work()
        self.scheduled = False
        regs = self.registers
        for submission, completion in zip(regs.submission, regs.completion, strict=True):
            submission.delete()
            completion.delete()
        regs.csts.value = regs.intms.value = regs.intmc.value = 0
        self.features = defaults()
        self.event_requests.clear()
        self.events.clear()
        self.events_masked = False
        self.settle_interrupts()

    def shut_down(self) -> None:
        """CC.SHN was set: done at once, since a write is durable when it completes (section 7.6.2)."""
        self.end_work()
        self.scheduled = False
        self.registers.csts.shst = SHUTDOWN_COMPLETE

    def fail(self, why: object) -> None:
        """Nothing goes on until the driver resets the controller (section 9.5)."""
        # A driver can make it fail for ever, and must not fill the host's log.
        log.log(logging.DEBUG if self.failures else logging.WARNING, "%s: controller fatal status: %s", self, why)
        self.failures += 1
        self.registers.csts.cfs = True

    # Work.

    def kick(self) -> None:
        """See to it that `step` runs."""
        if not self.scheduled and self.running:
            self.scheduled = True
            self.after(0, self.step)

    def step(self) -> None:
        """Carry commands out, round robin (section 4.13.1), up to a limit; what is left is for the next step."""
        self.scheduled = False
        left = STEP
        try:
            self._tell_event()
            while left > 0 and (queue := self._next_queue()) is not None:
                left -= self._serve(queue)
        except DmaAborted:  # a reset waits for us
            return
        except DmaError as error:
            self.fail(f"a queue can't be reached: {error}")
        self._go_on()

    def send(self, command: Command, data: bytes) -> None:
        """Write `data` to where the command says. Raises: CommandError, DmaError."""
        view, at = memoryview(data), 0
        for address, length in segments(command.prp1, command.prp2, len(data), self.page_size, self.memory.read):
            self.memory.write(address, view[at : at + length])
            at += length

    def receive(self, command: Command, length: int) -> bytes:
        """Read `length` bytes from where the command says. Raises: CommandError, DmaError."""
        places = segments(command.prp1, command.prp2, length, self.page_size, self.memory.read)
        return b"".join([self.memory.read(*place) for place in places])

    def _go_on(self) -> None:
        if self._can_tell_event or self._next_queue() is not None:
            self.kick()

    def _next_queue(self) -> SubmissionQueue | None:
        """The next queue, from `turn` on, with a command and room for its completion."""
        if not self.running:
            return None
        for number in range(self.turn, self.turn + QUEUES):
            queue = self.registers.submission[number % QUEUES]
            if queue.waiting and self.registers.completion[queue.completion].room:
                return queue
        return None

    def _serve(self, queue: SubmissionQueue) -> int:
        """A burst of a queue's commands; returns what they cost."""
        self.turn = (queue.id + 1) % QUEUES
        completion = self.registers.completion[queue.completion]
        cost = 0
        try:
            for _ in range(1 << BURST_SHIFT):
                if not queue.waiting or not completion.room or cost >= STEP:
                    break
                command = queue.fetch()
                status, result = self._execute(queue.id, command)
                if result is not None:
                    completion.post(queue, command.id, status.field, result)
                cost += COMMAND_COST + (nvm.length_of(command) if queue.id else 0)
        finally:
            self._interrupt(completion)
        return cost

    def _execute(self, queue: int, command: Command) -> tuple[Status, int | None]:
        """The status, and the completion's dword 0; None: it completes later."""
        handler = (nvm.COMMANDS if queue else admin.COMMANDS).get(command.opcode)
        try:
            if handler is None:
                raise CommandError(Status.INVALID_OPCODE)
            if command.flags:
                raise CommandError(Status.INVALID_FIELD)
            return Status.SUCCESS, handler(self, command)
        except CommandError as error:
            status = error.status
        except DmaAborted:
            raise
        except DmaError as error:
            log.debug("%s: %s: %s", self, command, error)
            status = Status.DATA_TRANSFER_ERROR
        lba = command.cdw10 | command.cdw11 << 32 if queue else 0
        self._log_error(queue, command.id, status, lba, command.namespace)
        return status, 0

    # Events and errors.

    def report(self, event: ErrorEvent) -> None:
        """The driver did something that no command's status can tell it."""
        if not self.running:
            return
        self._log_error(NO_COMMAND, NO_COMMAND, Status.SUCCESS, 0, 0)
        if event.result not in self.events:
            self.events.append(event.result)
        self._go_on()

    @property
    def _can_tell_event(self) -> bool:
        """Whether there is one, and the driver waits for it and has read the log for the one before."""
        ready = self.running and not self.events_masked and self.registers.completion[0].room
        return bool(ready and self.events and self.event_requests)

    def _tell_event(self) -> None:
        completion = self.registers.completion[0]
        if self._can_tell_event:
            self.events_masked = True
            request, result = self.event_requests.pop(0), self.events.pop(0)
            completion.post(self.registers.submission[0], request, Status.SUCCESS.field, result)
            self._interrupt(completion)

    def _log_error(self, queue: int, command: int, status: Status, lba: int, namespace: int) -> None:
        self.error_count += 1
        self.errors.appendleft(error_entry(self.error_count, queue, command, status.field, lba, namespace))

    # Interrupts (section 7.5): a message for new entries, or a level while there are entries that were not seen.

    def acknowledged(self, queue: CompletionQueue) -> None:
        """The driver has seen entries of the queue: there may be room for others."""
        self.settle_interrupts(range(queue.vector, queue.vector + 1))
        self._go_on()

    def settle_interrupts(self, vectors: range = ALL_VECTORS, unmasked: int = 0) -> None:
        """Bring levels in step with the queues, and send what waited for vectors that are not masked any more."""
        wanted = {queue.vector for queue in self.registers.completion if queue.interrupts and queue.unread}
        for vector in vectors:
            if vector not in wanted or self._masked(vector):
                self.interrupts.lower(vector)
            elif unmasked >> vector & 1:
                self.interrupts.raise_(vector)

    def _interrupt(self, queue: CompletionQueue) -> None:
        if queue.interrupts and queue.unread and not self._masked(queue.vector):
            self.interrupts.raise_(queue.vector)

    def _masked(self, vector: int) -> bool:
        """MSI-X has masks of its own (section 3.1.3)."""
        return self.interrupts.mode != "msix" and bool(self.registers.intms.value >> vector & 1)
