"""PVINFO: the page by which a vGPU tells its driver that it is one, and what of the graphics memory belongs to it.

Layout: Linux, drivers/gpu/drm/i915/i915_pvinfo.h (interface version 1.0), a protocol between host and guest.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from umdev.device import RO, Block, Register, Register16, Register64, RegisterArray

if TYPE_CHECKING:
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

PVINFO_BASE = 0x78000
PVINFO_SIZE = 0x1000
MAGIC = 0x4776_5447_7654_4776
"""The bytes "vGTvGTvG"."""
CAP_FULL_PPGTT = 1 << 2
CAP_HWSP_EMULATION = 1 << 3
"""i915 refuses a vGPU without these two. Bit 4 would offer huge GTT entries."""


class Notification(enum.IntEnum):
    """What the driver writes to `notify`."""

    PPGTT_L3_CREATE = 2
    PPGTT_L3_DESTROY = 3
    PPGTT_L4_CREATE = 4
    PPGTT_L4_DESTROY = 5
    CONTEXT_CREATE = 6
    CONTEXT_DESTROY = 7


NOTIFICATIONS = frozenset(Notification)


class PvInfo(Block["Vgpu"]):
    """The page, at 0x78000 of BAR 0. What the driver has no business to write is read-only."""

    magic = Register64(0x000, RO, reset=MAGIC)
    version_major = Register16(0x008, RO, reset=1)
    version_minor = Register16(0x00A, RO)
    vgt_id = Register(0x00C, RO)
    caps = Register(0x010, RO, reset=CAP_FULL_PPGTT | CAP_HWSP_EMULATION)
    reserved0 = RegisterArray(0x014, Register, RO, count=11)
    mappable_base = Register(0x040, RO)
    mappable_size = Register(0x044, RO)
    hidden_base = Register(0x048, RO)
    hidden_size = Register(0x04C, RO)
    fence_count = Register(0x050, RO)
    reserved1 = RegisterArray(0x054, Register, RO, count=491)
    reserved2 = Register(0x800, RO)
    display_ready = Register(0x804)
    reserved3 = RegisterArray(0x808, Register, RO, count=4)
    notify = Register(0x818)
    reserved4 = RegisterArray(0x81C, Register, RO, count=5)
    cursor_x_hot = Register(0x830, reset=0xFFFF_FFFF)
    cursor_y_hot = Register(0x834, reset=0xFFFF_FFFF)
    page_directory = RegisterArray(0x838, Register64, count=4)
    context_descriptor = Register64(0x858)
    reserved5 = RegisterArray(0x860, Register, RO, count=488)

    @magic.on_read
    def introduce(self) -> int:
        """A driver that has read the magic knows that it drives a vGPU."""
        self.device.handshake = True
        return self.magic.value

    @display_ready.on_write
    def ready(self, value: int) -> None:
        """i915 writes 1 at the end of its probe."""
        self.device.say(f"the driver says that its display is {'ready' if value & 1 else 'not ready'}")

    @notify.on_write
    def notified(self, value: int) -> None:
        """Page tables come and go; with four levels the root is in the first directory register."""
        root = self.page_directory[0].value
        match value:
            case Notification.PPGTT_L4_CREATE:
                self.device.page_tables.create(root)
            case Notification.PPGTT_L4_DESTROY:
                self.device.page_tables.destroy(root)
                if self.device.shadows is not None:
                    self.device.shadows.forget(root)
            case _ if value in NOTIFICATIONS:
                self.device.refuse(f"notification {value}")
            case _:
                self.device.refuse("a notification that is none")
