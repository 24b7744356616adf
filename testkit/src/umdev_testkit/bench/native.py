"""The C side of the bench, wrapped: functions that return nanoseconds per operation."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from umdev_testkit._floors import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ffi", "lib", "timed"]


def timed(measure: Callable[..., int], *arguments: Any, count: int, batch: int | None = None) -> Sequence[float]:
    """Call a measuring function of bench_decls.h and divide its batches.

    Raises: OSError with what the C side met.
    """
    times = ffi.new("uint64_t[]", count)
    result = measure(*arguments, *([] if batch is None else [batch]), count, times)
    if result:
        raise OSError(-result, os.strerror(-result))
    return [time / (batch or 1) for time in ffi.unpack(times, count)]
