"""How the processor reaches video memory: BAR 1 and BAR 3 through page tables, PRAMIN, and PROM with the VBIOS.

Facts: Linux, drivers/gpu/drm/nouveau (nvkm/subdev/bar/gf100.c, nvkm/subdev/instmem/nv50.c,
nvkm/subdev/bios/shadowrom.c). BAR 1 is bound by 0x1704, BAR 3 ("BAR2" to the driver) by 0x1714: bit 31 on, bits 27:0
the instance block's page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from umdev.device import RO, Block, Register
from umdev_softgpu import Fault, api_address

from . import vbios
from ._fast import ffi, lib
from .page_tables import address_space, tables_of

if TYPE_CHECKING:
    from umdev.device import Device
    from umdev_softgpu import MemoryPort, Space

    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]
    from .vram import Vram

MIB = 1 << 20
BAR1_SIZE, BAR3_SIZE = 256 * MIB, 32 * MIB
PROM, PRAMIN, WINDOW_SIZE = 0x300000, 0x700000, MIB
_ON = 1 << 31


class MemoryWindowBlock(Block["Vgpu"]):
    """It has no registers."""


class BarControl(Block["Vgpu"]):
    """At 0 of BAR 0."""

    pramin_base = Register(0x1700)
    bar1 = Register(0x1704)
    bind_busy = Register(0x1710, RO)
    bar3 = Register(0x1714)
    flush = Register(0x070000)
    """Bit 0 asks, bit 1 says that it goes on: it is done at once."""
    flush_l2_invalidate = Register(0x070004)
    flush_l2 = Register(0x070010)

    @pramin_base.on_write
    def move(self, value: int) -> None:
        """Bits 23:0: the page of 64 KiB. Bits 25:24 not 0: memory of the system, which is not shown here."""
        self.device.pramin.show(value)

    @bar1.on_write
    def bind_bar1(self, value: int) -> None:
        """Use other tables."""
        self.device.bar1_window.bind(value)

    @bar3.on_write
    def bind_bar3(self, value: int) -> None:
        """Use other tables."""
        self.device.bar3_window.bind(value)

    @flush.on_write
    @flush_l2.on_write
    @flush_l2_invalidate.on_write
    def flushed(self, value: int) -> None:
        """Writes are in order and there is no cache: nothing is ever waited for."""
        self.flush.value = self.flush_l2.value = self.flush_l2_invalidate.value = 0


class MemoryWindow:
    """BAR 1 or BAR 3, answered in C. The device lock is held for every call."""

    def __init__(self, vram: Vram) -> None:
        self.native: Any = ffi.new("nv_window *", {"api": ffi.cast("void *", api_address()), "vram": vram.native})
        self._port: MemoryPort | None = None
        self._local: Space | None = None
        self._space: Space | None = None
        self._value = 0

    def install(self, device: Device, bar: int, size: int) -> None:
        """Answer the whole BAR."""
        device.native.overlay(bar, 0, size, ffi.addressof(lib, "nv_window_access"), self.native)

    def reset(self, port: MemoryPort, local: Space) -> None:
        """Off, with a new way to memory."""
        self._port, self._local = port, local
        self.bind(0)

    def bind(self, value: int) -> None:
        """Take the tables that a register's value names; without the bit, or with none there, the window is off."""
        self._value = value
        assert self._port is not None
        assert self._local is not None
        tables = tables_of(self._local, (value & 0x0FFF_FFFF) << 12) if value & _ON else None
        if tables is None or isinstance(tables, Fault):
            self.native.space, self._space = ffi.NULL, None
            return
        space = address_space(self._port, tables)
        self.native.space, self.native.limit = ffi.cast("void *", space.pointer), tables.limit
        self._space = space  # C points to it

    def forget(self) -> None:
        """Tables, or the pointer to them, may have changed."""
        if self._value & _ON:
            self.bind(self._value)

    @property
    def refused(self) -> int:
        """Accesses that led nowhere, since the device was made."""
        return int(self.native.refused)


class Pramin:
    """The megabyte at 0x700000."""

    def __init__(self, vram: Vram) -> None:
        self.native: Any = ffi.new("nv_pramin *", {"vram": vram.native})
        self._image = ffi.new("uint8_t[]", vbios.IMAGE)
        self._prom = ffi.new("nv_prom *", {"image": self._image, "size": len(vbios.IMAGE)})

    def install(self, device: Device) -> None:
        """Answer it, and the VBIOS."""
        overlay = device.native.overlay
        overlay(0, PRAMIN, WINDOW_SIZE, ffi.addressof(lib, "nv_pramin_access"), self.native)
        overlay(0, PROM, WINDOW_SIZE, ffi.addressof(lib, "nv_prom_access"), self._prom, lockless=True)

    def show(self, value: int) -> None:
        """Video memory from where the register says; nothing where it says that it is the system's."""
        beyond = 1 << ADDRESS_END
        self.native.base = beyond if value >> 24 & 3 else (value & 0xFF_FFFF) << 16


ADDRESS_END = 48
"""Beyond any video memory, and far from where numbers wrap."""
