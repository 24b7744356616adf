"""One launch of the copy engine: a rectangle moved or filled, then a semaphore, then an interrupt.

Facts: NVIDIA, open-gpu-doc (classes/dma-copy/clb0b5.h, LAUNCH_DMA and the methods that it looks at).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev_softgpu import Blit, Fault, Reason, Rect, Step, Surface, Tiling

from . import semaphore
from .remap import Remap, Shuffle
from .trouble import Client, LaunchError, PageFault

if TYPE_CHECKING:
    from umdev_softgpu import Budget

    from .execution import Execution

TRANSFER, SEMAPHORE_KIND, INTERRUPT_KIND = 0x3, 0x3 << 3, 0x3 << 5
SOURCE_PITCH, TARGET_PITCH, MULTI_LINE, REMAP = 1 << 7, 1 << 8, 1 << 9, 1 << 10
PHYSICAL = 1 << 12 | 1 << 13
REDUCTION_UNSIGNED, REDUCTION_ENABLE = 1 << 18, 1 << 19
SEMAPHORE, PAYLOAD, RENDER_ENABLE, RENDER_MODE = 0x240, 0x248, 0x254, 0x25C
SOURCE, TARGET, SOURCE_PITCH_BYTES, TARGET_PITCH_BYTES = 0x400, 0x408, 0x410, 0x414
LINE_LENGTH, LINE_COUNT = 0x418, 0x41C
CONSTANT_A, CONSTANT_B, COMPONENTS = 0x700, 0x704, 0x708
TARGET_BLOCKS, SOURCE_BLOCKS = 0x70C, 0x728
"""Six methods each: block size, width, height, depth, layer, origin."""
GOB_WIDTH, GOB_HEIGHT = 64, 8
FERMI_GOB = 1
GREATEST_BLOCK = 5


class Launch:
    """Stepped on the scheduler's thread until it is done; numbers are those of the moment of the launch."""

    def __init__(self, execution: Execution, state: dict[int, int], flags: int) -> None:
        """Raises: LaunchError for what the engine can't do, PageFault from the condition."""
        self._execution, self._state, self._flags = execution, state, flags
        if flags & PHYSICAL:
            raise LaunchError("physical addresses are not a vGPU's to use")
        if flags & TRANSFER == TRANSFER or flags & SEMAPHORE_KIND == SEMAPHORE_KIND:
            raise LaunchError(f"launch {flags:#x}: there is no such transfer or semaphore")
        if flags & REDUCTION_ENABLE and flags >> 14 & 0xF not in semaphore.REDUCTIONS:
            raise LaunchError(f"launch {flags:#x}: there is no such reduction")
        self._transfer = self._prepare() if flags & TRANSFER and self._enabled() else None

    def step(self, budget: Budget) -> bool:
        """Go on; True when all is done. Raises: PageFault, LaunchError."""
        if self._transfer is not None:
            outcome = self._transfer.step(budget)
            if isinstance(outcome, Fault):
                if outcome.reason is Reason.INVALID:
                    raise LaunchError("a surface has an address or a pitch that its layout does not take")
                raise PageFault(outcome, Client.COPY2)
            if outcome is Step.MORE:
                return False
            self._transfer = None
        self._release()
        self._execution.copy_done((self._flags & INTERRUPT_KIND) >> 5)
        return True

    def _address(self, method: int) -> int:
        return (self._state[method] & 0xFF) << 32 | self._state[method + 4]

    def _enabled(self) -> bool:
        """Conditional rendering: the transfer happens or not, the rest does."""
        mode = self._state[RENDER_MODE] & 7
        if mode <= 1:
            return bool(mode)
        space, address = self._execution.space, self._address(RENDER_ENABLE)
        first = semaphore.load(space, address, Client.COPY2)
        if mode == 2:
            return first != 0
        return (first == semaphore.load(space, address + 16, Client.COPY2)) == (mode == 3)

    def _prepare(self) -> Blit | Shuffle | None:
        state, flags = self._state, self._flags
        remap = None
        if flags & REMAP:
            remap = Remap.of(state[COMPONENTS], state[CONSTANT_A], state[CONSTANT_B])
        width, height = state[LINE_LENGTH], state[LINE_COUNT] if flags & MULTI_LINE else 1
        if not width or not height:
            return None
        source_bytes, target_bytes = (remap.source_bytes, remap.target_bytes) if remap else (1, 1)
        target, x, y = self._surface(TARGET, TARGET_PITCH_BYTES, TARGET_BLOCKS, target_bytes, flags & TARGET_PITCH)
        rect = Rect(x, y, width, height)
        if remap and remap.is_fill:
            return Blit.fill(target, rect, target_bytes, remap.pattern, write_mask=remap.write_mask)
        source, *at = self._surface(SOURCE, SOURCE_PITCH_BYTES, SOURCE_BLOCKS, source_bytes, flags & SOURCE_PITCH)
        if remap is None or remap.is_copy:
            return Blit.copy(target, source, rect, target_bytes, at=(at[0], at[1]))
        return Shuffle(remap, target, rect, source, (at[0], at[1]))

    def _surface(self, address: int, pitch: int, blocks: int, element: int, is_pitch: int) -> tuple[Surface, int, int]:
        """An image, and where the rectangle is in it."""
        space, base = self._execution.space, self._address(address)
        if is_pitch:
            stored = self._state[pitch]
            return Surface(space, base, stored - (1 << 32) if stored >> 31 else stored), 0, 0
        size, width, height, _, layer, origin = (self._state[blocks + 4 * number] for number in range(6))
        rows, layers = size >> 4 & 0xF, size >> 8 & 0xF
        if size & 0xF or size >> 12 & 0xF != FERMI_GOB or max(rows, layers) > GREATEST_BLOCK:
            raise LaunchError(f"blocks of {size:#x}: one gob of 8 rows wide, 1 << 0 to 5 gobs high and deep")
        row_bytes = -(-width * element // GOB_WIDTH) * GOB_WIDTH
        block_height = GOB_HEIGHT << rows
        layer_bytes = row_bytes * (-(-height // block_height) * block_height)
        before, within = layer >> layers, layer & (1 << layers) - 1
        base += (before << layers) * layer_bytes + within * GOB_WIDTH * block_height
        return Surface(space, base, row_bytes, Tiling.BLOCKS, rows, layers), origin & 0xFFFF, origin >> 16

    def _release(self) -> None:
        kind = (self._flags & SEMAPHORE_KIND) >> 3
        if not kind:
            return
        execution, address, payload = self._execution, self._address(SEMAPHORE), self._state[PAYLOAD]
        if self._flags & REDUCTION_ENABLE:
            signed = not self._flags & REDUCTION_UNSIGNED
            operation = self._flags >> 14 & 0xF
            semaphore.reduce(execution.space, address, payload, operation, Client.COPY2, signed=signed)
        else:
            time_ns = execution.now_ns if kind == 2 else None
            semaphore.store(execution.space, address, payload, Client.COPY2, time_ns=time_ns)
