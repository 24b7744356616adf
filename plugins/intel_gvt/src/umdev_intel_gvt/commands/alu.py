"""MI_MATH: a small adder and logic unit over the sixteen general registers, 64 bits wide.

Instructions: Intel Graphics PRM, Kaby Lake, volume 2a, MI_MATH: opcode in bits 31:20, operands in 19:10 and
9:0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from umdev.device import Register64, RegisterArray

NOOP, LOAD, LOADINV, LOAD0, LOAD1 = 0x000, 0x080, 0x480, 0x081, 0x481
ADD, SUB, AND, OR, XOR = 0x100, 0x101, 0x102, 0x103, 0x104
STORE, STOREINV = 0x180, 0x580
SOURCE_A, SOURCE_B, ACCUMULATOR, ZERO_FLAG, CARRY_FLAG = 0x20, 0x21, 0x31, 0x32, 0x33
ONES = (1 << 64) - 1


def compute(general: RegisterArray[Register64], instructions: Sequence[int]) -> str:
    """Run the instructions. Returns what is wrong with the first that can't be run, or an empty text."""
    values = {SOURCE_A: 0, SOURCE_B: 0, ACCUMULATOR: 0, ZERO_FLAG: 0, CARRY_FLAG: 0}
    for instruction in instructions:
        opcode, first, second = instruction >> 20, instruction >> 10 & 0x3FF, instruction & 0x3FF
        if opcode == NOOP:
            continue
        if opcode in (LOAD, LOADINV, LOAD0, LOAD1):
            if first not in (SOURCE_A, SOURCE_B):
                return f"MI_MATH loads operand {first:#x}"
            if opcode in (LOAD0, LOAD1):
                values[first] = 0 if opcode == LOAD0 else ONES
                continue
            value = general[second].value if second < len(general) else values.get(second, 0)
            values[first] = value ^ ONES if opcode == LOADINV else value
        elif opcode in (STORE, STOREINV):
            if first >= len(general):
                return f"MI_MATH stores to operand {first:#x}"
            value = values.get(second, 0)
            general[first].value = value ^ ONES if opcode == STOREINV else value
        elif ADD <= opcode <= XOR:
            values |= _result(opcode, values[SOURCE_A], values[SOURCE_B])
        else:
            return f"MI_MATH instruction {instruction:#010x}"
    return ""


def _result(opcode: int, a: int, b: int) -> dict[int, int]:
    wide = {ADD: a + b, SUB: a - b, AND: a & b, OR: a | b, XOR: a ^ b}[opcode]
    value = wide & ONES
    return {
        ACCUMULATOR: value,
        ZERO_FLAG: ONES if value == 0 else 0,
        CARRY_FLAG: ONES if wide != value else 0,
    }
