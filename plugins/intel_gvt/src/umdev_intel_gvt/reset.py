"""GDRST, and the registers that flush what an engine has cached.

Facts: Intel Graphics PRM, Kaby Lake, volume 2c. A driver writes GDRST and polls until it reads 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import Block, Register

if TYPE_CHECKING:
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

FULL_RESET = 1 << 0


class ResetRegisters(Block["Vgpu"]):
    """At 0 of BAR 0, between the others."""

    gdrst = Register(0x0941C)
    flush_control = Register(0x101008)
    invalidate_render = Register(0x4260)
    invalidate_video = Register(0x4264)
    invalidate_video2 = Register(0x4268)
    invalidate_blitter = Register(0x426C)
    invalidate_enhance = Register(0x4270)

    @gdrst.on_write
    def reset_engines(self, value: int) -> None:
        """Done before the write returns: nothing that the engines ran before writes memory or interrupts after it.

        Where memory is reached by message, one that has been sent to the client is the client's to carry out.
        """
        self.gdrst.value = 0
        for engine in self.device.engines:
            if value & (FULL_RESET | 1 << engine.spec.reset_bit):
                engine.reset()

    @flush_control.on_write
    def flush(self, value: int) -> None:
        """The driver changed the GGTT."""
        self.device.forget_translations()

    @invalidate_render.on_write
    @invalidate_video.on_write
    @invalidate_video2.on_write
    @invalidate_blitter.on_write
    @invalidate_enhance.on_write
    def invalidate(self, value: int) -> None:
        """Bit 0 reads 0 again when it is done, which is at once."""
        self.device.forget_translations()
        for register in (
            self.invalidate_render,
            self.invalidate_video,
            self.invalidate_video2,
            self.invalidate_blitter,
            self.invalidate_enhance,
        ):
            register.value &= ~1
