"""What an engine reaches: graphics addresses, through the global table and through per-process tables.

Each engine has its own, and a new one after each reset: closing the port is what ends all that the old life was doing.

Per-process tables: Intel Graphics PRM, Kaby Lake, volume 5: four levels of 512 eight-byte entries; bit 0
present, bit 1 writable, bits 38:12 the next table or the page; bit 7 of a page directory entry makes a 2 MiB page.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from umdev_softgpu import Format, Level, Masks, MemoryPort, Target

from . import ggtt, shadow

if TYPE_CHECKING:
    from umdev.device import Device
    from umdev_softgpu import Space

    from .ggtt import GlobalTable
    from .shadow import ShadowTables

_SHIFTS = (39, 30, 21, 12)
_LEAVES = (0, 0, 0x80, 0)
PPGTT_FORMAT = Format(tuple(Level(shift=shift, bits=9, entry_bytes=8) for shift in _SHIFTS), address_bits=48)
PPGTT_MASKS = tuple(Masks(present=1, writable=2, leaf=leaf, address=ggtt.ADDRESS_MASK) for leaf in _LEAVES)
CACHED_TABLES = 16
"""Walkers that are kept with what they have translated; a guest may have any number of tables."""


class GraphicsMemory:
    """One engine's view. Any thread."""

    def __init__(self, device: Device, table: GlobalTable, shadows: ShadowTables | None = None) -> None:
        """shadows: what takes the place of the driver's per-process tables."""
        self.port = MemoryPort(device, tables=table.entries, local=shadows.pool if shadows else None)
        self._shadows = shadows
        self.ggtt = self.port.paged(ggtt.FORMAT, ggtt.MASKS)
        self.ggtt.set_root(0, Target.TABLES)
        self._tables: OrderedDict[int, Space] = OrderedDict()

    def ppgtt(self, root: int) -> Space:
        """The addresses of a process, by the bus address of its top-level table. The device lock is held."""
        space = self._tables.get(root)
        if space is None:
            space = self.port.paged(PPGTT_FORMAT, shadow.MASKS if self._shadows else PPGTT_MASKS)
            self._tables[root] = space
            if len(self._tables) > CACHED_TABLES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(root)
        page = root & ggtt.ADDRESS_MASK
        if self._shadows is None:
            space.set_root(page)
        else:
            space.set_root(self._shadows.root(page), Target.LOCAL)
        return space

    def forget(self) -> None:
        """What was translated may have changed: walk anew from now on."""
        self.ggtt.invalidate()
        for space in tuple(self._tables.values()):
            space.invalidate()

    def close(self) -> None:
        """No access is inside guest memory when it returns, and none comes later. May be called twice."""
        self.port.close()
