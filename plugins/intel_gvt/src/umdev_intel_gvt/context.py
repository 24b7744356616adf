"""Contexts: the descriptor that a submission names, and the register image that an engine loads and saves.

Layout (gen8 and gen9): Intel Graphics PRM, Kaby Lake, volume 7 (memory views of execlists): page 0 belongs
to the process's status, page 1 is a list of register loads; the numbers below are dwords of that page.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from umdev.device import PAGE_SIZE
from umdev_softgpu import Fault

if TYPE_CHECKING:
    from umdev_softgpu import Space

    from .graphics_memory import GraphicsMemory

IMAGE_DWORDS = 0x60
HEAD, TAIL, START, CONTROL = 0x05, 0x07, 0x09, 0x0B
INDIRECT, INDIRECT_OFFSET = 0x1B, 0x1D
PDP0_UPPER, PDP0_LOWER = 0x31, 0x33
ADDRESSING_LEGACY_64 = 3
CACHE_LINE = 64
_IMAGE = struct.Struct(f"<{IMAGE_DWORDS}I")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One element of a submission, 64 bits."""

    value: int

    @property
    def valid(self) -> bool:
        """Else the element is empty."""
        return bool(self.value & 1)

    @property
    def addressing(self) -> int:
        """3 is the one that this vGPU offers: 48-bit per-process tables."""
        return self.value >> 3 & 3

    @property
    def image(self) -> int:
        """Graphics address of the context."""
        return self.value & 0xFFFF_F000

    @property
    def identity(self) -> int:
        """What the status buffer calls it."""
        return self.value >> 32


@dataclass(slots=True)
class Context:
    """A context as an engine has loaded it. Ring addresses are graphics addresses, `head` and `tail` offsets."""

    descriptor: Descriptor
    start: int
    size: int
    head: int
    tail: int
    indirect: int
    indirect_bytes: int
    ppgtt: Space

    @classmethod
    def load(cls, descriptor: Descriptor, memory: GraphicsMemory) -> Context | Fault | str:
        """Read the image, once. A Fault where it can't be read, a text that says what is wrong with it."""
        if descriptor.addressing != ADDRESSING_LEGACY_64:
            return f"addressing mode {descriptor.addressing}"
        raw = memory.ggtt.read(descriptor.image + PAGE_SIZE, _IMAGE.size)
        if isinstance(raw, Fault):
            return raw
        image = _IMAGE.unpack(raw)
        size = (image[CONTROL] & 0x1F_F000) + PAGE_SIZE
        head, tail = image[HEAD] & 0x1F_FFFC, image[TAIL] & 0x1F_FFF8
        if head >= size or tail >= size:
            return f"head {head:#x} or tail {tail:#x} outside a ring of {size:#x} bytes"
        return cls(
            descriptor=descriptor,
            start=image[START] & 0xFFFF_F000,
            size=size,
            head=head,
            tail=tail,
            indirect=image[INDIRECT] & ~(CACHE_LINE - 1),
            indirect_bytes=(image[INDIRECT] & CACHE_LINE - 1) * CACHE_LINE,
            ppgtt=memory.ppgtt(image[PDP0_UPPER] << 32 | image[PDP0_LOWER]),
        )

    def reload_tail(self, memory: GraphicsMemory) -> Fault | None:
        """The driver submitted it again with more in its ring; a tail outside the ring is ignored."""
        raw = memory.ggtt.read(self.descriptor.image + PAGE_SIZE + 4 * TAIL, 4)
        if isinstance(raw, Fault):
            return raw
        tail = int.from_bytes(raw, "little") & 0x1F_FFF8
        if tail < self.size:
            self.tail = tail
        return None

    def save(self, memory: GraphicsMemory) -> Fault | None:
        """Write the head back: all that the driver looks at."""
        return memory.ggtt.write(self.descriptor.image + PAGE_SIZE + 4 * HEAD, self.head.to_bytes(4, "little"))
