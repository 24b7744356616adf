"""The types on offer: names, numbers and description line as a host with NVIDIA's vGPU software shows them.

Table: NVIDIA, "Virtual GPU Software User Guide" (Tesla M10 virtual GPU types); numbers and subsystem ids as public
lists of mediated device types have them. The series is for what a vGPU is licensed: Q workstation, B desktop, A
application.
"""

from __future__ import annotations

from dataclasses import dataclass

TOTAL_MEGABYTES = 8192
"""One of a Tesla M10's four GPUs."""


@dataclass(frozen=True, slots=True)
class VgpuType:
    """One type. Frames per second are what the frame-rate limiter allows."""

    number: int
    name: str
    megabytes: int
    heads: int
    resolution: str
    frames: int
    subsystem: int

    @property
    def id(self) -> str:
        """As in a mediated device's directory."""
        return f"nvidia-{self.number}"

    @property
    def maximum(self) -> int:
        """How many a GPU has room for."""
        return TOTAL_MEGABYTES // self.megabytes

    @property
    def description(self) -> str:
        """One line."""
        return (
            f"num_heads={self.heads}, frl_config={self.frames}, framebuffer={self.megabytes}M, "
            f"max_resolution={self.resolution}, max_instance={self.maximum}"
        )


_SMALL, _LARGE, _APPLICATION = "2560x1600", "5120x2880", "1280x1024"
_TABLE = (
    VgpuType(35, "GRID M10-0B", 512, 2, _SMALL, 45, 0x11CC),
    VgpuType(36, "GRID M10-0Q", 512, 2, _SMALL, 60, 0x11CE),
    VgpuType(37, "GRID M10-1A", 1024, 1, _APPLICATION, 60, 0x11D3),
    VgpuType(38, "GRID M10-1B", 1024, 4, _LARGE, 45, 0x11CD),
    VgpuType(39, "GRID M10-1Q", 1024, 4, _LARGE, 60, 0x11CF),
    VgpuType(40, "GRID M10-2A", 2048, 1, _APPLICATION, 60, 0x11D4),
    VgpuType(41, "GRID M10-2Q", 2048, 4, _LARGE, 60, 0x11D0),
    VgpuType(42, "GRID M10-4A", 4096, 1, _APPLICATION, 60, 0x11D5),
    VgpuType(43, "GRID M10-4Q", 4096, 4, _LARGE, 60, 0x11D1),
    VgpuType(44, "GRID M10-8A", 8192, 1, _APPLICATION, 60, 0x11D6),
    VgpuType(45, "GRID M10-8Q", 8192, 4, _LARGE, 60, 0x11D2),
    VgpuType(155, "GRID M10-2B", 2048, 4, _LARGE, 45, 0x1286),
    VgpuType(208, "GRID M10-2B4", 2048, 4, _LARGE, 45, 0x12EE),
    VgpuType(240, "GRID M10-1B4", 1024, 4, _LARGE, 45, 0x1339),
)
TYPES = {type_.id: type_ for type_ in _TABLE}
"""By id."""
