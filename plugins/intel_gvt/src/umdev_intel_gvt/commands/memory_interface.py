"""The MI commands: stores, register loads, batches, semaphores, interrupts."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from umdev_softgpu import Fault

from ..interrupt_tree import EngineEvent
from .atomics import atomic
from .names import mi_name
from .outcome import Outcome
from .render import INVALIDATE_TLB, PostSync, post_sync_value, store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .execution import Execution

Command = tuple[int, ...]
GLOBAL = 1 << 22
REGISTER_MASK = 0x7F_FFFC
CACHE_LINE = 64
REPORT_BYTES = 256
COMPARISONS = (operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne)
"""By MI_SEMAPHORE_WAIT's bits 14:12: what memory has to be against what the command says."""


def execute(execution: Execution, command: Command) -> Outcome | None:
    """Run one. What is not done here is passed over and counted; an opcode that is none stops the engine."""
    opcode = command[0] >> 23 & 0x3F
    found = _HANDLERS.get(opcode)
    if found is None:
        if (name := mi_name(opcode)) is None:
            return execution.fail(f"MI opcode {opcode:#04x} is not known")
        execution.pass_over(name)
        return None
    handler, least = found
    if len(command) < least:
        return execution.fail(f"MI opcode {opcode:#04x} of {len(command)} dwords; it has {least} at least")
    return handler(execution, command)


def _address(low: int, high: int) -> int:
    return low & ~3 | (high & 0xFFFF) << 32


def _user_interrupt(execution: Execution, _command: Command) -> Outcome | None:
    execution.raise_event(EngineEvent.USER)
    return None


def _batch_end(execution: Execution, _command: Command) -> Outcome | None:
    return execution.leave_batch()


def _batch_start(execution: Execution, command: Command) -> Outcome | None:
    process, second_level = bool(command[0] & 1 << 8), bool(command[0] & 1 << 22)
    return execution.enter_batch(_address(command[1], command[2]), process=process, second_level=second_level)


