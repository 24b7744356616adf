"""What a guest's mistakes come to: values, never exceptions."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from ._native import lib


class Reason(enum.IntEnum):
    """Why an access through the port did not happen; the numbers are those of softgpu.h."""

    NOT_PRESENT = lib.SOFTGPU_NOT_PRESENT
    """The page tables have no page for the address."""
    NOT_PERMITTED = lib.SOFTGPU_NOT_PERMITTED
    """A store where page or map allow none, or a load likewise."""
    OUT_OF_RANGE = lib.SOFTGPU_OUT_OF_RANGE
    """Beyond the bits of the space, or the end of the memory behind it."""
    UNREACHABLE = lib.SOFTGPU_UNREACHABLE
    """A bus address that no map covers, or bus mastering is off."""
    BAD_TABLE = lib.SOFTGPU_BAD_TABLE
    """A page table that can't be read, or an entry that makes no sense."""
    CLOSED = lib.SOFTGPU_CLOSED
    """The port's life is over: a reset came."""
    INVALID = lib.SOFTGPU_INVALID
    """Numbers that no hardware would take."""
    WOULD_DEADLOCK = lib.SOFTGPU_WOULD_DEADLOCK
    """Memory by message, from a handler that the driver waits for: defer it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One access that did not happen. `isinstance(answer, Fault)` tells it from an answer."""

    reason: Reason
    address: int = 0
    """In the space that was asked."""
    write: bool = False
    level: int = 0
    """Of the page table that the walk stopped at; 0 is the root's."""
    beneath: int = 0
    """What the address came to: a bus address, an offset in memory, or the page-table entry's own address."""

    def __str__(self) -> str:
        access = "store to" if self.write else "load from"
        reason = self.reason.name.lower().replace("_", " ")
        return f"{access} {self.address:#x}: {reason} (level {self.level}, at {self.beneath:#x})"


def fault(native: Any) -> Fault:
    """A `softgpu_fault *` as a value."""
    return Fault(Reason(native.reason), native.address, bool(native.write), native.level, native.beneath)
