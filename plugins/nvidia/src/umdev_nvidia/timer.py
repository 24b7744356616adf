"""PTIMER: nanoseconds since power-on, and an alarm.

Facts: Linux, drivers/gpu/drm/nouveau (nvkm/subdev/timer, nv04.c and gk20a.c): the low five bits do not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import W1C, Block, Register, State

if TYPE_CHECKING:
    from umdev.device import Work

    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

LOW = 0xFFFF_FFE0
HIGH = 0x1FFF_FFFF
ALARM = 1 << 0
NANOSECOND = 1e-9
JUST_PASSED = 1 << 28
"""Nanoseconds: a time so little ago comes at once. Time runs on while a driver is on its way to set the alarm."""


class Timer(Block["Vgpu"]):
    """At 0x9000 of BAR 0."""

    intr = Register(0x100, W1C)
    enable = Register(0x140)
    numerator = Register(0x200)
    denominator = Register(0x210)
    low = Register(0x400)
    high = Register(0x410)
    alarm = Register(0x420)
    work: State[Work | None] = State(lambda: None, save=False)

    @low.on_read
    def read_low(self) -> int:
        """Bits 31:5 of the time."""
        return self.device.clock.now_ns & LOW

    @high.on_read
    def read_high(self) -> int:
        """Bits 60:32."""
        return self.device.clock.now_ns >> 32 & HIGH

    @alarm.on_write
    def set_alarm(self, value: int) -> None:
        """Interrupt when the low half of the time reaches a value; there is one alarm."""
        if self.work is not None:
            self.work.cancel()
        away = (value - self.device.clock.now_ns) & 0xFFFF_FFFF
        if away > 0xFFFF_FFFF - JUST_PASSED:
            away = 0
        self.work = self.device.after(away * NANOSECOND, self.fire)

    def fire(self) -> None:
        """The time has come."""
        self.intr.value |= ALARM
        self.device.registers.pmc.evaluate()

    @intr.on_write
    @enable.on_write
    def changed(self, value: int) -> None:
        """Acknowledged, masked or unmasked."""
        self.device.registers.pmc.evaluate()

    @property
    def wanted(self) -> int:
        """Events that came and are enabled."""
        return self.intr.value & self.enable.value
