"""QEMU's teaching device (QEMU, docs/specs/edu): factorial, DMA both ways, MSI or INTx."""

import math
from contextlib import suppress

from umdev.device import (
    RO,
    WO,
    Block,
    Device,
    DmaError,
    Flag,
    Interrupts,
    MemoryBar,
    PciId,
    Register,
    Register64,
    State,
)


class Status(Register):
    """What the function is doing, and whether a factorial ends with an interrupt."""

    computing = Flag(0, RO)
    raise_irq = Flag(7)


class DmaCommand(Register):
    """Starts a transfer; reads as started until it is done."""

    start = Flag(0)
    to_guest = Flag(1)
    raise_irq = Flag(2)


class EduRegisters(Block["Edu"]):
    """BAR 0."""

    ident = Register(0x00, RO, reset=0x0100_00ED)
    liveness = Register(0x04)
    factorial = Register(0x08)
    status = Status(0x20)
    irq_status = Register(0x24, RO)
    irq_raise = Register(0x60, WO)
    irq_ack = Register(0x64, WO)
    dma_source = Register64(0x80)
    dma_target = Register64(0x88)
    dma_count = Register64(0x90)
    dma_command = DmaCommand(0x98)

    @liveness.on_write
    def invert(self, value: int) -> None:
        self.liveness.value = ~value

    @factorial.on_write
    def compute(self, value: int) -> None:
        if not self.status.computing:  # else the last number that comes is the one
            self.device.after(0, self.computed)
        self.status.computing = True

    def computed(self) -> None:
        self.factorial.value = math.factorial(min(self.factorial.value, 34))  # 34! is 0 modulo 2**32
        self.status.computing = False
        if self.status.raise_irq:
            self.raise_irq(0x1)

    @irq_raise.on_write
    def raise_irq(self, bits: int) -> None:
        self.irq_status.value |= bits
        self.device.interrupts.raise_()

    @irq_ack.on_write
    def acknowledge(self, bits: int) -> None:
        self.irq_status.value &= ~bits
        if not self.irq_status.value:
            self.device.interrupts.lower()

    @dma_command.on_write
    def command(self, value: int, old: int) -> None:
        self.dma_command.value = old  # what starts nothing, or comes while the first goes on, is ignored, as by QEMU
        if value & ~old & 1:
            self.device.after(0.1, self.transfer)
            self.dma_command.value = value

    def transfer(self) -> None:
        to_guest, count, buffer = self.dma_command.to_guest, self.dma_count.value, self.device.buffer
        # To its DMA engine the device's own 4 KiB are at 0x40000.
        at = (self.dma_source if to_guest else self.dma_target).value - 0x40000
        if 0 <= at <= len(buffer) - count:  # QEMU stops the whole VM here; we refuse the transfer
            with suppress(DmaError):  # an unmapped target or no bus mastering: nothing moves, as on a bus
                if to_guest:
                    self.device.memory.write(self.dma_target.value, buffer[at : at + count])
                else:
                    buffer[at : at + count] = self.device.memory.read(self.dma_source.value, count)
        self.dma_command.start = False
        if self.dma_command.raise_irq:
            self.raise_irq(0x100)


class Edu(Device):
    """One edu function."""

    pci = PciId(vendor=0x1234, device=0x11E8, class_code=0x00FF00, revision=0x10)
    interrupts = Interrupts(msi=1, intx=True)
    bar0 = MemoryBar(0, EduRegisters, size=1 << 20, sizes=(4, 8))
    buffer = State(lambda: bytearray(4096))
