"""Declarative registers: access kinds, fields, and the register itself.

A declaration never changes after its class body. On a live block the same name gives the *live* register, made at first
use: `block.status.value`, `block.status.ready = True`.
"""

from __future__ import annotations

import copy
import enum
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar, overload

from umdev._native import lib
from umdev.errors import DeclarationError, StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .blocks import Block
    from .native import Native

WriteT = TypeVar("WriteT", bound="Callable[[Any, int], None] | Callable[[Any, int, int], None]")
ReadT = TypeVar("ReadT", bound="Callable[[Any], int]")


class Access(enum.Enum):
    """What the driver's reads and writes do to a bit. The model itself may always change it."""

    RW = "rw"
    """Reads as stored, takes what is written."""
    RO = "ro"
    """Reads as stored, ignores writes."""
    WO = "wo"
    """Reads as 0, takes what is written."""
    W1C = "w1c"
    """Reads as stored; writing 1 clears it."""
    W1S = "w1s"
    """Reads as stored; writing 1 sets it."""
    RC = "rc"
    """A read clears it; ignores writes."""
    RESERVED = "reserved"
    """Reads as 0, ignores writes."""


RW, RO, WO, W1C, W1S, RC, RESERVED = Access


@dataclass(frozen=True, slots=True)
class Masks:
    """The five masks that C applies; every access kind, per bit, is a combination of them."""

    rw: int = 0
    w1c: int = 0
    w1s: int = 0
    rc: int = 0
    hide: int = 0

    @classmethod
    def of(cls, access: Access, bits: int) -> Masks:
        """The masks that give `bits` the kind `access`."""
        match access:
            case Access.RW:
                return cls(rw=bits)
            case Access.RO:
                return cls()
            case Access.WO:
                return cls(rw=bits, hide=bits)
            case Access.W1C:
                return cls(w1c=bits)
            case Access.W1S:
                return cls(w1s=bits)
            case Access.RC:
                return cls(rc=bits)
            case Access.RESERVED:
                return cls(hide=bits)

    def overlay(self, bits: int, other: Masks) -> Masks:
        """These masks, with `bits` taken from `other`."""
        return Masks(
            rw=self.rw & ~bits | other.rw,
            w1c=self.w1c & ~bits | other.w1c,
            w1s=self.w1s & ~bits | other.w1s,
            rc=self.rc & ~bits | other.rc,
            hide=self.hide & ~bits | other.hide,
        )


class Field:
    """Bits `low..high` (inclusive) of a register class; reads as int. Unset `access` is the register's own.

    Setting one changes its bits in one atomic step, from any thread; a value too large keeps its low bits.
    """

    name = "?"

    def __init__(self, low: int, high: int, access: Access | None = None) -> None:
        if not 0 <= low <= high < 64:
            raise DeclarationError(f"a field from bit {low} to bit {high}: 0 <= low <= high < 64 is needed")
        self.low = low
        self.access = access
        self.bits = ((1 << high - low + 1) - 1) << low

    def __set_name__(self, owner: type[Register], name: str) -> None:
        self.name = name

    @overload
    def __get__(self, register: None, owner: type[Register]) -> Self: ...
    @overload
    def __get__(self, register: Register, owner: type[Register]) -> int: ...
    def __get__(self, register: Register | None, owner: type[Register]) -> Self | int:
        return self if register is None else (register.value & self.bits) >> self.low

    def __set__(self, register: Register, value: int) -> None:
        register.update(self.bits, value << self.low & self.bits)


class Flag(Field):
    """One bit; reads as bool."""

    def __init__(self, bit: int, access: Access | None = None) -> None:
        super().__init__(bit, bit, access)

    @overload
    def __get__(self, register: None, owner: type[Register]) -> Self: ...
    @overload
    def __get__(self, register: Register, owner: type[Register]) -> bool: ...
    def __get__(self, register: Register | None, owner: type[Register]) -> Self | bool:
        return self if register is None else bool(register.value & self.bits)


