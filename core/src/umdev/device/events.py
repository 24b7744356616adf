"""`Events`: what a device does by itself, for those who trace it: the commands of an engine, packets, states."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from umdev._native import ffi, lib

if TYPE_CHECKING:
    from .dispatch import NativeDevice

REGION = 0xFFFF
"""In a trace record: it is no access but an event."""
NAMES_LIMIT = 4096
"""Names that are told apart; all others are `OTHERS`."""
OTHERS = "other"
_HALF = 0xFFFF_FFFF
_WHOLE = (1 << 64) - 1


class Events:
    """The events of one device: `if self.trace.wanted: self.trace.tell("render", "MI_NOOP")`. Any thread.

    They stand in the trace among the accesses, in the order of time, and like these are overwritten where nobody reads
    them. When nobody traces, `wanted` costs one look at memory, and nothing else happens.
    """

    def __init__(self, native: NativeDevice) -> None:
        """For `Device`."""
        self._device = native.id
        self._on = lib.umdev_trace_flag()
        self._guard = threading.Lock()
        self._numbers: dict[tuple[str, str], int] = {("", OTHERS): 0}
        self._names = [OTHERS]

    @property
    def wanted(self) -> bool:
        """Whether anybody traces this process."""
        return bool(self._on[0])

    def tell(self, source: str, name: str, value: int = 0, *, address: int = 0, length: int = 0) -> None:
        """An event of a part of the device, as `render` and `MI_STORE_DATA_IMM`; without effect when nobody traces.

        value, address: 64 bits, for people; length: bytes, 32 bits. Names are a model's own, not a guest's: 4,096 are
        told apart.
        """
        if not self._on[0]:
            return
        record = ffi.new("umdev_trace_record *")
        record.time = time.monotonic_ns()
        record.device, record.region = self._device, REGION
        record.initiator = self._number(source, name)
        record.offset, record.value, record.length = address & _WHOLE, value & _WHOLE, length & _HALF
        lib.umdev_trace_add(record)

    def name(self, number: int) -> str:
        """`render.MI_STORE_DATA_IMM`, for the number in a record."""
        return self._names[number] if number < len(self._names) else OTHERS

    def _number(self, source: str, name: str) -> int:
        found = self._numbers.get((source, name))
        if found is not None:
            return found
        with self._guard:
            if len(self._names) >= NAMES_LIMIT:
                return 0
            self._names.append(f"{source}.{name}" if source else name)  # before its number can be met
            return self._numbers.setdefault((source, name), len(self._names) - 1)
