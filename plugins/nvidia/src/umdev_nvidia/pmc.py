"""PMC, the master control: who this is, which units are on, and the way of an interrupt to the driver.

Facts: Linux, drivers/gpu/drm/nouveau (nvkm/subdev/mc: gk104.c and gp100.c for the mask at 0x640); BOOT0 is GM107's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import RO, Block, Flag, Register, State

from .topology import PBDMAS

if TYPE_CHECKING:
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

GM107_A2 = 0x1170_00A2
ALL = 0xFFFF_FFFF
COPY_ENGINE, FIFO, TIMER = 1 << 7, 1 << 8, 1 << 20
"""Bits of the summary; the copy engine's is what the topology table says."""


class Enable(Register):
    """NV_PMC_INTR_EN: whether anything leaves the function."""

    on = Flag(0)


class Pmc(Block["Vgpu"]):
    """At 0 of BAR 0."""

    boot0 = Register(0x000, RO, reset=GM107_A2)
    boot1 = Register(0x004, RO)
    intr = Register(0x100, RO)
    intr1 = Register(0x104, RO)
    enable = Enable(0x140)
    enable1 = Register(0x144)
    unit_enable = Register(0x200)
    pbdma_enable = Register(0x204)
    mask = Register(0x640, reset=ALL)
    """Kernels before 6.2 do not write it: everything is let through at first."""
    mask1 = Register(0x644, reset=ALL)
    straps = Register(0x101000, RO)
    awaits_rearm = State(lambda: False)
    """A message was sent, and the driver has not said that it saw it."""
    messages = State(lambda: 0, keep=True)

    @intr.on_read
    def pending(self) -> int:
        """Units that want the driver's attention."""
        registers = self.device.registers
        return (
            (FIFO if registers.fifo.wanted else 0)
            | (COPY_ENGINE if registers.copy_engine.wanted else 0)
            | (TIMER if registers.timer.wanted else 0)
        )

    @enable.on_write
    @mask.on_write
    def gates_changed(self, value: int) -> None:
        """What was waiting may go out now."""
        self.evaluate()

    @pbdma_enable.on_write
    def count_pbdmas(self, value: int) -> None:
        """The driver writes ones and looks which stay."""
        self.pbdma_enable.value = value & (1 << PBDMAS) - 1

    @property
    def interrupt_state(self) -> dict[str, object]:
        """Where an interrupt is on its way to the driver."""
        fifo = self.device.registers.fifo
        return {
            "on": bool(self.enable.on),
            "pending": self.pending(),
            "mask": self.mask.value,
            "fifo_pending": fifo.pending,
            "fifo_enabled": fifo.enable.value,
            "awaits_rearm": self.awaits_rearm,
            "messages": self.messages,
        }

    def rearm(self) -> None:
        """See `ConfigMirror.rearm`."""
        self.awaits_rearm = False
        self.evaluate()

    def evaluate(self) -> None:
        """Interrupt the driver if something is pending that it lets through. The device lock is held.

        One message goes out, then none until the driver re-arms; INTx is the level itself.
        """
        interrupts = self.device.interrupts
        if not (self.enable.on and self.pending() & self.mask.value):
            interrupts.lower()
            return
        if self.awaits_rearm:
            return
        if interrupts.signal():
            self.awaits_rearm = True
            self.messages += 1
        else:
            interrupts.raise_()
