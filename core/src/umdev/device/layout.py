"""The C register map of a block class: built once, shared by every device of the class, never changed."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from umdev._native import ffi, lib
from umdev.errors import DeclarationError

from .arrays import RegisterArray
from .blocks import Block, Window, flatten
from .registers import Register, describe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LATCH_SIZE = 8


@dataclass(frozen=True, slots=True)
class Slot:
    """A register or register array in a region. Offsets and widths are in bytes."""

    path: str
    offset: int
    declaration: Register
    owner: type[Block[Any]]
    count: int = 1
    stride: int = 0
    array: bool = False
    cell: int = 0
    latch: int = 0

    @property
    def width(self) -> int:
        """Of one element."""
        return self.declaration.width

    @property
    def name(self) -> str:
        """In its block."""
        return self.path.rpartition(".")[2]

    def path_of(self, element: int) -> str:
        """The path of one element."""
        return f"{self.path}[{element}]" if self.array else self.path

    def text(self, value: int, element: int = 0) -> str:
        """The path, the value and its fields, for people."""
        return describe(self.path_of(element), self.declaration.fields, value)


class Layout:
    """One block class at offset 0 of a region with the legal access `sizes`.

    Cells of one width stand together, widest first, so that all are aligned without gaps whatever the offsets are.
    """

    @classmethod
    def of(cls, block: type[Block[Any]], sizes: Sequence[int]) -> Layout:
        """The one layout for the arguments. It lives as long as the class."""
        layouts: dict[int, Layout] | None = vars(block).get("_layouts")
        if layouts is None:
            layouts = block._layouts = {}  # type: ignore[attr-defined]  # noqa: SLF001  # dies with the class
        bits = sum(set(sizes))
        if bits not in layouts:
            layouts[bits] = cls(block, bits)
        return layouts[bits]

    def __init__(self, block: type[Block[Any]], sizes: int) -> None:
        self.windows: list[tuple[int, str, Window]] = []
        found: list[Slot] = []
        for offset, path, declaration, owner in flatten(block):
            if isinstance(declaration, Window):
                self.windows.append((offset, path, declaration))
            elif isinstance(declaration, RegisterArray):
                found.append(
                    Slot(path, offset, declaration.element, owner, declaration.count, declaration.stride, array=True)
                )
            else:
                found.append(Slot(path, offset, declaration, owner))
        self.windows.sort(key=lambda window: window[0])
        self.slots = tuple(self._place(found))
        self.by_offset = {slot.offset: number for number, slot in enumerate(self.slots)}
        self.reset_image = self._image()
        self.callers = [_callers(slot) for slot in self.slots]
        self.pointer = self._compile(block, sizes)

    def _place(self, slots: list[Slot]) -> Iterator[Slot]:
        """Give each its cells; the latches of 64-bit registers that commit come first."""
        at = sum(LATCH_SIZE * slot.count for slot in slots if slot.declaration.commit)
        latch = 0
        places: dict[int, tuple[int, int]] = {}
        for slot in sorted(slots, key=lambda slot: -slot.width):
            places[id(slot)] = (at, latch if slot.declaration.commit else 0)
            at += slot.width * slot.count
            latch += LATCH_SIZE * slot.count if slot.declaration.commit else 0
        self.size = -(-at // 8) * 8
        for slot in sorted(slots, key=lambda slot: slot.offset):
            cell, latch = places[id(slot)]
            yield Slot(
                slot.path, slot.offset, slot.declaration, slot.owner, slot.count, slot.stride, slot.array, cell, latch
            )

    def _image(self) -> bytes:
        image = bytearray(self.size)
        for slot in self.slots:
            reset = slot.declaration.reset_value
            if reset:
                image[slot.cell : slot.cell + slot.count * slot.width] = (
                    reset.to_bytes(slot.width, "little") * slot.count
                )
        return bytes(image)

    def _compile(self, block: type[Block[Any]], sizes: int) -> Any:
        table = ffi.new("umdev_register[]", max(1, len(self.slots)))
        for entry, slot, (read, write) in zip(table, self.slots, self.callers, strict=False):
            register, masks = slot.declaration, slot.declaration.masks
            entry.offset, entry.stride, entry.count, entry.width = slot.offset, slot.stride, slot.count, slot.width
            entry.cell, entry.latch = slot.cell, slot.latch
            entry.flags = (
                (lib.UMDEV_REGISTER_MASKED if register.masked else 0)
                | {None: 0, "low": lib.UMDEV_REGISTER_COMMIT_LOW, "high": lib.UMDEV_REGISTER_COMMIT_HIGH}[
                    register.commit
                ]
                | (lib.UMDEV_REGISTER_LOCKLESS if register.native and register.native.lockless else 0)
                | (lib.UMDEV_REGISTER_DOORBELL if register.doorbell is True else 0)
            )
            entry.on_read, entry.on_write = read, write
            entry.rw, entry.w1c, entry.w1s, entry.rc, entry.hide = masks.rw, masks.w1c, masks.w1s, masks.rc, masks.hide
            if register.native:
                entry.native = register.native.resolve()
        error = ffi.new("int *")
        pointer = lib.umdev_layout_new(table, len(self.slots), sizes, error)
        if pointer == ffi.NULL:
            if len(self.slots) > LIMIT:
                raise DeclarationError(f"{block.__name__} has {len(self.slots)} registers; a region takes {LIMIT}")
            raise DeclarationError(f"{block.__name__} can't be laid out: error {error[0]}")
        return ffi.gc(pointer, lib.umdev_layout_free, lib.umdev_layout_bytes(pointer))

    def find(self, offset: int) -> tuple[Slot, int] | None:
        """The register that holds the byte at `offset`, and which of its elements."""
        element = ffi.new("uint32_t *")
        number = lib.umdev_layout_find(self.pointer, offset, element)
        return None if number < 0 else (self.slots[number], element[0])

    @property
    def bytes(self) -> int:
        """Memory that the C map takes."""
        return int(lib.umdev_layout_bytes(self.pointer))


LIMIT = 65535


def _callers(slot: Slot) -> tuple[int, int]:
    """How C calls the handlers of a read and of a write."""
    if slot.declaration.native is not None:
        return lib.UMDEV_CALL_NATIVE, lib.UMDEV_CALL_NATIVE
    read = write = lib.UMDEV_CALL_NONE
    if (slot.name, "read") in slot.owner.handlers:
        _expect(slot, "read", 1 + slot.array)
        read = lib.UMDEV_CALL_ELEMENT if slot.array else lib.UMDEV_CALL_VALUE
    if (slot.name, "write") in slot.owner.handlers:
        if slot.array:
            _expect(slot, "write", 3)
            write = lib.UMDEV_CALL_ELEMENT
        else:
            write = (
                lib.UMDEV_CALL_OLD if _expect(slot, "write", 2, 3) == 3 else lib.UMDEV_CALL_VALUE
            )  # self, value, old
    if slot.declaration.doorbell is not False and write == lib.UMDEV_CALL_NONE:
        raise DeclarationError(f"{slot.owner.__name__}.{slot.name} is a doorbell that nothing answers: add on_write")
    return read, write


def _expect(slot: Slot, event: str, *counts: int) -> int:
    """How many arguments the handler takes, self included. Raises: DeclarationError if that is not among `counts`."""
    name = slot.owner.handlers[slot.name, event]  # type: ignore[index]  # "read" or "write"
    method = getattr(slot.owner, name)
    parameters = inspect.signature(method).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return counts[-1]
    required = sum(parameter.default is parameter.empty for parameter in parameters)
    fitting = [count for count in counts if required <= count <= len(parameters)]
    if not fitting:
        wanted = {("read", False): "(self)", ("read", True): "(self, index)", ("write", True): "(self, index, value)"}
        shape = wanted.get((event, slot.array), "(self, value) or (self, value, old)")
        raise DeclarationError(f"{slot.owner.__name__}.{name}, {event} handler of {slot.path}, must take {shape}")
    return fitting[-1] if required == fitting[-1] else fitting[0]
