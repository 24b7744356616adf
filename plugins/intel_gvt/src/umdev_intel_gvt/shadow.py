"""Shadow tables: copies of the driver's page tables, kept up to date by write-protecting the pages they are copies of.

Walking the driver's own tables gives the same addresses and costs less here, so a vGPU shadows only when it is asked to
(attribute `shadow`). Hardware behind the engines would need it: it can't be given tables that a guest writes at will.
"""

from __future__ import annotations

import logging
import mmap
import struct
from typing import TYPE_CHECKING, NamedTuple

from umdev.device import PAGE_SIZE, DmaError, Iova, ProtectMode, ServiceUnavailable, UmdevError
from umdev_softgpu import Masks, Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from umdev.device import DeviceMemory, PageWrite

log = logging.getLogger("umdev.intel_gvt")

ENTRIES = 512
PRESENT, FLAGS, LARGE = 1, 0x3, 0x80
ADDRESS_MASK = 0x7F_FFFF_F000
LAST_LEVEL = 3
DIRECTORY_LEVEL = 2
"""Whose entries may be pages of 2 MiB; a shadow splits them."""
POOL_PAGES = 4096
_TABLE = struct.Struct(f"<{ENTRIES}Q")
MASKS = tuple(
    Masks(present=PRESENT, writable=2, leaf=0, address=ADDRESS_MASK, target=target)
    for target in (Target.LOCAL, Target.LOCAL, Target.LOCAL, Target.SYSTEM)
)
"""Tables lie in the pool; only the last level's entries are bus addresses."""
STRONGEST_FIRST = (ProtectMode.TRAP, ProtectMode.TRACK)
SHADOW_MODES: Mapping[str, tuple[ProtectMode, ...]] = {
    "off": (),
    "auto": STRONGEST_FIRST,
    "emulate": (ProtectMode.EMULATE,),
    "trap": (ProtectMode.TRAP,),
    "track": (ProtectMode.TRACK,),
}
"""Values of the attribute `shadow`, and the guarantees that are asked for."""


class Key(NamedTuple):
    """One shadow: of a page of the guest's, as a table of a level. A 2 MiB page is split into a table of its own."""

    page: int
    level: int
    split: int = 0
    """What the entry of a 2 MiB page allows, for those that it is split into; 0: a table of the guest's."""


