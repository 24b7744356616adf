"""The command scan in C, as Python sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._fast import ffi, lib

if TYPE_CHECKING:
    from typing_extensions import Buffer

EXECUTE, PARTIAL, UNKNOWN, END = (
    lib.GVT_STOP_EXECUTE,
    lib.GVT_STOP_PARTIAL,
    lib.GVT_STOP_UNKNOWN,
    lib.GVT_STOP_END,
)


class Scanner:
    """Passes over commands without effect in a buffer of dwords. Not for use by several threads at once."""

    def __init__(self) -> None:
        self._result: Any = ffi.new("gvt_scan *")

    def scan(self, content: Buffer, at: int, count: int) -> Any:
        """From dword `at` on, of `count` altogether: where it stopped (from `at`), why, and how many it passed over."""
        dwords = ffi.cast("const uint32_t *", ffi.from_buffer(content)) + at
        lib.gvt_scan_commands(dwords, count - at, self._result)
        return self._result


def length(header: int) -> int:
    """Of the command that a header begins, in dwords; 0 for none."""
    return int(lib.gvt_command_length(header))
