"""BAR 2: the part of graphics memory that the processor sees, through the global table and the fences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from umdev.device import Block
from umdev_softgpu import api_address

from ._fast import ffi, lib
from .partition import APERTURE

if TYPE_CHECKING:
    from umdev.device import Device
    from umdev_softgpu import Space

    from .fences import Fence
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

BAR = 2


class ApertureBlock(Block["Vgpu"]):
    """It has no registers."""


class Aperture:
    """Answers the driver's accesses, in C; every method is called with the device lock held."""

    def __init__(self) -> None:
        self._native: Any = ffi.new("gvt_aperture *", {"api": ffi.cast("void *", api_address())})
        self._space: Space | None = None

    def install(self, device: Device) -> None:
        """Answer the whole BAR."""
        device.native.overlay(BAR, 0, APERTURE, ffi.addressof(lib, "gvt_aperture_access"), self._native)

    def reset(self, space: Space) -> None:
        """No fences, and a new way to memory."""
        self._native.space = ffi.cast("void *", space.pointer)
        self._space = space  # C points to it
        ffi.memmove(self._native.fences, bytes(ffi.sizeof(self._native.fences)), ffi.sizeof(self._native.fences))

    def set_fence(self, index: int, fence: Fence) -> None:
        """Untile what a fence covers."""
        native = self._native.fences[index]
        native.first, native.end, native.pitch, native.y_tiled = fence.first, fence.end, fence.pitch, fence.y_tiled

    @property
    def refused(self) -> int:
        """Accesses to pages that are not there, since the device was made."""
        return int(self._native.refused)


def untile(fence: Fence, address: int) -> int:
    """Where the byte lies that the processor sees at an address inside the fence."""
    native = ffi.new("gvt_fence *", [fence.first, fence.end, fence.pitch, fence.y_tiled])
    return int(lib.gvt_untile(native, address))
