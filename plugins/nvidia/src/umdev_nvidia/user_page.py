"""A channel's user page (USERD), by which driver and GPU tell each other how far they are.

Layout: NVIDIA, open-gpu-doc (manuals, dev_ram): put pointer at 0x8c, get pointer at 0x88, the address of the next
command at 0x44 and 0x60.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev_softgpu import Fault

if TYPE_CHECKING:
    from umdev_softgpu import Space

PUT, GET, ADDRESS_LOW, ADDRESS_HIGH = 0x8C, 0x88, 0x44, 0x60


class UserPage:
    """One channel's, for one life of the vGPU: what comes later does not reach the next life's memory. Any thread."""

    def __init__(self, vram: Space, address: int) -> None:
        self._vram, self.address = vram, address

    @property
    def put(self) -> int:
        """The driver's put pointer; as good as any number."""
        value = self._vram.read_u32(self.address + PUT)
        return 0 if isinstance(value, Fault) else value

    def show(self, get: int, address: int) -> None:
        """Where the GPU is."""
        self._vram.write_u32(self.address + GET, get)
        self._vram.write_u32(self.address + ADDRESS_LOW, address)
        self._vram.write_u32(self.address + ADDRESS_HIGH, address >> 32)
