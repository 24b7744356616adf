"""The register map: BAR 0, with the VBIOS and a window onto video memory in it. Other offsets are burnt down."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import At, Block

from .config_space import ConfigMirror
from .copy_engine import CopyEngineRegisters
from .fifo import FifoRegisters
from .framebuffer import Framebuffer
from .mmu import MmuRegisters
from .plain import Plain
from .pmc import Pmc
from .pmu import Pmu
from .timer import Timer
from .topology import Topology
from .windows import BarControl

if TYPE_CHECKING:
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

MMIO_SIZE = 16 << 20


class Registers(Block["Vgpu"]):
    """Every register that there is."""

    pmc = At(0, Pmc)
    bars = At(0, BarControl)
    fifo = At(0, FifoRegisters)
    timer = At(0x9000, Timer)
    topology = At(0, Topology)
    framebuffer = At(0, Framebuffer)
    plain = At(0, Plain)
    mirror = At(0x88000, ConfigMirror)
    mmu = At(0x100C80, MmuRegisters)
    copy_engine = At(0x106000, CopyEngineRegisters)
    pmu = At(0x10A000, Pmu)