class Register:
    """One register of 32 bits (`width` bytes): a declaration in a class body, live in an instance.

    Subclass it to name fields. A write is stored by the access kinds first; then the `on_write` handler is called with
    what was written (bytes that the access did not touch come from the old value; untouched W1C and W1S bits are 0)
    and, if it takes another argument, the old value. An `on_read` handler returns what the driver sees. Handlers run
    with the device lock held.

    masked: the upper half of a write enables bits of the lower half, and reads as 0.
    native: a C handler for reads and writes instead of Python's.
    doorbell: a bus may let the driver ring by an event instead of a store: True for a store of whatever value, a number
    for a store of that one (others trap as usual). What rings is a store of the register's whole width. With True
    nobody is told what was stored: on every bus the handler gets 0, and 0 is kept, so declare it WO or RO. A ring
    overtakes and is overtaken by other accesses, and several that come together are one call of the handler: it takes
    a ring as a hint to look at what the driver wrote elsewhere. After the last ring a handler always begins.

    Reading or setting `value` is one atomic load or store, from any thread; `value` is cut to the width, so `~value` is
    fine. `value |= x` is two steps: in a handler the lock makes them one, elsewhere take `native.locked()`. A register
    that is RW in every bit and has no write handler is stored to without the lock even then: change its bits through
    fields or `update`.
    """

    width: ClassVar[int] = 4
    mask: ClassVar[int] = 0xFFFF_FFFF
    fields: ClassVar[Mapping[str, Field]] = MappingProxyType({})
    name = "?"
    path = "?"
    commit: Literal["low", "high"] | None = None
    _cells: memoryview[int] | None = None
    _cell = 0
    _address = 0

    def __init__(
        self,
        offset: int,
        access: Access = RW,
        *,
        reset: int = 0,
        masked: bool = False,
        native: Native | None = None,
        doorbell: bool | int = False,
    ) -> None:
        kind = type(self).__name__
        if offset < 0 or offset % self.width:
            raise DeclarationError(f"{kind} at {offset:#x} is not aligned to its {self.width} bytes")
        if not 0 <= reset <= self.mask:
            raise DeclarationError(f"{kind} at {offset:#x}: reset value {reset:#x} does not fit in {self.width} bytes")
        if masked and self.width == 1:
            raise DeclarationError(f"{kind} at {offset:#x}: masked needs at least 16 bits")
        self.offset = offset
        self.access = access
        self.reset_value = reset
        self.masked = masked
        self.native = native
        self.doorbell = doorbell
        self.check_doorbell()

    def __repr__(self) -> str:
        if self._cells is None:
            return f"<{type(self).__name__} {self.name} at {self.offset:#x}, a declaration>"
        return f"<{type(self).__name__} {self.path}={self.value:#x}>"

    def __init_subclass__(cls) -> None:
        cls.mask = (1 << 8 * cls.width) - 1
        fields = {name: field for base in reversed(cls.__mro__) for name, field in vars(base).items()
                  if isinstance(field, Field)}  # fmt: skip
        taken: dict[int, str] = {}
        for name, field in fields.items():
            if field.bits & ~cls.mask:
                raise DeclarationError(f"{cls.__name__}.{name} lies outside the register's {8 * cls.width} bits")
            for bits, other in taken.items():
                if bits & field.bits:
                    raise DeclarationError(f"{cls.__name__}.{name} overlaps {other}")
            taken[field.bits] = name
        cls.fields = MappingProxyType(fields)

    def check_doorbell(self) -> None:
        """For the core. Raises: DeclarationError for a doorbell that this register can't be."""
        if self.doorbell is False:
            return
        what = f"{type(self).__name__} at {self.offset:#x}"
        if self.doorbell is not True:
            if not 0 <= self.doorbell <= self.mask:
                raise DeclarationError(f"{what}: doorbell {self.doorbell:#x} does not fit in {self.width} bytes")
            return
        if self.masked or self.commit:
            raise DeclarationError(f"{what}: a doorbell of any value is told none: it can't be masked or commit halves")
        masks = self.masks
        if masks.rw & ~masks.hide or masks.w1c or masks.w1s:
            raise DeclarationError(
                f"{what}: a doorbell of any value keeps none: declare it WO or RO, or name the value"
            )

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, block: Block[Any] | None, owner: type) -> Self:
        """The declaration on the class; on a block its live register, found in the block's `__dict__` from then on."""
        if block is None:
            return self
        live = block.live_register(self, self.name, block.base + self.offset, 0)
        block.__dict__[self.name] = live
        return live

    def bind(self, path: str, cells: memoryview[int], cell: int, address: int) -> Self:
        """A live copy whose value is `cells[cell]`, at `address` in this process. For the core."""
        live = copy.copy(self)
        live.path = path
        live._cells = cells  # noqa: SLF001  # a copy of this very class
        live._cell = cell  # noqa: SLF001  # as above
        live._address = address  # noqa: SLF001  # as above
        return live

    @property
    def value(self) -> int:
        """What is stored; kinds such as WO do not hide it from the model."""
        try:
            return self._cells[self._cell]  # type: ignore[index]  # None in a declaration only: answered below
        except TypeError:
            raise StateError(f"{self.name} is a declaration: its value lives in a device's block") from None

    @value.setter
    def value(self, value: int) -> None:
        try:
            self._cells[self._cell] = value & self.mask  # type: ignore[index]  # as above
        except TypeError:
            if self._cells is not None:
                raise
            raise StateError(f"{self.name} is a declaration: its value lives in a device's block") from None

    @property
    def address(self) -> int:
        """Of the value in this process, for C handlers: `width` bytes in host order, valid as long as the device.

        Bits of it change in atomic steps only, since the driver may store at any time. Raises: StateError for a
        declaration.
        """
        if self._cells is None:
            raise StateError(f"{self.name} is a declaration: its value lives in a device's block")
        return self._address

    def update(self, clear: int, set_: int = 0) -> int:
        """Clear and then set bits in one atomic step, from any thread; returns the value before."""
        if self._cells is None:
            raise StateError(f"{self.name} is a declaration: its value lives in a device's block")
        before: int = lib.umdev_cell_update(self._address, self.width, clear & self.mask, set_ & self.mask)
        return before

    def on_write(self, handler: WriteT) -> WriteT:
        """Decorates the method to call after a write: `(self, value)` or `(self, value, old)`."""
        mark_handler(handler, self, "write")
        return handler

    def on_read(self, handler: ReadT) -> ReadT:
        """Decorates the method whose result a read answers; what is stored does not change by it."""
        mark_handler(handler, self, "read")
        return handler

    @property
    def masks(self) -> Masks:
        """The access kinds of all bits."""
        masks = Masks.of(self.access, self.mask)
        for field in self.fields.values():
            if field.access is not None:
                masks = masks.overlay(field.bits, Masks.of(field.access, field.bits))
        return masks

    def text(self, value: int | None = None) -> str:
        """`bar0.status=0x81 computing raise_irq`: what traces and `show` print, of `value` or of what is stored."""
        return describe(self.path, self.fields, self.value if value is None else value)


