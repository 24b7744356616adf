"""Names of commands, for counters and for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_MI: Mapping[int, str] = {
    0x02: "MI_USER_INTERRUPT",
    0x0A: "MI_BATCH_BUFFER_END",
    0x1A: "MI_MATH",
    0x12: "MI_LOAD_SCAN_LINES_INCL",
    0x13: "MI_LOAD_SCAN_LINES_EXCL",
    0x14: "MI_DISPLAY_FLIP",
    0x18: "MI_SET_CONTEXT",
    0x1B: "MI_SEMAPHORE_SIGNAL",
    0x1C: "MI_SEMAPHORE_WAIT",
    0x20: "MI_STORE_DATA_IMM",
    0x22: "MI_LOAD_REGISTER_IMM",
    0x23: "MI_UPDATE_GTT",
    0x24: "MI_STORE_REGISTER_MEM",
    0x26: "MI_FLUSH_DW",
    0x27: "MI_CLFLUSH",
    0x28: "MI_REPORT_PERF_COUNT",
    0x29: "MI_LOAD_REGISTER_MEM",
    0x2A: "MI_LOAD_REGISTER_REG",
    0x2B: "MI_RS_STORE_DATA_IMM",
    0x2C: "MI_LOAD_URB_MEM",
    0x2D: "MI_STORE_URB_MEM",
    0x2E: "MI_COPY_MEM_MEM",
    0x2F: "MI_ATOMIC",
    0x31: "MI_BATCH_BUFFER_START",
    0x36: "MI_CONDITIONAL_BATCH_BUFFER_END",
}
_BLITTER: Mapping[int, str] = {
    0x01: "XY_SETUP_BLT",
    0x03: "XY_SETUP_CLIP_BLT",
    0x11: "XY_SETUP_MONO_PATTERN_SL_BLT",
    0x24: "XY_PIXEL_BLT",
    0x25: "XY_SCANLINES_BLT",
    0x26: "XY_TEXT_BLT",
    0x31: "XY_TEXT_IMMEDIATE_BLT",
    0x40: "COLOR_BLT",
    0x42: "XY_FAST_COPY_BLT",
    0x43: "SRC_COPY_BLT",
    0x50: "XY_COLOR_BLT",
    0x51: "XY_PAT_BLT",
    0x52: "XY_MONO_PAT_BLT",
    0x53: "XY_SRC_COPY_BLT",
    0x54: "XY_MONO_SRC_COPY_BLT",
    0x55: "XY_FULL_BLT",
    0x56: "XY_FULL_MONO_SRC_BLT",
    0x57: "XY_FULL_MONO_PATTERN_BLT",
    0x58: "XY_FULL_MONO_PATTERN_MONO_SRC_BLT",
    0x59: "XY_MONO_PAT_FIXED_BLT",
    0x71: "XY_MONO_SRC_COPY_IMMEDIATE_BLT",
    0x72: "XY_PAT_BLT_IMMEDIATE",
    0x73: "XY_SRC_COPY_CHROMA_BLT",
    0x74: "XY_FULL_IMMEDIATE_PATTERN_BLT",
    0x75: "XY_FULL_MONO_SRC_IMMEDIATE_PATTERN_BLT",
    0x76: "XY_PAT_CHROMA_BLT",
    0x77: "XY_PAT_CHROMA_BLT_IMMEDIATE",
}
MI, BLITTER, RENDER = 0, 2, 3


def mi_name(opcode: int) -> str | None:
    """None for an opcode that is no MI command of gen9."""
    return _MI.get(opcode)


def blit_name(opcode: int) -> str | None:
    """None for an opcode that is no blitter command of gen9."""
    return _BLITTER.get(opcode)


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
