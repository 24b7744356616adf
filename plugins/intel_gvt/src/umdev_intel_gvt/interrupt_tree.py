"""The interrupt tree: each engine's events, masked twice, gathered in four GT blocks and a master, to one MSI.

Facts: Intel Graphics PRM, Kaby Lake, volume 2c: each block is ISR, IMR, IIR, IER, sixteen bytes.
A bit of IIR is set when its event comes and IMR lets it; it counts when IER has it; the master's bit 31 lets all out.
Each bit has a second place behind it: an event that comes while the bit is set sets it again when it is cleared. A
driver needs that, since its write that clears may be posted: it looks for what has happened before that write arrives.
A message goes out when the tree's output rises: a driver that has not looked yet needs no second one. However many
events come, they are two at most for each bit, as hardware has it.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from umdev.device import RO, W1C, At, Block, Flag, Native, Register

if TYPE_CHECKING:
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

ALL_MASKED = 0xFFFF_FFFF
_FAST = "umdev_intel_gvt._fast"


class EngineEvent(enum.IntEnum):
    """Bit of an event in an engine's half of its GT block."""

    USER = 0
    COMMAND_ERROR = 3
    FLUSH = 4
    CONTEXT_SWITCH = 8
    SEMAPHORE_WAIT = 11


class Master(Register):
    """MASTER_IRQ: only the enable is stored; the others say which block has something.

    Bits 0 render, 1 blitter, 2 video, 3 second video, 4 power, 5 GuC, 6 enhance, 30 PCU.
    """

    enable = Flag(31)


class EventBlock(Block["Vgpu"]):
    """One block of four registers. IMR keeps events out of IIR; it takes nothing back."""

    isr = Register(0x0, RO)
    imr = Register(0x4, reset=ALL_MASKED)
    iir = Register(0x8, W1C, native=Native(_FAST, "gvt_identity"))
    ier = Register(0xC, native=Native(_FAST, "gvt_enable"))


class InterruptTree(Block["Vgpu"]):
    """Master and blocks, from 0x44200 of BAR 0 on; the south display's block stands apart and is `EventBlock` alone.

    native/interrupts.c answers: a driver is here some six times for each submission. The driver turns the master off at
    the start of its handler, and on at the end.
    """

    master = Master(0x000, RO, native=Native(_FAST, "gvt_master"))
    gt = At(0x100, EventBlock, count=4, stride=0x10)
    pipe = At(0x200, EventBlock, count=3, stride=0x10)
    port = At(0x240, EventBlock)
    misc = At(0x260, EventBlock)
    pcu = At(0x2E0, EventBlock)