class Register8(Register):
    """A register of one byte."""

    width = 1


class Register16(Register):
    """A register of two bytes."""

    width = 2


class Register64(Register):
    """A register of eight bytes.

    commit: which half completes a write that comes in halves. The other half waits (its reads give the old value)
    until the committing one is written; `on_write` runs then. None: each half counts at once.
    """

    width = 8

    def __init__(
        self,
        offset: int,
        access: Access = RW,
        *,
        reset: int = 0,
        masked: bool = False,
        native: Native | None = None,
        doorbell: bool | int = False,
        commit: Literal["low", "high"] | None = None,
    ) -> None:
        super().__init__(offset, access, reset=reset, masked=masked, native=native, doorbell=doorbell)
        self.commit = commit
        self.check_doorbell()


def describe(path: str, fields: Mapping[str, Field], value: int) -> str:
    """The path, the value, and each field that is not 0."""
    named = [
        field.name if isinstance(field, Flag) else f"{field.name}={(value & field.bits) >> field.low:#x}"
        for field in fields.values()
        if value & field.bits
    ]
    return " ".join([f"{path}={value:#x}", *named])


def mark_handler(handler: Any, target: Any, event: Literal["read", "write"]) -> None:
    """Note on the function what it handles; the block class that it becomes a method of collects the marks."""
    handler.__umdev_handles__ = (*getattr(handler, "__umdev_handles__", ()), (target, event))
    target.__dict__.setdefault("_decorated", []).append(handler)  # only to find handlers that a namesake replaced