class ShadowTables:
    """The shadows of one vGPU. Every method is called with the device lock held; the engines' walkers read the pool."""

    def __init__(self, memory: DeviceMemory, modes: Sequence[ProtectMode] = STRONGEST_FIRST) -> None:
        """modes: the guarantees to ask for, in this order; the first that the host gives is used."""
        self.pool = mmap.mmap(-1, POOL_PAGES * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.mode: ProtectMode | None = None
        self.reloads = self.refused = 0
        self._memory = memory
        self._modes = modes
        self._places: dict[Key, int] = {}
        self._free = list(range(POOL_PAGES - 1, 0, -1))  # page 0 stays empty: it stands for what can't be shadowed
        self._children: dict[Key, set[Key]] = {}
        self._dirty: set[int] = set()
        self._roots: set[int] = set()

    def root(self, page: int) -> int:
        """Where in the pool the shadow of a top-level table lies; made if there is none. 0: it can't be read."""
        place = self._shadow(Key(page, 0))
        if place:  # a driver may name any number of others
            self._roots.add(page)
        return place

    def forget(self, page: int) -> None:
        """A top-level table ends: give back what no other one reaches."""
        self._roots.discard(page)
        self._sweep()

    def synchronise(self) -> None:
        """Bring in every store made before: at a submission, and when the driver says that it changed its tables."""
        if self.mode is ProtectMode.TRACK:
            self._dirty |= set(self._memory.collect())
        dirty, self._dirty = self._dirty, set()
        pages = {key.page for key in self._places}
        again = [Iova(page) for page in dirty if page in pages]
        if again and self.mode is ProtectMode.TRAP:  # armed first, then read: a store in between comes again
            self._memory.protect(ProtectMode.TRAP, again, self._stored)
        for key in [key for key in self._places if key.page in dirty and not key.split]:
            if key in self._places:
                self._load(key)
        if len(self._free) < POOL_PAGES // 4:
            self._sweep()

    def unmapped(self, first: int, end: int) -> None:
        """Guest memory goes, and its protection with it."""
        gone = {key for key in self._places if first <= key.page < end}
        for key in gone:
            self._release(key)
        self._roots -= {key.page for key in gone if key.level == 0}

    def clear(self) -> None:
        """A reset: nothing is shadowed, nothing is protected."""
        self._roots.clear()
        self._drop(set(self._places))
        self._dirty.clear()

    @property
    def state(self) -> dict[str, object]:
        """For people: how many tables have a shadow, the guarantee, how often one was read, what had no room."""
        mode = self.mode.value if self.mode else None
        return {"tables": len(self._places), "mode": mode, "reads": self.reloads, "refused": self.refused}

    def _sweep(self) -> None:
        """Give back what no root reaches. Walkers meet none of it, so nothing is taken away under them."""
        reached: set[Key] = set()
        todo = [Key(root, 0) for root in self._roots]
        while todo:
            key = todo.pop()
            if key in self._places and key not in reached:
                reached.add(key)
                todo += self._children[key]
        self._drop(self._places.keys() - reached)

    def _shadow(self, key: Key) -> int:
        place = self._places.get(key)
        if place is not None:
            return place * PAGE_SIZE
        if not self._free or not (key.split or self._protect(key.page)):
            self.refused += 1
            return 0
        self._places[key] = self._free.pop()
        self._children[key] = set()
        self._load(key)
        return self._places[key] * PAGE_SIZE

    def _load(self, key: Key) -> None:
        """Copy a table, and shadow what it points to. A page that can't be read becomes an empty table."""
        self.reloads += 1
        children: set[Key] = set()
        if key.split:
            entries = [key.page + number * PAGE_SIZE | key.split for number in range(ENTRIES)]
        else:
            try:
                entries = list(_TABLE.unpack(self._memory.read(key.page, PAGE_SIZE)))
            except DmaError:
                entries = [0] * ENTRIES
            if key.level < LAST_LEVEL:
                entries = [self._child(key, entry, children) for entry in entries]
        self._children[key] = children
        place = self._places[key] * PAGE_SIZE
        self.pool[place : place + PAGE_SIZE] = _TABLE.pack(*entries)

    def _child(self, key: Key, entry: int, children: set[Key]) -> int:
        if not entry & PRESENT:
            return 0
        large = key.level == DIRECTORY_LEVEL and bool(entry & LARGE)
        page = entry & ADDRESS_MASK & (-(2 << 20) if large else -1)
        child = Key(page, key.level + 1, split=entry & FLAGS if large else 0)
        place = self._shadow(child)
        if not place:
            return 0
        children.add(child)
        return place | entry & FLAGS

    def _protect(self, page: int) -> bool:
        """Have stores to a page reported. False: the page is no memory of the guest's."""
        modes = self._modes if self.mode is None else (self.mode,)
        for mode in modes:
            try:
                self._memory.protect(mode, [Iova(page)], None if mode is ProtectMode.TRACK else self._stored)
            except ServiceUnavailable as error:
                log.info("shadow tables: %s", error)
                continue
            except UmdevError:
                return False
            self.mode = mode
            return True
        return False

    def _stored(self, write: PageWrite) -> None:
        """TRAP: the page is writable until it is armed again. EMULATE: the store is this model's to make."""
        if write.value is not None and write.width is not None:
            self._memory.write(write.address, write.value.to_bytes(write.width, "little"))
        self._dirty.add(write.address & -PAGE_SIZE)

    def _drop(self, keys: Iterable[Key]) -> None:
        keys = set(keys)
        for key in keys:
            self._release(key)
        kept = {key.page for key in self._places if not key.split}
        pages = [Iova(page) for page in {key.page for key in keys if not key.split} - kept]
        if pages and self.mode is not None:
            try:
                self._memory.unprotect(self.mode, pages)
            except UmdevError as error:  # the attachment is gone, and its protection with it
                log.debug("shadow tables: %s", error)

    def _release(self, key: Key) -> None:
        place = self._places.pop(key)
        del self._children[key]
        self.pool[place * PAGE_SIZE : (place + 1) * PAGE_SIZE] = bytes(PAGE_SIZE)
        self._free.append(place)
