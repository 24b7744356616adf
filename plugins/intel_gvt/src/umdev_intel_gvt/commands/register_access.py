"""The registers that commands may read and write.

A command that could write any register could give itself privileges, move the status page or reset the engine: so
there is a list. What is not on it is refused: it reads as 0, and writes are dropped and counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import Register, RegisterArray

from ..engines import ENGINES
from ..named import WorkaroundRegisters

if TYPE_CHECKING:
    from ..execlists import EngineState

REACHED_BY_ALL = (
    "context_timestamp",
    "general",
)
HALF = 0xFFFF_FFFF


class CommandRegisters:
    """Of one engine. Any thread may read; who writes holds the device lock, since a reset clears them."""

    def __init__(self, engine: EngineState) -> None:
        self._engine = engine
        self._registers: dict[int, tuple[Register, int]] = {}
        ring = engine.ring
        for name in REACHED_BY_ALL:
            self._add(getattr(ring, name), ring.base)
        if engine.spec is ENGINES[0]:
            block = engine.vgpu.registers.workarounds
            for name in WorkaroundRegisters.declared:
                self._add(getattr(block, name), block.base)
        self._timestamp = ring.base + type(ring).timestamp.offset
        self.refused = 0

    def read(self, offset: int) -> int:
        """32 bits; 0 for what is not on the list."""
        if offset & ~4 == self._timestamp:
            return self._engine.vgpu.timestamp() >> 8 * (offset & 4) & HALF
        found = self._registers.get(offset)
        if found is None:
            self.refused += 1
            return 0
        register, shift = found
        return register.value >> shift & HALF

    def write(self, offset: int, value: int) -> None:
        """32 bits; dropped for what is not on the list."""
        found = self._registers.get(offset)
        if found is None:
            self.refused += 1
            return
        register, shift = found
        if register.masked:
            enabled = value >> 16
            register.update(enabled, value & enabled)
        else:
            register.update(HALF << shift, value << shift)

    def _add(self, register: Register | RegisterArray[Register], base: int) -> None:
        elements = list(register) if isinstance(register, RegisterArray) else [register]
        stride = register.stride if isinstance(register, RegisterArray) else 0
        for number, element in enumerate(elements):
            at = base + register.offset + number * stride
            for half in range(element.width // 4):
                self._registers[at + 4 * half] = (element, 32 * half)
