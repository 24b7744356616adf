"""Submission and completion queues. Each is the block of its doorbell, so a trace names it: `submission[1].doorbell`.

A queue exists while its `size` is not 0. Indexes count entries; sections 4.1 (circular buffers), 3.1.24 and 3.1.25.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from umdev.device import RESERVED, RW, Block, DmaError, Field, Register, State

from .commands import COMPLETION_SIZE, ENTRY_SIZE, Command
from .events import ErrorEvent

if TYPE_CHECKING:
    from .controller import Nvme  # noqa: F401  # the type in Block["Nvme"]

DOORBELLS = 0x1000
"""Where the doorbells start in BAR 0; with CAP.DSTRD = 0 each takes four bytes."""
DOORBELL_PAIR = 8


class TailDoorbell(Register):
    """SQyTDBL: one past the last entry that the driver has submitted."""

    tail = Field(0, 15, RW)


class HeadDoorbell(Register):
    """CQyHDBL: the first entry that the driver has not seen yet."""

    head = Field(0, 15, RW)


class SubmissionQueue(Block["Nvme"]):
    """Commands from the driver."""

    doorbell = TailDoorbell(0, RESERVED)
    address = State(int)
    size = State(int)
    head = State(int)
    completion = State(int)
    """The completion queue's identifier."""

    @property
    def id(self) -> int:
        """0 is the admin queue."""
        return (self.base - DOORBELLS) // DOORBELL_PAIR

    def create(self, address: int, size: int, completion: int) -> None:
        """Begin to exist, empty."""
        self.address, self.size, self.completion = address, size, completion
        self.head = self.doorbell.value = 0

    def delete(self) -> None:
        """End; commands that were not fetched are gone."""
        self.create(0, 0, 0)

    @property
    def waiting(self) -> int:
        """Commands to fetch."""
        return (self.doorbell.tail - self.head) % self.size if self.size else 0

    def fetch(self) -> Command:
        """The next of the `waiting` commands. Raises: DmaError."""
        entry = self.device.memory.read(self.address + self.head * ENTRY_SIZE, ENTRY_SIZE)
        self.head = (self.head + 1) % self.size
        return Command.parse(entry)

    @doorbell.on_write
    def ring(self, value: int, old: int) -> None:
        if self.doorbell.tail < self.size:
            self.device.kick()
        else:
            self.doorbell.value = old
            self.device.report(ErrorEvent.INVALID_DOORBELL_VALUE if self.size else ErrorEvent.INVALID_DOORBELL)


class CompletionQueue(Block["Nvme"]):
    """Results for the driver. An entry's phase bit says in which round it was written (section 4.6.1)."""

    doorbell = HeadDoorbell(0, RESERVED)
    address = State(int)
    size = State(int)
    tail = State(int)
    phase = State(bool)
    vector = State(int)
    interrupts = State(bool)
    """Whether an entry that is posted interrupts the driver, through `vector`."""

    @property
    def id(self) -> int:
        """0 is the admin queue."""
        return (self.base - DOORBELLS) // DOORBELL_PAIR

    def create(self, address: int, size: int, vector: int, interrupts: bool) -> None:
        """Begin to exist, empty."""
        self.address, self.size, self.vector, self.interrupts = address, size, vector, interrupts
        self.tail = self.doorbell.value = 0
        self.phase = True

    def delete(self) -> None:
        """End."""
        self.create(0, 0, 0, interrupts=False)

    @property
    def unread(self) -> int:
        """Entries that the driver has not seen yet."""
        return (self.tail - self.doorbell.head) % self.size if self.size else 0

    @property
    def room(self) -> int:
        """How many entries may be posted: a full queue has one entry less than its size."""
        return self.size - 1 - self.unread if self.size else 0

    def post(self, queue: SubmissionQueue, command: int, status: int, result: int) -> None:
        """Tell the driver that a command of `queue` has ended; there is room for it.

        Raises: DmaError, and then the entry is not posted.
        """
        tail, phase = self.tail, self.phase
        at = self.address + tail * COMPLETION_SIZE
        # Ours first: where memory is reached by message, the driver may see and acknowledge it before `write` returns.
        self.tail = (tail + 1) % self.size
        if self.tail == 0:
            self.phase = not phase
        try:
            # The driver looks at the phase bit, so its half is written last, and at once.
            self.device.memory.write(at, struct.pack("<II", result, 0))
            self.device.memory.write(at + 8, struct.pack("<HHHH", queue.head, queue.id, command, status << 1 | phase))
        except DmaError:
            self.tail, self.phase = tail, phase
            raise

    @doorbell.on_write
    def ring(self, value: int, old: int) -> None:
        head = self.doorbell.head
        if head < self.size and (head - old) % self.size <= (self.tail - old) % self.size:
            self.device.acknowledged(self)
        else:
            self.doorbell.value = old
            self.device.report(ErrorEvent.INVALID_DOORBELL_VALUE if self.size else ErrorEvent.INVALID_DOORBELL)
