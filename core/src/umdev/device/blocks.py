"""Blocks: registers at offsets relative to wherever the block is placed; windows; blocks inside blocks.

Handlers are methods of the block and are bound by name, so a subclass overrides one by overriding the method.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, Self, overload

from typing_extensions import TypeVar  # PEP 696 defaults; typing's own from Python 3.13

from umdev.addresses import PAGE_MASK, RegionOffset
from umdev.errors import DeclarationError, StateError

from .arrays import RegisterArray
from .registers import Register

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .model import Device

DeviceT = TypeVar("DeviceT", bound="Device", default="Device")
BlockT_co = TypeVar("BlockT_co", bound="Block[Any]", covariant=True)
PlacedT_co = TypeVar("PlacedT_co", covariant=True)
RegisterT = TypeVar("RegisterT", bound=Register)
Event = Literal["read", "write"]


class Host(Protocol):
    """What a live block asks of the region that it stands in."""

    def live_register(self, declaration: RegisterT, path: str, offset: int, element: int) -> RegisterT:
        """The live register of the declaration whose first element lies at `offset` in the region."""

    def window_view(self, offset: int, size: int) -> memoryview:
        """The device's side of a window."""

    @property
    def descriptor(self) -> int | None:
        """The memfd that holds every window of the region, at the region's own offsets."""


class Window:
    """RAM of `size` bytes inside a BAR; the driver reaches it without the model.

    passthrough: buses may map it into the guest (offset and size in the BAR are multiples of 4096 then), else the core
    copies. Live: `view` is the device's side, `descriptor` the memfd behind it.
    """

    name = "?"
    path = "?"
    _host: Host | None = None

    def __init__(self, offset: int, size: int, passthrough: bool = True) -> None:
        if offset < 0 or size <= 0:
            raise DeclarationError(f"a window of {size:#x} bytes at {offset:#x}: it must not be empty")
        if passthrough and (offset | size) & PAGE_MASK:
            raise DeclarationError(
                f"a window of {size:#x} bytes at {offset:#x}: passthrough needs multiples of a page (0x1000)"
            )
        self.offset = offset
        self.size = size
        self.passthrough = passthrough

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, block: Block[Any] | None, owner: type) -> Self:
        """The declaration on the class; on a block the live window."""
        if block is None:
            return self
        live = type(self)(block.base + self.offset, self.size, self.passthrough)
        live.name = self.name
        live.path = f"{block.path}.{self.name}"
        live._host = block.host  # noqa: SLF001  # a new one of this very class
        block.__dict__[self.name] = live
        return live

    @property
    def view(self) -> memoryview:
        """The window's bytes, writable and shared with the driver; no lock orders the two sides.

        Raises: StateError on a declaration, or when the device is closed.
        """
        return self._live().window_view(self.offset, self.size)

    @property
    def descriptor(self) -> int:
        """The memfd that holds the window, at its offset in the BAR. It stays the region's.

        Raises: StateError on a declaration, or when the device is closed.
        """
        descriptor = self._live().descriptor
        if descriptor is None:
            raise StateError(f"{self.path}: the device is closed")
        return descriptor

    def _live(self) -> Host:
        if self._host is None:
            raise StateError(f"{self.name} is a declaration: its bytes live in a device's block")
        return self._host


