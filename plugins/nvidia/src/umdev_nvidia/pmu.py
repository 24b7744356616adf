"""The PMU, a small processor of the GPU: the driver loads a program into it and waits until it answers.

Nothing runs here: what is loaded is forgotten, and the mailboxes that the program would set up appear when it is
started. Facts: Linux, drivers/gpu/drm/nouveau (nvkm/subdev/pmu and its fuc sources): rings at 0x4d0 and 0x4dc, size <<
16 | base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import RO, WO, Block, Flag, Register, RegisterArray

if TYPE_CHECKING:
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

TO_PMU, FROM_PMU = 0x0080_0600, 0x0080_0680


class Control(Register):
    """Falcon CPUCTL."""

    start = Flag(1)


class Pmu(Block["Vgpu"]):
    """At 0x10a000 of BAR 0."""

    interrupt_set = Register(0x000, WO)
    interrupt_clear = Register(0x004, WO)
    interrupt_state = Register(0x008, RO)
    interrupt_enable = Register(0x010, WO)
    interrupt_disable = Register(0x014, WO)
    interrupt_route = Register(0x01C)
    interface = Register(0x048)
    idle = Register(0x04C)
    control = Control(0x100)
    entry = Register(0x104)
    transfers = Register(0x10C, RO)
    """Bits 2:1: memory is still being scrubbed. It never is."""
    code = RegisterArray(0x180, Register, WO, count=16)
    data = RegisterArray(0x1C0, Register, WO, count=16)
    """Upload ports: control, data, and for code a tag. Endless uploads end nowhere."""
    queue_heads = RegisterArray(0x4A0, Register, count=4)
    queue_tails = RegisterArray(0x4B0, Register, count=4)
    message_head = Register(0x4C8)
    message_tail = Register(0x4CC)
    to_pmu = Register(0x4D0, RO)
    from_pmu = Register(0x4DC, RO)

    @control.on_write
    def start(self, value: int) -> None:
        """As if the program had begun and set up its mailboxes."""
        if self.control.start:
            self.to_pmu.value, self.from_pmu.value = TO_PMU, FROM_PMU
