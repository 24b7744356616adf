"""What the function is, and the mirror of configuration space that the driver uses.

Identity: a Tesla M10 (10de:13bd); the subsystem names the vGPU type. Class 03/02 ("3D controller") keeps firmware and
VMM from treating it as VGA. Without a PCI Express capability, nouveau leaves the link alone. Mirror: Linux,
drivers/gpu/drm/nouveau (nvkm/subdev/pci): 0x88000 of BAR 0 is configuration space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import WO, Block, Interrupts, PciId, PowerManagement, Register, Register8

if TYPE_CHECKING:
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

INTERRUPTS = Interrupts(msi=1, intx=True)
CAPABILITIES = (PowerManagement(),)
NVIDIA = 0x10DE
TESLA_M10 = 0x13BD


def identity(subsystem: int) -> PciId:
    """The function's, with the subsystem of a vGPU type."""
    return PciId(
        vendor=NVIDIA,
        device=TESLA_M10,
        class_code=0x030200,
        revision=0xA2,
        subsystem_vendor=NVIDIA,
        subsystem_device=subsystem,
    )


class ConfigMirror(Block["Vgpu"]):
    """At 0x88000 of BAR 0: of configuration space, what the driver reaches this way."""

    rom_shadow = Register(0x50)
    """Bit 0: the VBIOS is read from memory instead of the flash chip. Both are the same here."""
    msi_rearm = Register8(0x68, WO)

    @msi_rearm.on_write
    def rearm(self, value: int) -> None:
        """The driver has heard of the last message: another one may be sent."""
        self.device.registers.pmc.rearm()
