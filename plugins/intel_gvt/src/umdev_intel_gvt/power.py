"""What a driver asks of power management: mailbox, power wells, forcewake; and the fuses that say what is there.

Facts: Intel Graphics PRM, Kaby Lake, volume 2c; Linux, drivers/gpu/drm/i915 (what a driver waits for).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import RO, Block, Flag, Register, RegisterArray

if TYPE_CHECKING:
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]


class Mailbox(Register):
    """GEN6_PCODE_MAILBOX: a request runs when bit 31 is set; the low byte of the answer is the error."""

    run = Flag(31)


class PowerRegisters(Block["Vgpu"]):
    """At 0 of BAR 0, between the others."""

    well_control = RegisterArray(0x45400, Register, count=4)
    mailbox = Mailbox(0x138124)
    mailbox_data = Register(0x138128)
    mailbox_data1 = Register(0x13812C)
    forcewake_media = Register(0x0A270, masked=True)
    forcewake_render = Register(0x0A278, masked=True)
    forcewake_gt = Register(0x0A188, masked=True)
    ack_render = Register(0x00D84, RO)
    ack_media = Register(0x00D88, RO)
    ack_gt = Register(0x130044, RO)

    @well_control.on_write
    def request_wells(self, index: int, value: int) -> None:
        """Of each pair of bits the upper one asks for a well and the lower one says that it is on."""
        requests = value & 0xAAAA_AAAA
        self.well_control[index].value = requests | requests >> 1

    @mailbox.on_write
    def answer(self, value: int) -> None:
        """Every request succeeds at once: nothing here has a clock to change. Data 1 means "ready" to CDCLK control."""
        if not value & Mailbox.run.bits:
            return
        cdclk_control = 0x07
        self.mailbox_data.value = 1 if value & 0xFF == cdclk_control else 0
        self.mailbox_data1.value = 0
        self.mailbox.value = value & ~(Mailbox.run.bits | 0xFF)

    @forcewake_render.on_write
    def wake_render(self, value: int) -> None:
        """A driver in vGPU mode does not ask; for one that does, awake is what the GPU always is."""
        self.ack_render.value = self.forcewake_render.value

    @forcewake_media.on_write
    def wake_media(self, value: int) -> None:
        """As above."""
        self.ack_media.value = self.forcewake_media.value

    @forcewake_gt.on_write
    def wake_gt(self, value: int) -> None:
        """As above."""
        self.ack_gt.value = self.forcewake_gt.value


class Fuses(Block["Vgpu"]):
    """Constants: a GT2 with one slice, three subslices, 24 execution units and no display.

    With pipes A, B and C fused off, i915 finds no display and touches none of it.
    """

    display = Register(0x51000, RO, reset=1 << 30 | 1 << 28 | 1 << 21)
    slices = Register(0x09120, RO, reset=0x0280_0000)
    units_disabled = Register(0x09134, RO, reset=0xFF00_0000)
    crystal = Register(0x0A26C, RO, reset=4)
    edram = Register(0x120010, RO)
    frequencies = Register(0x145998, RO, reset=0x0006_0A16)
    guc_status = Register(0x0C000, RO, reset=1)
    distribution = Register(0x42000, RO, reset=1 << 31 | 7 << 25 | 0x0F00_0000)
    unclaimed_access = Register(0x42300, RO)
    dram = Register(0x145E04, RO)
