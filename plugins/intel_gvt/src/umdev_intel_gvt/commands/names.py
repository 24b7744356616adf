"""Names of commands, for counters and for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_MI: Mapping[int, str] = {
    0x02: "MI_USER_INTERRUPT",
    0x0A: "MI_BATCH_BUFFER_END",
    0x1A: "MI_MATH",
    0x1C: "MI_SEMAPHORE_WAIT",
    0x20: "MI_STORE_DATA_IMM",
    0x22: "MI_LOAD_REGISTER_IMM",
    0x24: "MI_STORE_REGISTER_MEM",
    0x26: "MI_FLUSH_DW",
    0x29: "MI_LOAD_REGISTER_MEM",
    0x2A: "MI_LOAD_REGISTER_REG",
    0x2E: "MI_COPY_MEM_MEM",
    0x31: "MI_BATCH_BUFFER_START",
    0x36: "MI_CONDITIONAL_BATCH_BUFFER_END",
}
_BLITTER: Mapping[int, str] = {
    0x40: "COLOR_BLT",
    0x42: "XY_FAST_COPY_BLT",
    0x43: "SRC_COPY_BLT",
    0x50: "XY_COLOR_BLT",
    0x53: "XY_SRC_COPY_BLT",
}
MI, BLITTER, RENDER = 0, 2, 3


def name(header: int) -> str:
    """Of the command that a header begins; those that are not known have their numbers."""
    client = header >> 29
    if client == MI:
        opcode = header >> 23 & 0x3F
        return _MI.get(opcode, f"MI {opcode:#04x}")
    if client == BLITTER:
        opcode = header >> 22 & 0x7F
        return _BLITTER.get(opcode, f"blit {opcode:#04x}")
    return "PIPE_CONTROL" if client == RENDER else f"client {client}"
