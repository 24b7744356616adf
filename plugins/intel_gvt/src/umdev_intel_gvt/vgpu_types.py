"""The types on offer: names, sizes and description texts as GVT-g has them.

Table and text: Linux, drivers/gpu/drm/i915/gvt (vgpu.c and kvmgt.c): `GVTg_V5_<n>`, n vGPUs of equal weight to a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from .partition import APERTURE, HOST_APERTURE, MIB, Share


@dataclass(frozen=True, slots=True)
class VgpuType:
    """One type. `weight` is its share of the engines against other vGPUs."""

    name: str
    share: Share
    weight: int
    resolution: str

    @property
    def id(self) -> str:
        """As in a mediated device's directory."""
        return f"i915-{self.name}"

    @property
    def description(self) -> str:
        """Five lines, each with its line end."""
        return (
            f"low_gm_size: {self.share.aperture // MIB}MB\n"
            f"high_gm_size: {self.share.hidden // MIB}MB\n"
            f"fence: {self.share.fences}\n"
            f"resolution: {self.resolution}\n"
            f"weight: {self.weight}\n"
        )


_TABLE = (
    VgpuType("GVTg_V5_8", Share(64 * MIB, 384 * MIB), 2, "1024x768"),
    VgpuType("GVTg_V5_4", Share(128 * MIB, 512 * MIB), 4, "1920x1200"),
    VgpuType("GVTg_V5_2", Share(256 * MIB, 1024 * MIB), 8, "1920x1200"),
    VgpuType("GVTg_V5_1", Share(512 * MIB, 2048 * MIB), 16, "1920x1200"),
)
TYPES = {type_.id: type_ for type_ in _TABLE if (APERTURE - HOST_APERTURE) // type_.share.aperture >= 1}
"""By id; those that a GPU with this aperture has room for."""
