"""The global page table: one entry for each page of graphics memory, of which a vGPU sees and changes its own slices.

Entry: Intel Graphics PRM, Kaby Lake, volume 5 (memory views): bit 0 present, bits 38:12 the page. Every page
that is present can be written.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

from umdev.device import PAGE_SIZE
from umdev_softgpu import Format, Level, Masks

from ._fast import ffi, lib
from .partition import GRAPHICS_MEMORY
from .registers import GGTT_OFFSET, GGTT_SIZE

if TYPE_CHECKING:
    from umdev.device import Device

    from .partition import Slice

ENTRY_BYTES = 8
PRESENT = 1
ADDRESS_MASK = 0x7F_FFFF_F000
FORMAT = Format((Level(shift=12, bits=20, entry_bytes=ENTRY_BYTES),), address_bits=32)
MASKS = (Masks(present=PRESENT, writable=0, leaf=0, address=ADDRESS_MASK),)


class GlobalTable:
    """The entries, and the C code that answers the driver's accesses to them."""

    def __init__(self, slice_: Slice) -> None:
        """Costs memory only for entries that were written."""
        self.entries = mmap.mmap(-1, GGTT_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._buffer = ffi.from_buffer(self.entries)
        self._native: Any = ffi.new("gvt_ggtt *")
        self._native.entries = ffi.cast("uint64_t *", self._buffer)
        self._native.count = GRAPHICS_MEMORY // PAGE_SIZE
        for native, range_ in zip(self._native.slices, (slice_.aperture, slice_.hidden), strict=True):
            native.first, native.end = range_.base // PAGE_SIZE, range_.end // PAGE_SIZE

    def install(self, device: Device) -> None:
        """Answer the upper half of BAR 0."""
        device.native.overlay(0, GGTT_OFFSET, GGTT_SIZE, ffi.addressof(lib, "gvt_ggtt_access"), self._native)

    def clear(self) -> None:
        """Every entry is absent again, and its memory given back."""
        self.entries.madvise(mmap.MADV_DONTNEED)

    @property
    def counters(self) -> dict[str, int]:
        """Entries written and writes refused since the device was made."""
        return {"updates": self._native.updates, "refused": self._native.refused}
