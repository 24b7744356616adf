"""A vGPU's video memory: its own pages of the host, which cost nothing before they are written."""

from __future__ import annotations

import logging
import mmap
from typing import TYPE_CHECKING, Any

from ._fast import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("umdev.nvidia")
_NO_RESERVE = 0x4000  # MAP_NORESERVE, which Python's mmap names from 3.13 on


class Vram:
    """`size` bytes, and who is told when a put pointer in them is written. The device lock is held for every call."""

    def __init__(self, size: int, kicked: Callable[[int], None]) -> None:
        """`kicked`: called with the number of a channel, in the thread of the access that rang."""
        self.size = size
        self.memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        self._buffer = ffi.from_buffer("uint8_t[]", self.memory)
        self._handle = ffi.new_handle(kicked)
        self.native: Any = ffi.new(
            "nv_vram *",
            {"bytes": self._buffer, "size": size, "kicked": lib.nv_python_kicked, "context": self._handle},
        )

    def clear(self) -> None:
        """All zeros again, its memory given back; no channel listens any more."""
        self.native.channels = 0
        self.memory.madvise(mmap.MADV_DONTNEED)

    def listen(self, channel: int, put: int) -> None:
        """Tell of writes to the word at `put`; a channel has one."""
        self.ignore(channel)
        native = self.native
        native.put[native.channels], native.channel[native.channels] = put, channel
        native.channels += 1

    def ignore(self, channel: int) -> None:
        """Undo `listen`; without effect for a channel that does not listen."""
        native = self.native
        for index in range(native.channels):
            if native.channel[index] == channel:
                native.channels -= 1
                native.put[index] = native.put[native.channels]
                native.channel[index] = native.channel[native.channels]
                return


@ffi.def_extern(name="nv_python_kicked", onerror=lambda *exception: log.error("a kick failed", exc_info=exception))  # type: ignore[untyped-decorator]  # cffi's
def _kicked(context: Any, channel: int) -> None:
    ffi.from_handle(context)(channel)