def _store_data(execution: Execution, command: Command) -> Outcome | None:
    quadword = bool(command[0] & 1 << 21)
    length = 8 if quadword and len(command) > 4 else 4
    value = b"".join(dword.to_bytes(4, "little") for dword in command[3 : 3 + length // 4])
    return store(execution, _address(command[1], command[2]), value, index=0, global_=command[0] & GLOBAL)


def _load_registers(execution: Execution, command: Command) -> Outcome | None:
    offsets = (offset & REGISTER_MASK for offset in command[1::2])
    execution.write_registers(zip(offsets, command[2::2], strict=False))
    return None


def _store_register(execution: Execution, command: Command) -> Outcome | None:
    value = execution.registers.read(command[1] & REGISTER_MASK).to_bytes(4, "little")
    return store(execution, _address(command[2], command[3]), value, index=0, global_=command[0] & GLOBAL)


def _load_register(execution: Execution, command: Command) -> Outcome | None:
    space = execution.space(global_=bool(command[0] & GLOBAL))
    if space is None:
        execution.refuse("load from global memory")
        return None
    found = space.read(_address(command[2], command[3]), 4)
    if isinstance(found, Fault):
        return execution.fail(str(found))
    execution.write_registers([(command[1] & REGISTER_MASK, int.from_bytes(found, "little"))])
    return None


def _copy_register(execution: Execution, command: Command) -> Outcome | None:
    value = execution.registers.read(command[1] & REGISTER_MASK)
    execution.write_registers([(command[2] & REGISTER_MASK, value)])
    return None


def _copy_memory(execution: Execution, command: Command) -> Outcome | None:
    """MI_COPY_MEM_MEM: bit 22 is the source's table here, bit 21 the destination's."""
    source = execution.space(global_=bool(command[0] & 1 << 22))
    target = execution.space(global_=bool(command[0] & 1 << 21))
    if source is None or target is None:
        execution.refuse("copy of global memory")
        return None
    found = source.read(_address(command[3], command[4]), 4)
    if isinstance(found, Fault):
        return execution.fail(str(found))
    return execution.check(target.write(_address(command[1], command[2]), found))


def _flush(execution: Execution, command: Command) -> Outcome | None:
    """MI_FLUSH_DW: nothing is cached here, so it is what comes after that counts."""
    flags = command[0]
    if flags & INVALIDATE_TLB:
        execution.forget_translations()
    data = command[3] | (command[4] << 32 if len(command) > 4 else 0)
    value = post_sync_value(execution, PostSync(flags >> 14 & 3), data)
    if value is not None:
        address = command[1] & ~7 | (command[2] & 0xFFFF) << 32
        outcome = store(execution, address, value, index=flags & 1 << 21, global_=command[1] & 4)
        if outcome is not None:
            return outcome
    if flags & 1 << 8:
        execution.raise_event(EngineEvent.FLUSH)
    return None


def _semaphore_wait(execution: Execution, command: Command) -> Outcome | None:
    comparison = command[0] >> 12 & 7
    if comparison >= len(COMPARISONS):
        return execution.fail(f"semaphore comparison {comparison}")
    space = execution.space(global_=bool(command[0] & GLOBAL))
    if space is None:
        execution.refuse("semaphore in global memory")
        return None
    found = space.read(_address(command[2], command[3]), 4)
    if isinstance(found, Fault):
        return execution.fail(str(found))
    signalled = COMPARISONS[comparison](int.from_bytes(found, "little"), command[1])
    return None if signalled else Outcome.BLOCKED


def _conditional_end(execution: Execution, command: Command) -> Outcome | None:
    """MI_CONDITIONAL_BATCH_BUFFER_END: on while memory is greater than what the command says."""
    space = execution.space(global_=bool(command[0] & GLOBAL))
    if space is None:
        execution.refuse("condition in global memory")
        return None
    found = space.read(_address(command[2], command[3]) & ~7, 4)
    if isinstance(found, Fault):
        return execution.fail(str(found))
    return None if int.from_bytes(found, "little") > command[1] else execution.leave_batch()


def _math(execution: Execution, command: Command) -> Outcome | None:
    wrong = execution.compute(command[1:])
    return execution.fail(wrong) if wrong else None


def _report(execution: Execution, command: Command) -> Outcome | None:
    """MI_REPORT_PERF_COUNT: its number, the time, the context, and counters of pipelines that do not exist: 0."""
    stamp = execution.engine.vgpu.timestamp() & 0xFFFF_FFFF
    words = (command[3], stamp, execution.context.descriptor.identity & 0xFFFF_FFFF)
    value = b"".join(word.to_bytes(4, "little") for word in words).ljust(REPORT_BYTES, b"\0")
    address = command[1] & ~(CACHE_LINE - 1) | (command[2] & 0xFFFF) << 32
    return store(execution, address, value, index=0, global_=command[1] & 1)


def _nothing(_execution: Execution, _command: Command) -> Outcome | None:
    """MI_CLFLUSH: nothing is cached here."""
    return None


_HANDLERS: Mapping[int, tuple[Callable[[Execution, Command], Outcome | None], int]] = {
    0x02: (_user_interrupt, 1),
    0x0A: (_batch_end, 1),
    0x1A: (_math, 2),
    0x1C: (_semaphore_wait, 4),
    0x20: (_store_data, 4),
    0x22: (_load_registers, 3),
    0x24: (_store_register, 4),
    0x26: (_flush, 4),
    0x27: (_nothing, 1),
    0x28: (_report, 4),
    0x29: (_load_register, 4),
    0x2A: (_copy_register, 3),
    0x2E: (_copy_memory, 5),
    0x2F: (atomic, 3),
    0x31: (_batch_start, 3),
    0x36: (_conditional_end, 4),
}
"""Opcode -> what to do, and the least number of dwords."""
