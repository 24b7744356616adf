"""PIPE_CONTROL: the one render command with an effect here; the others are state for pipelines that do not exist."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from ..interrupt_tree import EngineEvent

if TYPE_CHECKING:
    from .execution import Execution
    from .outcome import Outcome

NOTIFY = 1 << 8
STORE_INDEX = 1 << 21
INVALIDATE_TLB = 1 << 18
GLOBAL = 1 << 24
INDEX_MASK = 0xFF8


class PostSync(enum.IntEnum):
    """What is stored when the pipeline has come to rest, which is at once."""

    NOTHING = 0
    IMMEDIATE = 1
    DEPTH_COUNT = 2
    TIMESTAMP = 3


def execute(execution: Execution, command: tuple[int, ...]) -> Outcome | None:
    """PIPE_CONTROL, six dwords."""
    if len(command) < 6:
        return execution.fail(f"PIPE_CONTROL of {len(command)} dwords")
    flags = command[1]
    if flags & INVALIDATE_TLB:
        execution.forget_translations()
    value = post_sync_value(execution, PostSync(flags >> 14 & 3), command[4] | command[5] << 32)
    if value is not None:
        address = command[2] & ~7 | (command[3] & 0xFFFF) << 32
        if (outcome := store(execution, address, value, index=flags & STORE_INDEX, global_=flags & GLOBAL)) is not None:
            return outcome
    if flags & NOTIFY:
        execution.raise_event(EngineEvent.FLUSH)
    return None


def post_sync_value(execution: Execution, kind: PostSync, immediate: int) -> bytes | None:
    """Eight bytes to store, or None."""
    match kind:
        case PostSync.IMMEDIATE:
            return immediate.to_bytes(8, "little")
        case PostSync.TIMESTAMP:
            return execution.engine.vgpu.timestamp().to_bytes(8, "little")
        case PostSync.DEPTH_COUNT:
            return bytes(8)
        case _:
            return None


def store(execution: Execution, address: int, value: bytes, *, index: int, global_: int) -> Outcome | None:
    """To an address, or to an offset in the context's own status page, which is where its image begins."""
    if index:
        page = execution.context.descriptor.image
        return execution.check(execution.memory.ggtt.write(page + (address & INDEX_MASK), value))
    space = execution.space(global_=bool(global_))
    if space is None:
        execution.refuse("store to global memory")
        return None
    return execution.check(space.write(address, value))
