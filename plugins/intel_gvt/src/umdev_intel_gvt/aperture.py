"""BAR 2: the part of graphics memory that the processor sees, through the global table and the fences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import Block
from umdev_softgpu import Fault

from .partition import APERTURE

if TYPE_CHECKING:
    from .vgpu import Vgpu  # the type in Block["Vgpu"]


class ApertureBlock(Block["Vgpu"]):
    """It has no registers."""


class Aperture:
    """Answers the driver's accesses to BAR 2, with the device lock held."""

    def __init__(self, vgpu: Vgpu) -> None:
        self._vgpu = vgpu

    def install(self) -> None:
        """Answer the whole BAR."""
        self._vgpu.native.add_callback_overlay(2, 0, APERTURE, self.read, self.write)

    def read(self, offset: int, length: int) -> bytes:
        """What lies there; all ones where no page is."""
        if self._vgpu.registers.fences.at(offset) is not None:
            return b"".join(self._read(self._place(offset + n), 1) for n in range(length))
        return self._read(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """Store it; what no page takes is dropped."""
        if self._vgpu.registers.fences.at(offset) is not None:
            for n in range(len(data)):
                self._write(self._place(offset + n), data[n : n + 1])
            return
        self._write(offset, data)

    def _place(self, address: int) -> int:
        fence = self._vgpu.registers.fences.at(address)
        return address if fence is None else fence.untile(address)

    def _read(self, address: int, length: int) -> bytes:
        found = self._vgpu.memory_of_driver.ggtt.read(address, length)
        return b"\xff" * length if isinstance(found, Fault) else found

    def _write(self, address: int, data: bytes) -> None:
        if isinstance(self._vgpu.memory_of_driver.ggtt.write(address, data), Fault):
            self._vgpu.refuse("store to an aperture page that is not there")
