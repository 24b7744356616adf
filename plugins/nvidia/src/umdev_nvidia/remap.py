"""Remapping: what a launch makes of each element: components of the source in another order, constants, or nothing.

Facts: NVIDIA, open-gpu-doc (classes/dma-copy/clb0b5.h, SET_REMAP_COMPONENTS).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from umdev_softgpu import Fault, Step

from .trouble import LaunchError

if TYPE_CHECKING:
    from collections.abc import Callable

    from umdev_softgpu import Budget, Rect, Surface

CONSTANT_A, CONSTANT_B, NO_WRITE = 4, 5, 6
PIECE = 4096
"""Elements that are moved at a time."""


@dataclass(frozen=True, slots=True)
class Remap:
    """`components`: for each of the target's, the source's number, a constant, or NO_WRITE."""

    size: int
    source_count: int
    components: tuple[int, ...]
    constants: tuple[int, int]

    @classmethod
    def of(cls, components: int, constant_a: int, constant_b: int) -> Remap:
        """From the methods. Raises: LaunchError for components that are not there."""
        count = (components >> 24 & 3) + 1
        source_count = (components >> 20 & 3) + 1
        chosen = tuple(components >> 4 * number & 7 for number in range(count))
        if any(source_count <= component < CONSTANT_A or component > NO_WRITE for component in chosen):
            raise LaunchError(f"remap {components:#x} asks for components that the source does not have")
        return cls((components >> 16 & 3) + 1, source_count, chosen, (constant_a, constant_b))

    @property
    def source_bytes(self) -> int:
        """Of an element of the source."""
        return self.size * self.source_count

    @property
    def target_bytes(self) -> int:
        """Of an element of the target."""
        return self.size * len(self.components)

    @property
    def is_fill(self) -> bool:
        """No component comes from the source."""
        return all(component >= CONSTANT_A for component in self.components)

    @property
    def is_copy(self) -> bool:
        """Elements stay as they are."""
        return self.components == tuple(range(self.source_count))

    @property
    def pattern(self) -> int:
        """A fill's element."""
        return self._gather(lambda component: self.constant(component) if component != NO_WRITE else 0)

    @property
    def write_mask(self) -> int:
        """The bits of an element that are written."""
        ones = (1 << 8 * self.size) - 1
        return self._gather(lambda component: 0 if component == NO_WRITE else ones)

    def constant(self, component: int) -> int:
        """Its low bytes."""
        return self.constants[component - CONSTANT_A] & (1 << 8 * self.size) - 1

    def _gather(self, value: Callable[[int], int]) -> int:
        return sum(value(component) << 8 * self.size * n for n, component in enumerate(self.components))


class Shuffle:
    """Elements moved with their components in another order; budget by budget."""

    def __init__(self, remap: Remap, target: Surface, rect: Rect, source: Surface, at: tuple[int, int]) -> None:
        """rect, at: in elements of the target and of the source."""
        self.remap, self.target, self.source, self.rect, self.at = remap, target, source, rect, at
        self._row = self._column = 0

    def step(self, budget: Budget) -> Step | Fault:
        """Go on: DONE, MORE, or what went wrong."""
        while self._row < self.rect.height:
            if not budget.left:
                return Step.MORE
            count = min(PIECE, self.rect.width - self._column)
            fault = self._move(count)
            if fault is not None:
                return fault
            budget.spend(count * (self.remap.source_bytes + self.remap.target_bytes))
            self._column += count
            if self._column == self.rect.width:
                self._row, self._column = self._row + 1, 0
        return Step.DONE

    def _move(self, count: int) -> Fault | None:
        remap, size = self.remap, self.remap.size
        incoming, outgoing = remap.source_bytes, remap.target_bytes
        place = (self.rect.x + self._column) * outgoing, self.rect.y + self._row
        read = self.source.read((self.at[0] + self._column) * incoming, self.at[1] + self._row, count * incoming)
        if isinstance(read, Fault):
            return read
        written = bytearray(count * outgoing)
        if NO_WRITE in remap.components:
            before = self.target.read(*place, count * outgoing)
            if isinstance(before, Fault):
                return before
            written[:] = before
        for number, component in enumerate(remap.components):
            if component == NO_WRITE:
                continue
            for byte in range(size):
                bytes_of_it = slice(number * size + byte, None, outgoing)
                if component >= CONSTANT_A:
                    written[bytes_of_it] = bytes([remap.constant(component) >> 8 * byte & 0xFF]) * count
                else:
                    written[bytes_of_it] = read[component * size + byte :: incoming]
        return self.target.write(*place, written)
