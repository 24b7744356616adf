"""Register arrays: one declaration, `count` registers, `stride` bytes apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar

from umdev.errors import DeclarationError, StateError

from .registers import RW, Access, Register, Register64, mark_handler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .blocks import Block
    from .native import Native

RegisterT_co = TypeVar("RegisterT_co", bound=Register, covariant=True)
ElementWriteT = TypeVar("ElementWriteT", bound="Callable[[Any, int, int], None]")
ElementReadT = TypeVar("ElementReadT", bound="Callable[[Any, int], int]")


class RegisterArray(Generic[RegisterT_co]):
    """`count` registers of class `kind`, `stride` bytes apart (default: side by side).

    Live: `block.doorbells[3].value`. Handlers get the index first: `on_write` `(self, index, value)`, `on_read`
    `(self, index)`. The other arguments are the register's.
    """

    name = "?"
    path = "?"
    _block: Block[Any] | None = None
    _live: dict[int, Any]

    def __init__(
        self,
        offset: int,
        kind: type[RegisterT_co],
        access: Access = RW,
        *,
        count: int,
        stride: int | None = None,
        reset: int = 0,
        masked: bool = False,
        native: Native | None = None,
        doorbell: bool | int = False,
        commit: Literal["low", "high"] | None = None,
    ) -> None:
        self.offset = offset
        self.count = count
        self.stride = kind.width if stride is None else stride
        self.element: RegisterT_co = kind(offset, access, reset=reset, masked=masked, native=native, doorbell=doorbell)
        if commit is not None:
            if not isinstance(self.element, Register64):
                raise DeclarationError(f"an array of {kind.__name__} at {offset:#x}: only 64-bit registers commit")
            self.element.commit = commit
            self.element.check_doorbell()
        if count < 1:
            raise DeclarationError(f"an array of {kind.__name__} at {offset:#x} has {count} elements")
        if self.stride < kind.width or self.stride % kind.width:
            raise DeclarationError(
                f"an array of {kind.__name__} at {offset:#x}: stride {self.stride} is no multiple of {kind.width}"
            )

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.element.name = name

    def __get__(self, block: Block[Any] | None, owner: type) -> Self:
        """The declaration on the class; on a block the live array."""
        if block is None:
            return self
        live: Self = object.__new__(type(self))
        live.__dict__.update(self.__dict__)
        live.path = f"{block.path}.{self.name}"
        live._block = block
        live._live = {}
        block.__dict__[self.name] = live
        return live

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> RegisterT_co:
        """The live register `index`, 0 <= index < count. Raises: IndexError, StateError on a declaration."""
        if self._block is None:
            raise StateError(f"{self.name} is a declaration: its elements live in a device's block")
        if (live := self._live.get(index)) is None:
            if not 0 <= index < self.count:
                raise IndexError(f"{self.path} has {self.count} elements, no [{index}]")
            offset = self._block.base + self.offset
            live = self._live[index] = self._block.live_register(self.element, f"{self.name}[{index}]", offset, index)
        return live

    def __iter__(self) -> Iterator[RegisterT_co]:
        return (self[index] for index in range(self.count))

    def on_write(self, handler: ElementWriteT) -> ElementWriteT:
        """Decorates the method to call after a write: `(self, index, value)`."""
        mark_handler(handler, self, "write")
        return handler

    def on_read(self, handler: ElementReadT) -> ElementReadT:
        """Decorates the method whose result a read answers: `(self, index)`."""
        mark_handler(handler, self, "read")
        return handler
