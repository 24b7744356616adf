"""BAR 0: controller registers (section 3.1), doorbells, and room for the MSI-X structures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import RESERVED, RO, RW, W1C, W1S, At, Block, Field, Flag, Register, Register64

from .queues import DOORBELL_PAIR, DOORBELLS, CompletionQueue, SubmissionQueue

if TYPE_CHECKING:
    from .controller import Nvme  # noqa: F401  # the type in Block["Nvme"]

BAR_SIZE = 0x4000
MSIX_TABLE, MSIX_PBA = 0x2000, 0x3000
IO_QUEUES = 8
QUEUES = 1 + IO_QUEUES
QUEUE_ENTRIES = 1024
"""The longest I/O queue; the admin queues have at most 4096 (section 3.1.8)."""
VERSION = 0x0001_0400
READY_TIMEOUT = 30
"""In units of 500 ms: this controller is ready at once, its host may be busy."""
PAGE_SHIFT_LEAST, PAGE_SHIFT_MOST = 12, 16
"""The driver chooses a page size of 4 KiB to 64 KiB."""
SHUTDOWN_COMPLETE = 2


class Capabilities(Register64):
    """CAP (3.1.1)."""

    mqes = Field(0, 15)
    cqr = Flag(16)
    to = Field(24, 31)
    css = Field(37, 44)
    mpsmin = Field(48, 51)
    mpsmax = Field(52, 55)


CAPABILITIES = (
    QUEUE_ENTRIES - 1
    | 1 << 16  # queues are contiguous
    | READY_TIMEOUT << 24
    | 1 << 37  # the NVM command set
    | PAGE_SHIFT_LEAST - 12 << 48
    | PAGE_SHIFT_MOST - 12 << 52
)


class Configuration(Register):
    """CC (3.1.5)."""

    en = Flag(0, RW)
    css = Field(4, 6, RW)
    mps = Field(7, 10, RW)
    ams = Field(11, 13, RW)
    shn = Field(14, 15, RW)
    iosqes = Field(16, 19, RW)
    iocqes = Field(20, 23, RW)


class ControllerStatus(Register):
    """CSTS (3.1.6)."""

    rdy = Flag(0)
    cfs = Flag(1)
    shst = Field(2, 3)


class AdminQueueAttributes(Register):
    """AQA (3.1.8): sizes of the admin queues, less one."""

    asqs = Field(0, 11, RW)
    acqs = Field(16, 27, RW)


class AdminQueueAddress(Register64):
    """ASQ and ACQ (3.1.9, 3.1.10)."""

    page = Field(12, 63, RW)


class Registers(Block["Nvme"]):
    """What the driver sees. A 64-bit register may come in two halves."""

    cap = Capabilities(0x00, RO, reset=CAPABILITIES)
    vs = Register(0x08, RO, reset=VERSION)
    intms = Register(0x0C, W1S)
    intmc = Register(0x10, W1C)
    cc = Configuration(0x14, RESERVED)
    csts = ControllerStatus(0x1C, RO)
    nssr = Register(0x20, RESERVED)  # no subsystem reset, no memory buffer: all of these are reserved
    aqa = AdminQueueAttributes(0x24, RESERVED)
    asq = AdminQueueAddress(0x28, RESERVED)
    acq = AdminQueueAddress(0x30, RESERVED)
    cmbloc = Register(0x38, RESERVED)
    cmbsz = Register(0x3C, RESERVED)
    submission = At(DOORBELLS, SubmissionQueue, count=QUEUES, stride=DOORBELL_PAIR)
    completion = At(DOORBELLS + 4, CompletionQueue, count=QUEUES, stride=DOORBELL_PAIR)

    @intms.on_write
    def mask(self, bits: int) -> None:
        self.intmc.value = self.intms.value  # two views of one mask (3.1.3, 3.1.4)
        self.device.settle_interrupts()

    @intmc.on_write
    def unmask(self, bits: int) -> None:
        self.intms.value = self.intmc.value
        self.device.settle_interrupts(unmasked=bits)

    @cc.on_write
    def configure(self, value: int, old: int) -> None:
        if self.cc.en and not old & 1:
            self.device.enable()
        elif old & 1 and not self.cc.en:
            self.device.disable()
        if self.cc.shn:
            self.device.shut_down()
