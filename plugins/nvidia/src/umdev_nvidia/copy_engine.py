"""The copy engine, class B0B5: its methods, its interrupt registers.

Facts: NVIDIA, open-gpu-doc (classes/dma-copy/clb0b5.h); registers: Linux, drivers/gpu/drm/nouveau
(nvkm/engine/ce/gk104.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import RO, W1C, Block, Flag, Register

from .copy_launch import Launch
from .trouble import HostError, PbdmaError

if TYPE_CHECKING:
    from .execution import Execution
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

CLASS = 0xB0B5
NOP, PM_TRIGGER, PM_TRIGGER_END, LAUNCH_DMA = 0x100, 0x140, 0x1114, 0x300
STATE = frozenset(
    (0x240, 0x244, 0x248, 0x254, 0x258, 0x25C, 0x260, 0x264, *range(0x400, 0x420, 4), *range(0x700, 0x740, 4))
) - {0x724}
"""Methods that set a number for the next launch."""
RENDER_ENABLE_MODE = 0x25C


class Events(Register):
    """Interrupts; their bits."""

    blocking = Flag(0)
    non_blocking = Flag(1)
    launch_error = Flag(2)


class CopyEngineRegisters(Block["Vgpu"]):
    """At 0x106000 of BAR 0: what the engine wants to tell the driver."""

    enable = Events(0x904, reset=7)
    intr = Events(0x908, W1C)
    launch_error = Register(0xF14, RO)

    @intr.on_write
    @enable.on_write
    def changed(self, value: int) -> None:
        """Acknowledged, masked or unmasked."""
        self.device.registers.pmc.evaluate()

    @property
    def wanted(self) -> int:
        """Events that came and are enabled."""
        return self.intr.value & self.enable.value

    def raise_event(self, bits: int) -> None:
        """Interrupt the driver; the device lock is held."""
        self.intr.value |= bits
        self.device.registers.pmc.evaluate()

    def raise_launch_error(self) -> None:
        """A launch was not executed."""
        self.launch_error.value = 1
        self.raise_event(Events.launch_error.bits)


class CopyEngine:
    """One channel's state of it."""

    def __init__(self) -> None:
        self.state = dict.fromkeys(STATE, 0) | {RENDER_ENABLE_MODE: 1}

    def execute(self, execution: Execution, method: int, data: int) -> Launch | None:
        """One method; a launch is to be stepped until it is done. Raises: PageFault, HostError, LaunchError."""
        if method in self.state:
            self.state[method] = data
        elif method == LAUNCH_DMA:
            return Launch(execution, dict(self.state), data)
        elif method not in (NOP, PM_TRIGGER, PM_TRIGGER_END):
            raise HostError(PbdmaError.DEVICE, method, data)
        return None