class Block(Generic[DeviceT]):
    """A group of registers. Subclass it, declare, and write handlers; `Block["Edu"]` gives `self.device` its type.

    The core makes the instances, one per place where the class stands; `path` is the dotted name, `base` the offset in
    the region. A model that keeps more than registers in a block declares it with `State`.
    """

    declared: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Every declaration by name: Register, RegisterArray, Window, At."""
    handlers: ClassVar[Mapping[tuple[str, Event], str]] = MappingProxyType({})
    """The method that handles an event of a register or array, by name."""
    device: DeviceT
    host: Host
    base: RegionOffset
    path: str

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        declared: dict[str, Any] = {}
        handlers: dict[tuple[str, Event], str] = {}
        for base in reversed(cls.__mro__):
            for name, value in vars(base).items():
                if isinstance(value, Register | RegisterArray | Window | At):
                    declared[name] = value
                else:
                    declared.pop(name, None)  # a subclass may take a register away, or put something in its place
            handlers.update(vars(base).get("_own_handlers", {}))
        cls._own_handlers = _own_handlers(cls, declared)
        cls.declared = MappingProxyType(declared)
        cls.handlers = MappingProxyType({**handlers, **cls._own_handlers})
        _refuse_namesakes(cls)
        _refuse_overlap(cls)

    _own_handlers: ClassVar[Mapping[tuple[str, Event], str]] = MappingProxyType({})

    def __init__(self, device: DeviceT, host: Host, base: int, path: str) -> None:
        """For the core: place the block at `base` of the region `host`."""
        self.device = device
        self.host = host
        self.base = RegionOffset(base)
        self.path = path

    def __setattr__(self, name: str, value: object) -> None:
        if name in self.declared:
            what = self.declared[name]
            how = f"assign to {name}.value or to one of its fields" if isinstance(what, Register) else "it can't be set"
            raise AttributeError(f"{type(self).__name__}.{name} is a {type(what).__name__}: {how}")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path} at {self.base:#x}>"

    def live_register(self, declaration: RegisterT, name: str, offset: int, element: int) -> RegisterT:
        """For declarations: the live register `name` of this block."""
        return self.host.live_register(declaration, f"{self.path}.{name}", offset, element)

    def blocks(self) -> Iterator[Block[Any]]:
        """The blocks inside, in order of declaration; not those inside them."""
        for name, at in self.declared.items():
            if isinstance(at, At):
                live = getattr(self, name)
                yield from live if isinstance(live, tuple) else (live,)


class At(Generic[PlacedT_co]):
    """Places a block inside another: `render = At(0x2000, Ring)`. With `count` > 1 it gives a tuple of blocks."""

    name = "?"

    @overload
    def __init__(self: At[BlockT_co], offset: int, kind: type[BlockT_co]) -> None: ...
    @overload
    def __init__(
        self: At[tuple[BlockT_co, ...]], offset: int, kind: type[BlockT_co], *, count: int, stride: int
    ) -> None: ...
    def __init__(self, offset: int, kind: type[Block[Any]], *, count: int = 1, stride: int = 0) -> None:
        if offset < 0 or count < 1 or (count > 1 and stride <= 0):
            raise DeclarationError(f"{count} {kind.__name__} at {offset:#x}, {stride:#x} bytes apart: not possible")
        self.offset = offset
        self.kind = kind
        self.count = count
        self.stride = stride
        self.repeated = stride > 0

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, block: None, owner: type) -> Self: ...
    @overload
    def __get__(self, block: Block[Any], owner: type) -> PlacedT_co: ...
    def __get__(self, block: Block[Any] | None, owner: type) -> Self | PlacedT_co:
        if block is None:
            return self
        places = [
            self.kind(block.device, block.host, block.base + offset, f"{block.path}.{suffix}")
            for suffix, offset in self.places()
        ]
        live: Any = tuple(places) if self.repeated else places[0]
        block.__dict__[self.name] = live
        return live  # type: ignore[no-any-return]  # which of the two is PlacedT_co's matter

    def places(self) -> Iterator[tuple[str, int]]:
        """The name and the offset, in the surrounding block, of each block placed."""
        if self.repeated:
            for index in range(self.count):
                yield f"{self.name}[{index}]", self.offset + index * self.stride
        else:
            yield self.name, self.offset


def flatten(kind: type[Block[Any]], base: int = 0, path: str = "") -> Iterator[tuple[int, str, Any, type[Block[Any]]]]:
    """Every register, array and window of a block class: offset, dotted path, declaration, class that declares it."""
    for name, value in kind.declared.items():
        if isinstance(value, At):
            for suffix, offset in value.places():
                yield from flatten(value.kind, base + offset, f"{path}{suffix}.")
        else:
            yield base + value.offset, path + name, value, kind


def extent(declaration: Register | RegisterArray[Any] | Window) -> int:
    """Bytes from the first to the last that the declaration takes (gaps of an array included)."""
    if isinstance(declaration, RegisterArray):
        width: int = declaration.element.width
        return (declaration.count - 1) * declaration.stride + width
    return declaration.size if isinstance(declaration, Window) else declaration.width


def _own_handlers(cls: type[Block[Any]], declared: Mapping[str, Any]) -> Mapping[tuple[str, Event], str]:
    own: dict[tuple[str, Event], str] = {}
    for name, function in vars(cls).items():
        marks: tuple[tuple[Any, Event], ...] = getattr(function, "__umdev_handles__", ())
        for target, event in marks:
            if target not in declared.values():
                raise DeclarationError(f"{cls.__name__}.{name} handles {target.name}, no register of this class")
            other = own.setdefault((target.name, event), name)
            if other != name:
                raise DeclarationError(f"{cls.__name__}: {other} and {name} both handle a {event} of {target.name}")
            if (target.element if isinstance(target, RegisterArray) else target).native is not None:
                raise DeclarationError(f"{cls.__name__}.{name} handles {target.name}, which has a native handler")
    return MappingProxyType(own)


def _refuse_namesakes(cls: type[Block[Any]]) -> None:
    for name, target in cls.declared.items():
        for function in target.__dict__.get("_decorated", ()):
            here = function.__qualname__ == f"{cls.__qualname__}.{function.__name__}"
            if here and function.__module__ == cls.__module__ and vars(cls).get(function.__name__) is not function:
                raise DeclarationError(
                    f"{function.__qualname__}, handler of {name}, was replaced by a namesake: rename one of them"
                )


def _refuse_overlap(cls: type[Block[Any]]) -> None:
    """Arrays with gaps may interleave with other registers: element by element, so only those are looked at closely."""
    end, before = 0, ""
    spans: list[tuple[int, int, str]] = []
    gapped: list[tuple[int, RegisterArray[Any], str]] = []
    for offset, path, declaration, _ in flatten(cls):
        width = (
            declaration.element.width if isinstance(declaration, RegisterArray) else getattr(declaration, "width", 1)
        )
        if offset % width:
            raise DeclarationError(f"{cls.__name__}.{path} at {offset:#x} is not aligned to its {width} bytes")
        if isinstance(declaration, RegisterArray) and declaration.stride > width and declaration.count > 1:
            gapped.append((offset, declaration, path))
        else:
            spans.append((offset, offset + extent(declaration), path))
    for offset, after, path in sorted(spans):
        if offset < end:
            raise DeclarationError(f"{cls.__name__}.{path} at {offset:#x} overlaps {before}, which ends at {end:#x}")
        end, before = after, path
    for number, (start, array, path) in enumerate(gapped):
        others = [(a, b - a, b - a, 1, p) for a, b, p in spans]
        others += [(a, r.stride, r.element.width, r.count, p) for a, r, p in gapped[:number]]
        for begin, stride, width, count, name in others:
            if _combs_meet((start, array.stride, array.element.width, array.count), (begin, stride, width, count)):
                raise DeclarationError(f"{cls.__name__}.{path} at {start:#x} overlaps {name}")


def _combs_meet(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    """Do two combs (first offset, stride, width, count) share a byte? Walks the one with fewer teeth."""
    if one[3] > other[3]:
        one, other = other, one
    first, stride, width, count = other
    last = first + (count - 1) * stride + width
    for tooth in range(one[3]):
        begin = one[0] + tooth * one[1]
        end = begin + one[2]
        if end <= first or begin >= last:
            continue
        nearest = max(0, min(count - 1, (begin - first) // stride))
        for index in (nearest, min(nearest + 1, count - 1)):
            if begin < first + index * stride + width and first + index * stride < end:
                return True
    return False
