"""The interrupt tree: each engine's events, masked twice, gathered in four GT blocks and a master, to one MSI.

Facts: Intel Graphics PRM, Kaby Lake, volume 2c: each block is ISR, IMR, IIR, IER, sixteen bytes.
A bit of IIR is set when its event comes and IMR lets it; it counts when IER has it; the master's bit 31 lets all out.
Each bit has a second place behind it: an event that comes while the bit is set sets it again when it is cleared. A
driver needs that, since its write that clears may be posted: it looks for what has happened before that write arrives.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from umdev.device import RO, W1C, At, Block, Flag, Register, State

if TYPE_CHECKING:
    from .ring import RingRegisters
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

ALL_MASKED = 0xFFFF_FFFF
HALF = 0xFFFF


class EngineEvent(enum.IntEnum):
    """Bit of an event in an engine's half of its GT block."""

    USER = 0
    COMMAND_ERROR = 3
    FLUSH = 4
    CONTEXT_SWITCH = 8
    SEMAPHORE_WAIT = 11


class Master(Register):
    """MASTER_IRQ: only the enable is stored; the others say which block has something."""

    enable = Flag(31)


class EventBlock(Block["Vgpu"]):
    """One block of four registers."""

    isr = Register(0x0, RO)
    imr = Register(0x4, reset=ALL_MASKED)
    iir = Register(0x8, W1C)
    ier = Register(0xC)
    queued = State(lambda: 0)
    """Bits of IIR that will be set again when they are cleared."""

    @imr.on_write
    def masked(self, value: int) -> None:
        """IMR keeps events out of IIR; it takes nothing back."""

    @iir.on_write
    def acknowledged(self, value: int) -> None:
        """What came twice comes back, as a new edge; what is left may still be wanted."""
        tree = self.device.registers.interrupts
        tree.evaluate()
        again = self.queued & value
        if again:
            self.queued &= ~again
            self.iir.value |= again
            tree.evaluate()

    @ier.on_write
    def enabled(self, value: int) -> None:
        """What was waiting may be wanted now."""
        self.device.registers.interrupts.evaluate()

    def add(self, bit: int) -> None:
        """An event has come, and IMR lets it."""
        if self.iir.value & bit:
            self.queued |= bit
        self.iir.value |= bit

    @property
    def wanted(self) -> int:
        """Events that came and are enabled."""
        return self.iir.value & self.ier.value


class InterruptTree(Block["Vgpu"]):
    """Master and blocks, from 0x44200 of BAR 0 on; the south display's block stands apart and is `EventBlock` alone."""

    master = Master(0x000, RO)
    gt = At(0x100, EventBlock, count=4, stride=0x10)
    pipe = At(0x200, EventBlock, count=3, stride=0x10)
    port = At(0x240, EventBlock)
    misc = At(0x260, EventBlock)
    pcu = At(0x2E0, EventBlock)

    @master.on_read
    def summary(self) -> int:
        """The enable, and a bit for each block that has something."""
        return self.master.value & Master.enable.bits | self.pending()

    @master.on_write
    def switch(self, value: int) -> None:
        """The driver turns it off at the start of its handler, and on at the end."""
        self.master.enable = bool(value & Master.enable.bits)
        self.evaluate()

    def pending(self) -> int:
        """Bits 0 render, 1 blitter, 2 video, 3 second video, 4 power, 5 GuC, 6 enhance, 30 PCU."""
        found = 0
        for number, block in enumerate(self.gt):
            wanted = block.wanted
            if wanted & HALF:
                found |= 1 << 2 * number
            if wanted & ~HALF:
                found |= 1 << 2 * number + 1
        return found | (1 << 30 if self.pcu.wanted else 0)

    def raise_event(self, ring: RingRegisters, block: int, shift: int, event: EngineEvent) -> None:
        """An engine's event; the device lock is held. However many come, they are two at most, as hardware has it."""
        bit = 1 << event + shift
        target = self.gt[block]
        if ring.interrupt_mask.value & bit or target.imr.value & bit:
            return
        target.add(bit)
        self.evaluate()

    def evaluate(self) -> None:
        """Send a message when the tree's output rises: a driver that has not looked yet needs no second one."""
        device = self.device
        level = bool(self.master.value & Master.enable.bits and self.pending())
        if level == device.interrupt_level:
            return
        device.interrupt_level = level
        if level:
            device.interrupts.raise_()
            device.messages_sent += 1
        else:
            device.interrupts.lower()
