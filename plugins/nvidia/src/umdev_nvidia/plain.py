"""Registers that are memory or constants and nothing else here: fuses, thermal, clocks, general-purpose pins, bus.

Offsets: what nouveau touches while it brings a GM107 up (Linux, drivers/gpu/drm/nouveau, nvkm/subdev).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import RO, Block, Register, Register8, RegisterArray

if TYPE_CHECKING:
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]


class Plain(Block["Vgpu"]):
    """At 0 of BAR 0, between the others."""

    bus_interrupts = Register(0x001100)
    bus_interrupt_enable = Register(0x001140)
    gpio_interrupts = RegisterArray(0x00DC00, Register, count=3, stride=8)
    gpio_interrupt_enables = RegisterArray(0x00DC60, Register, count=3, stride=8)
    gpio_states = RegisterArray(0x00DC80, Register, count=3, stride=8)
    thermal_e720 = Register(0x00E720)
    thermal_e728 = Register(0x00E728)
    thermal_20000 = Register(0x020000)
    thermal_20100 = Register(0x020100)
    speedo = Register(0x0212A8, RO)
    speedo_version = Register(0x0214A8, RO)
    copy_engines_disabled = Register(0x021C00, RO, reset=1)
    """CE0 is fused off; CE2 is the one that is there."""
    display_disabled = Register(0x021C04, RO, reset=1)
    """Bit 0: there is no display."""
    posted = Register(0x02240C, RO, reset=2)
    """Bit 1: firmware has initialised the GPU, so the driver runs no scripts of the VBIOS."""
    ring_timeouts_10 = Register(0x122310)
    ring_timeouts_18 = Register(0x122318)
    ring_timeouts_1c = Register(0x12231C)
    ring_timeouts_48 = Register(0x122348)
    ring_timeouts_58 = Register(0x122358)
    ring_timeouts_b0 = Register(0x1223B0)
    ring_122634 = Register(0x122634)
    clocks = RegisterArray(0x137000, Register, count=0x400 // 4)
    vga_index = Register8(0x6013D4)
    vga_data = Register8(0x6013D5)
