"""The maps of one PASID, sorted by address."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .mapping import Mapping


class SpaceMaps:
    """The maps of one PASID. They overlap nowhere. Whoever has it guards it: no lock is inside."""

    __slots__ = ("maps", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.maps: list[Mapping] = []

    def at(self, iova: int) -> Mapping | None:
        """The map that covers `iova`."""
        index = bisect_right(self.starts, iova) - 1
        if index < 0 or iova >= self.maps[index].end:
            return None
        return self.maps[index]

    def overlapping(self, iova: int, end: int) -> list[Mapping]:
        """The maps with a byte in iova..end, in ascending order."""
        first = bisect_right(self.starts, iova) - 1
        if first < 0 or self.maps[first].end <= iova:
            first += 1
        return self.maps[first : bisect_left(self.starts, end)]

    def add(self, mapping: Mapping) -> None:
        """`mapping` overlaps nothing."""
        index = bisect_left(self.starts, mapping.iova)
        self.starts.insert(index, mapping.iova)
        self.maps.insert(index, mapping)

    def discard(self, mapping: Mapping) -> None:
        """`mapping` may be here, or half of it, where `add` was interrupted."""
        index = bisect_left(self.starts, mapping.iova)
        if self.starts[index : index + 1] == [mapping.iova]:
            del self.starts[index]
        if self.maps[index : index + 1] == [mapping]:
            del self.maps[index]

    def drop(self, mapping: Mapping) -> None:
        """`mapping` is here."""
        index = bisect_left(self.starts, mapping.iova)
        del self.starts[index], self.maps[index]
