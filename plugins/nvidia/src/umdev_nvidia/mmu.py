"""The memory unit's registers: what the driver writes when it changed page tables.

Facts: Linux, drivers/gpu/drm/nouveau (nvkm/subdev/mmu/vmmgf100.c): it waits until bits 23:16 of 0x100c80 are not 0
before it asks, and until bit 15 is set after that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import Block, Register

if TYPE_CHECKING:
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

_ROOM_AND_EMPTY = 0x00FF_8000


class MmuRegisters(Block["Vgpu"]):
    """At 0x100c80 of BAR 0."""

    control = Register(0x00, reset=_ROOM_AND_EMPTY)
    directory = Register(0x38)
    """The page directory whose translations are to be forgotten: all are, here."""
    invalidate = Register(0x3C)

    @control.on_write
    def configure(self, value: int) -> None:
        """Requests never queue up."""
        self.control.value = value | _ROOM_AND_EMPTY

    @invalidate.on_write
    def forget(self, value: int) -> None:
        """Walk anew from now on."""
        self.device.forget_translations()
