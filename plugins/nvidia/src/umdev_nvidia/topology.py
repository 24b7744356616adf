"""The TOP table: which engines there are, on which runlists, with which interrupt, reset and fault numbers.

Facts: Linux, drivers/gpu/drm/nouveau (nvkm/subdev/top/gk104.c): words with bit 31 set continue an entry; the low two
bits say what a word holds: 1 address and fault number, 2 engine, runlist, interrupt and reset, 3 the engine's type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from umdev.device import RO, Block, Register, RegisterArray

if TYPE_CHECKING:
    from .vgpu import Vgpu  # noqa: F401  # the type in Block["Vgpu"]

TABLE_WORDS = 64
PBDMAS = 2
"""Units that fetch commands; number n serves runlist n."""
COPY_RUNLIST, GRAPHICS_RUNLIST = 0, 1
"""Linux 6.12 wakes only runlist 0's fences by interrupt, on GPUs of this age: a fence waits for its runlist's event,
and the interrupt's has number 0 (nvkm/engine/fifo, uchan.c and gk104.c). So 0 is that of the copies."""
GRAPHICS, COPY2 = 0, 3
"""Types of engine."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine. `fault` is the number that the memory unit reports it by."""

    name: str
    type: int
    address: int
    fault: int
    number: int
    runlist: int
    interrupt: int
    reset: int

    @property
    def words(self) -> tuple[int, int, int]:
        """Its entry; the fault number is there, and so are all four of the second word."""
        data = 1 << 31 | 1 << 2 | self.fault << 3 | self.address | 1
        numbers = self.number << 26 | self.runlist << 21 | self.interrupt << 15 | self.reset << 9
        return data, 1 << 31 | numbers | 0xF << 2 | 2, self.type << 2 | 3


ENGINES = (
    EngineSpec("graphics", GRAPHICS, 0x400000, 0x00, 0, GRAPHICS_RUNLIST, 12, 12),
    EngineSpec("copy2", COPY2, 0x106000, 0x1B, 1, COPY_RUNLIST, 7, 21),
)
"""Graphics is listed because nouveau gives programs no channel without it. It has no classes: its channels run what the
host and the copy engine can."""


class Topology(Block["Vgpu"]):
    """At 0 of BAR 0."""

    table = RegisterArray(0x22700, Register, RO, count=TABLE_WORDS)
    pbdma_runlists = RegisterArray(0x2390, Register, RO, count=PBDMAS)
    """A mask of runlists for each PBDMA."""

    def fill(self) -> None:
        """After a reset."""
        words = [word for engine in ENGINES for word in engine.words]
        for number, word in enumerate(words):
            self.table[number].value = word
        for number in range(PBDMAS):
            self.pbdma_runlists[number].value = 1 << number
