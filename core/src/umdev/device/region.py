"""`Region`: one BAR of one device at run time: its register cells, its live blocks, its windows, its handlers."""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from umdev._native import ffi
from umdev.addresses import PAGE_MASK, RegionOffset
from umdev.errors import SaveError, StateError
from umdev.services import Area, Doorbell

from .bars import Bar, Rom
from .layout import Layout, Slot
from .registers import Register

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .blocks import Block
    from .dispatch import NativeDevice

RegisterT = TypeVar("RegisterT", bound=Register)
FORMATS: Mapping[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Region:
    """Builds the region `index` of `native` from its declaration; `owner` becomes the blocks' `.device`.

    Its methods take no lock: the caller holds the device lock where the driver could interfere.
    """

    def __init__(self, native: NativeDevice, index: int, declaration: Bar[Any], owner: object) -> None:
        self.native = native
        self.index = index
        self.declaration = declaration
        self.name = declaration.name
        self.size = declaration.size
        self.kind = declaration.kind
        self.prefetchable = declaration.prefetchable
        self.layout = Layout.of(declaration.block, declaration.sizes)
        storage = ffi.new("uint64_t[]", max(1, self.layout.size // 8))  # aligned, which a bytearray need not be
        self._state = cells = memoryview(ffi.buffer(storage)).cast("B")
        self._cells = {width: cells.cast(form) for width, form in FORMATS.items()}
        self._address = int(ffi.cast("uintptr_t", storage))
        self.reads: list[Callable[..., Any] | None] = []
        """on_read handlers by slot, None before the first use; empty before the first of all (see `bind`)."""
        self.writes: list[Callable[..., Any] | None] = []
        self._descriptor: int | None = None
        self._memory: mmap.mmap | None = None
        native.add_region(index, self.size)
        native.set_layout(index, self.layout.pointer, storage, self)
        self.block: Block[Any] = declaration.block(owner, self, 0, self.name)
        try:
            self._make_windows()
        except BaseException:
            self.close()
            raise
        self.reset(windows=False)

    def __repr__(self) -> str:
        return f"<Region {self.name} ({self.declaration}) of {self.native.name}>"

    # Registers.

    def registers(self) -> Iterator[Slot]:
        """Every register and register array, in ascending order; paths are below the region's name."""
        return iter(self.layout.slots)

    def name_at(self, offset: int) -> str | None:
        """`bar0.ring.tail` for an offset in the region, None where no register is."""
        found = self.layout.find(offset)
        return f"{self.name}.{found[0].path_of(found[1])}" if found else None

    def text(self, offset: int, value: int) -> str | None:
        """`bar0.status=0x81 computing`: a value at an offset for people; None where no register is."""
        found = self.layout.find(offset)
        return f"{self.name}.{found[0].text(value, found[1])}" if found else None

    def blocks(self) -> dict[str, Block[Any]]:
        """The block and all blocks inside, by path."""
        found: dict[str, Block[Any]] = {}
        todo = [self.block]
        while todo:
            block = todo.pop()
            found[block.path] = block
            todo += reversed(list(block.blocks()))
        return found

    def live_register(self, declaration: RegisterT, path: str, offset: int, element: int) -> RegisterT:
        """For blocks: the live register of the declaration whose first element lies at `offset`."""
        slot = self.layout.slots[self.layout.by_offset[offset]]
        cell = slot.cell + element * slot.width
        return declaration.bind(path, self._cells[slot.width], cell // slot.width, self._address + cell)

    def doorbells(self) -> tuple[Doorbell, ...]:
        """What the driver may ring, in ascending order."""
        found: list[Doorbell] = []
        for slot in self.layout.slots:
            value = slot.declaration.doorbell
            if value is not False:
                offsets = (slot.offset + element * slot.stride for element in range(slot.count))
                told = None if value is True else value
                found += [Doorbell(self.index, RegionOffset(offset), slot.width, told) for offset in offsets]
        return tuple(sorted(found, key=lambda doorbell: doorbell.offset))

    def bind(self, slot: int, event: Literal["read", "write"]) -> Callable[..., Any]:
        """For the core: the method that handles an event, bound to its live block when it is first needed.

        So an instance costs only what is used.
        """
        handlers = self.reads if event == "read" else self.writes
        if not handlers:
            handlers += [None] * len(self.layout.slots)
        found = self.layout.slots[slot]
        block = self.block
        for part in found.path.split(".")[:-1]:
            name, _, number = part.partition("[")
            placed = getattr(block, name)
            block = placed[int(number[:-1])] if number else placed
        method: Callable[..., Any] = getattr(block, found.owner.handlers[found.name, event])
        handlers[slot] = method
        return method

    def failed(self, slot: int, error: BaseException) -> None:
        """For the core: a handler raised."""
        self.native.report(error, f"{self.name}.{self.layout.slots[slot].path}")

    # Windows.

    @property
    def areas(self) -> list[Area]:
        """What the driver may map, in ascending order."""
        return [
            Area(self.index, RegionOffset(offset), window.size)
            for offset, _, window in self.layout.windows
            if window.passthrough
        ]

    @property
    def descriptor(self) -> int | None:
        """The memfd with every window at its offset in the region; None without windows or after `close`."""
        return self._descriptor

    def window_view(self, offset: int, size: int) -> memoryview:
        """For windows: the device's side. Raises: StateError after `close`."""
        if self._memory is None:
            raise StateError(f"{self.native.name} is closed: the window at {self.name}+{offset:#x} is gone")
        return memoryview(self._memory)[offset : offset + size]

    def _make_windows(self) -> None:
        rom = isinstance(self.declaration, Rom)
        end = self.size if rom else max((offset + w.size for offset, _, w in self.layout.windows), default=0)
        if not end:
            return
        length = (end + PAGE_MASK) & ~PAGE_MASK
        descriptor = os.memfd_create(f"umdev {self.name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._descriptor = descriptor
        os.ftruncate(descriptor, length)
        # The driver's side can't resize it, so no access to the mapping ends in SIGBUS.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._memory = mmap.mmap(descriptor, length)
        if isinstance(self.declaration, Rom):
            self._memory[: self.size] = self.declaration.image.ljust(self.size, b"\xff")
            self.native.add_window(self.index, 0, self.size, self._memory, readonly=True)
        for offset, _, window in self.layout.windows:
            self.native.add_window(self.index, offset, window.size, self._memory, offset)

    # Life.

    def reset(self, *, windows: bool) -> None:
        """Registers take their reset values; halves that wait for a commit are forgotten. windows: zero them too."""
        self._state[: self.layout.size] = self.layout.reset_image
        if windows:
            for offset, _, window in self.layout.windows:
                self._zero(offset, window.size)

    def _zero(self, offset: int, size: int) -> None:
        """Whole pages are given back to the kernel: zeroing a large window costs what was used of it."""
        if self._memory is None:
            return
        first = (offset + PAGE_MASK) & ~PAGE_MASK
        last = (offset + size) & ~PAGE_MASK
        view = self.window_view(offset, size)
        if first < last:
            try:
                self._memory.madvise(mmap.MADV_REMOVE, first, last - first)
            except OSError:  # a bus has laid the driver's own pages over the window
                view[first - offset : last - offset] = bytes(last - first)
        head = min(first - offset, size)
        tail = max(last - offset, head)
        view[:head] = bytes(head)
        view[tail:] = bytes(size - tail)

    def save(self) -> dict[str, Any]:
        """Register values (arrays: lists), waiting halves (`path:latch`) and windows (bytes without trailing zeros)."""
        saved: dict[str, Any] = {}
        for slot in self.layout.slots:
            first = slot.cell // slot.width
            values = self._cells[slot.width][first : first + slot.count].tolist()
            saved[slot.path] = values if slot.array else values[0]
            if slot.declaration.commit:
                latches = self._cells[8][slot.latch // 8 : slot.latch // 8 + slot.count].tolist()
                saved[f"{slot.path}:latch"] = latches if slot.array else latches[0]
        for offset, path, window in self.layout.windows:
            saved[path] = bytes(self.window_view(offset, window.size)).rstrip(b"\0")
        return saved

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Set what `save` returned. Nothing has changed after a SaveError.

        Raises: SaveError if a name is missing or unknown, or a value does not fit.
        """
        parts = list(self._parts())
        if wrong := {path for path, *_ in parts} ^ saved.keys():
            name = min(wrong)
            where = "not declared any more" if name in saved else "missing from what was saved"
            raise SaveError(f"{self.name}.{name} is {where}")
        values = [
            _fitting(f"{self.name}.{path}", saved[path], width, count, array) for path, width, _, count, array in parts
        ]
        for (_, width, at, count, _), value in zip(parts, values, strict=True):
            if isinstance(value, bytes):
                self._zero(at, count)
                self.window_view(at, count)[: len(value)] = value
            else:
                for number, element in enumerate(value, at // width):
                    self._cells[width][number] = element

    def _parts(self) -> Iterator[tuple[str, int, int, int, bool]]:
        """Everything saved: path, width (0: a window), place, count (of bytes for a window), whether it is a list."""
        for slot in self.layout.slots:
            yield slot.path, slot.width, slot.cell, slot.count, slot.array
            if slot.declaration.commit:
                yield f"{slot.path}:latch", 8, slot.latch, slot.count, slot.array
        for offset, path, window in self.layout.windows:
            yield path, 0, offset, window.size, False

    def close(self) -> None:
        """Close the memfd. The device is gone already; its mapping stays until nobody points to it."""
        self._memory = None
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _fitting(path: str, value: Any, width: int, count: int, array: bool) -> bytes | list[int]:
    """What was saved, checked: bytes for a window (width 0), else the values of the cells."""
    if width == 0:
        if not isinstance(value, bytes) or len(value) > count:
            raise SaveError(f"{path} is a window of {count} bytes; what was saved is not")
        return value
    values = value if array else [value]
    if not isinstance(values, list) or len(values) != count:
        raise SaveError(f"{path} has {count} elements; what was saved has not")
    if not all(isinstance(element, int) and 0 <= element < 1 << 8 * width for element in values):
        raise SaveError(f"{path} holds {width} bytes; {value!r} does not fit")
    return values
