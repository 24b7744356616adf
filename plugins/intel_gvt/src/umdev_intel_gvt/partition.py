"""How a GPU's graphics memory is shared out: aperture, hidden memory and fences, to each vGPU its own.

Sizes and host reservations: Linux, drivers/gpu/drm/i915/gvt (128 MiB aperture, 384 MiB hidden memory and 4 fences stay
the host's; at most 8 vGPUs).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from umdev.device import NoInstanceLeft

from .fences import FENCES, HARDWARE_FENCES

if TYPE_CHECKING:
    from collections.abc import Iterable

MIB = 1 << 20
GRAPHICS_MEMORY = 4096 * MIB
"""What the global page table reaches."""
APERTURE = 1024 * MIB
"""What BAR 2 reaches of it."""
HOST_APERTURE = 128 * MIB
HOST_HIDDEN = 384 * MIB
HOST_FENCES = 4
MAXIMUM_VGPUS = 8


@dataclass(frozen=True, slots=True)
class Share:
    """What one vGPU takes, in bytes; fences are counted."""

    aperture: int
    hidden: int
    fences: int = FENCES


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of graphics memory, from `base` on."""

    base: int
    size: int

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.base + self.size

    def holds(self, address: int, length: int = 1) -> bool:
        """Whether all of a range lies inside."""
        return self.base <= address and address + length <= self.end


@dataclass(frozen=True, slots=True)
class Slice:
    """Where the graphics memory of one vGPU lies."""

    aperture: Range
    hidden: Range

    def holds(self, address: int, length: int = 1) -> bool:
        """Whether a range lies in one of the two; one that begins in one and ends in the other does not."""
        return self.aperture.holds(address, length) or self.hidden.holds(address, length)


class Partition:
    """The slices in use. Any thread."""

    aperture = Range(HOST_APERTURE, APERTURE - HOST_APERTURE)
    hidden = Range(APERTURE + HOST_HIDDEN, GRAPHICS_MEMORY - APERTURE - HOST_HIDDEN)
    fences = HARDWARE_FENCES - HOST_FENCES

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: dict[int, Slice] = {}

    @classmethod
    def fitting(cls, share: Share, used: Iterable[Share]) -> int:
        """How many more of a share there is room for beside those in use."""
        taken = list(used)
        left = (
            (cls.aperture.size - sum(other.aperture for other in taken)) // share.aperture,
            (cls.hidden.size - sum(other.hidden for other in taken)) // share.hidden,
            (cls.fences - sum(other.fences for other in taken)) // share.fences,
            MAXIMUM_VGPUS - len(taken),
        )
        return max(0, min(left))

    def allocate(self, share: Share) -> tuple[int, Slice]:
        """The lowest place for a share; returns the vGPU's number, from 1, too.

        Raises: NoInstanceLeft when no gap is large enough.
        """
        with self._lock:
            aperture = _gap(self.aperture, share.aperture, [slice_.aperture for slice_ in self._used.values()])
            hidden = _gap(self.hidden, share.hidden, [slice_.hidden for slice_ in self._used.values()])
            if aperture is None or hidden is None or len(self._used) >= MAXIMUM_VGPUS:
                what = "vGPUs" if aperture and hidden else "aperture" if aperture is None else "hidden memory"
                raise NoInstanceLeft(
                    f"no room for {share.aperture // MIB} MiB of aperture and {share.hidden // MIB} MiB of hidden "
                    f"memory: {len(self._used)} vGPUs run, and there are no more {what} in one piece"
                )
            number = next(n for n in range(1, MAXIMUM_VGPUS + 1) if n not in self._used)
            self._used[number] = found = Slice(aperture, hidden)
            return number, found

    def free(self, number: int) -> None:
        """Give a slice back; one that is free already is ignored."""
        with self._lock:
            self._used.pop(number, None)

    @property
    def used(self) -> dict[int, Slice]:
        """Slices by vGPU number."""
        with self._lock:
            return dict(self._used)


def _gap(whole: Range, size: int, taken: Iterable[Range]) -> Range | None:
    at = whole.base
    for other in sorted(taken, key=lambda range_: range_.base):
        if at + size <= other.base:
            break
        at = other.end
    return Range(at, size) if at + size <= whole.end else None
