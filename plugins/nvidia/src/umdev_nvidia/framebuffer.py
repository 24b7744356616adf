"""The frame buffer partitions, which say how much video memory there is, and the caches in front of it.

Facts: Linux, drivers/gpu/drm/nouveau (nvkm/subdev/fb: ramgf100.c, ramgk104.c; nvkm/subdev/ltc/gm107.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import RO, At, Block, Register, RegisterArray

if TYPE_CHECKING:
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

PARTITIONS = 2
MIB = 1 << 20


class Partition(Block["Vgpu"]):
    """One partition's registers."""

    configuration = Register(0x204, RO)
    megabytes = Register(0x20C, RO)


class Framebuffer(Block["Vgpu"]):
    """At 0 of BAR 0."""

    partition_count = Register(0x022438, RO, reset=PARTITIONS)
    controller_count = Register(0x02243C, RO, reset=PARTITIONS)
    """Of memory controllers, over all partitions; nouveau divides one by the other."""
    controllers_disabled = Register(0x021C14, RO)
    partitions_disabled = Register(0x022554, RO)
    system_flush_page = Register(0x100C10)
    partition = At(0x110000, Partition, count=PARTITIONS, stride=0x1000)
    ram_10f584 = Register(0x10F584)
    ram_10ecc0 = Register(0x10ECC0)
    ram_10f160 = Register(0x10F160)
    ram_10f65c = Register(0x10F65C)
    cache_slices = Register(0x17E280, RO, reset=0x2000_0000)
    """Bits 31:28: slices of the level 2 cache in each partition."""
    cache_264 = Register(0x17E264)
    cache_278 = Register(0x17E278)
    cache_27c = Register(0x17E27C)
    clear_index = Register(0x17E338)
    clear_values = RegisterArray(0x17E33C, Register, count=5)

    def fill(self, megabytes: int) -> None:
        """After a reset: `megabytes` in equal parts."""
        for partition in self.partition:
            partition.megabytes.value = megabytes // PARTITIONS
