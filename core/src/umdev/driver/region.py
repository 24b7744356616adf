"""What a bus says about a region, and a part of it mapped into the driver."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InvalidArgument

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from ..services import Area


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """One region of a function: `index` is VFIO's, `size` in bytes.

    `areas` can be mapped: area bytes stand in `descriptor` at `descriptor_offset` + the area's offset. The descriptor
    belongs to the bus and lives as long as the function.
    """

    index: int
    size: int
    readable: bool = True
    writable: bool = True
    areas: tuple[Area, ...] = ()
    descriptor: int | None = None
    descriptor_offset: int = 0


class MappedArea:
    """A part of a region as memory: what is stored here the device sees with no trap, and the reverse.

    `view` has the whole area; release views cut from it before `close`.
    """

    def __init__(self, region: RegionInfo, area: Area) -> None:
        assert region.descriptor is not None, "an area comes with a descriptor"
        self.area = area
        access = mmap.PROT_READ | (mmap.PROT_WRITE if region.writable else 0)
        offset = region.descriptor_offset + area.offset
        self._map = mmap.mmap(region.descriptor, area.length, mmap.MAP_SHARED, access, offset=offset)
        self.view = memoryview(self._map)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset` from the start of the area. Raises: InvalidArgument beyond it."""
        self._check(offset, length)
        return bytes(self.view[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        """Store `data` at `offset` from the start of the area. Raises: InvalidArgument beyond it."""
        self._check(offset, len(data))
        self.view[offset : offset + len(data)] = data

    def close(self) -> None:
        """Unmap. May be called twice."""
        self.view.release()
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.area.length:
            raise InvalidArgument(
                f"{length} bytes at {offset:#x} are not within the area of {self.area.length:#x} bytes"
            )
