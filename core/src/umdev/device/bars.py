"""The regions that a function offers: memory BARs, I/O BARs, the expansion ROM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, overload

from typing_extensions import Buffer  # collections.abc.Buffer from Python 3.12

from umdev.errors import DeclarationError

from .arrays import RegisterArray
from .blocks import Block, BlockT_co, extent, flatten
from .registers import Register

if TYPE_CHECKING:
    from collections.abc import Sequence

    from umdev.pci.bars import BarKind

BAR_COUNT = 6
ROM_INDEX = 6


class Bar(Generic[BlockT_co]):
    """What every region declaration has; made by its subclasses. On a device the name gives the live block."""

    name = "?"
    kind: ClassVar[BarKind]
    """`memory32`, `memory64`, `io` or `rom`: see the property of the same name on a MemoryBar."""

    def __init__(
        self, index: int, block: type[BlockT_co], size: int, sizes: Sequence[int], width: int, prefetchable: bool
    ) -> None:
        self.index = index
        self.block = block
        self.size = size
        self.sizes = tuple(sizes)
        self.width = width
        self.prefetchable = prefetchable
        if not sizes or any(n not in (1, 2, 4, 8) for n in sizes):
            raise DeclarationError(f"{self}: access sizes {self.sizes} are not among 1, 2, 4, 8")
        for offset, path, declaration, _ in flatten(block):
            if offset + extent(declaration) > size:
                end = offset + extent(declaration)
                raise DeclarationError(f"{self}: {path} ends at {end:#x}, outside the region of {size:#x} bytes")
            register = declaration.element if isinstance(declaration, RegisterArray) else declaration
            if isinstance(register, Register) and register.doorbell is not False and register.width not in self.sizes:
                raise DeclarationError(
                    f"{self}: {path} is a doorbell of {register.width} bytes; sizes are {self.sizes}"
                )

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, device: None, owner: type) -> Self: ...
    @overload
    def __get__(self, device: object, owner: type) -> BlockT_co: ...
    def __get__(self, device: object | None, owner: type) -> Self | BlockT_co:
        if device is None:
            return self
        raise AttributeError(f"{self.name} is not there yet: Device.__init__ has not run")

    def __str__(self) -> str:
        return f"BAR {self.index}"


def _power_of_two(bar: Bar[Any], size: int, least: int, most: int) -> None:
    if size & (size - 1) or not least <= size <= most:
        raise DeclarationError(f"{bar}: size {size:#x} is no power of two from {least:#x} to {most:#x}")


class MemoryBar(Bar[BlockT_co]):
    """A memory BAR (PCI Local Bus 3.0, 6.2.5.1) of `size` bytes, a power of two from 16.

    sizes: the access sizes, in bytes, that its registers take; others are aborted (windows take any). prefetchable:
    reads have no side effects and writes may be merged. width: 64 takes the next BAR's place too.
    """

    def __init__(
        self,
        index: int,
        block: type[BlockT_co],
        *,
        size: int,
        sizes: Sequence[int] = (1, 2, 4, 8),
        prefetchable: bool = False,
        width: Literal[32, 64] = 32,
    ) -> None:
        super().__init__(index, block, size, sizes, width, prefetchable)
        if width not in (32, 64) or not 0 <= index < BAR_COUNT - (width == 64):
            raise DeclarationError(f"{self}: a {width}-bit BAR has no such index")
        _power_of_two(self, size, 16, 1 << 31 if width == 32 else 1 << 62)

    @property
    def kind(self) -> BarKind:  # type: ignore[override]  # depends on the width
        """`memory32` or `memory64`."""
        return "memory64" if self.width == 64 else "memory32"


class IoBar(Bar[BlockT_co]):
    """An I/O BAR of `size` bytes, a power of two from 4 to 256 (PCI Local Bus 3.0, 6.2.5.1)."""

    kind = "io"

    def __init__(self, index: int, block: type[BlockT_co], *, size: int, sizes: Sequence[int] = (1, 2, 4)) -> None:
        super().__init__(index, block, size, sizes, 32, prefetchable=False)
        if not 0 <= index < BAR_COUNT:
            raise DeclarationError(f"{self}: there is no such BAR")
        _power_of_two(self, size, 4, 256)


class RomBlock(Block[Any]):
    """An expansion ROM has no registers: its bytes are `image`."""


class Rom(Bar[RomBlock]):
    """The expansion ROM: its image, or its size with the rest to be filled by the model (all ones until then).

    The size is rounded up to a power of two of at least 2 KiB (PCI Local Bus 3.0, 6.2.5.2).
    """

    kind = "rom"

    def __init__(self, content: Buffer | int) -> None:
        self.image = b"" if isinstance(content, int) else bytes(content)
        length = content if isinstance(content, int) else len(self.image)
        size = max(2048, 1 << max(length - 1, 0).bit_length())
        super().__init__(ROM_INDEX, RomBlock, size, (1, 2, 4, 8), 32, prefetchable=False)
        _power_of_two(self, size, 2048, 16 << 20)

    def __str__(self) -> str:
        return "the expansion ROM"
