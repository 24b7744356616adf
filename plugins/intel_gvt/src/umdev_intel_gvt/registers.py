"""The register map: BAR 0, with registers in its first 2 MiB and the global page table in its upper half."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import At, Block

from .engines import ENGINES
from .fences import FenceRegisters
from .interrupt_tree import EventBlock, InterruptTree
from .named import NamedRegisters, WorkaroundRegisters
from .power import Fuses, PowerRegisters
from .pvinfo import PVINFO_BASE, PvInfo
from .reset import ResetRegisters
from .ring import RingRegisters
from .unlisted import unlisted

if TYPE_CHECKING:
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

MMIO_SIZE = 16 << 20
REGISTERS_SIZE = 2 << 20
GGTT_OFFSET = 8 << 20
GGTT_SIZE = 8 << 20
_RENDER, _BLITTER, _VIDEO, _ENHANCE = (engine.base for engine in ENGINES)


class ListedRegisters(Block["Vgpu"]):
    """Every register that has a name."""

    named = At(0, NamedRegisters)
    workarounds = At(0, WorkaroundRegisters)
    render = At(_RENDER, RingRegisters)
    video = At(_VIDEO, RingRegisters)
    enhance = At(_ENHANCE, RingRegisters)
    blitter = At(_BLITTER, RingRegisters)
    reset = At(0, ResetRegisters)
    power = At(0, PowerRegisters)
    fuses = At(0, Fuses)
    interrupts = At(0x44200, InterruptTree)
    pvinfo = At(PVINFO_BASE, PvInfo)
    south = At(0xC4000, EventBlock)
    fences = At(0x100000, FenceRegisters)


class Registers(ListedRegisters):
    """All 2 MiB."""

    unlisted = At(0, unlisted(ListedRegisters, REGISTERS_SIZE))
