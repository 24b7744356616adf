"""Pages that stay in memory: service 5 by populate and mlock on the device's mapping."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev._native import lib

from .counted_pins import CountedPins, pin_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .counted_pins import Run


class PinTable(CountedPins):
    """Pins by populate and mlock, which itself does not count.

    The kernel counts the same pages in VmLck of /proc/self/status. mlock keeps a page resident, but lets the kernel
    move it; hardware that does DMA by itself needs a long-term pin.
    """

    @property
    def mechanism(self) -> str:
        """One line for people."""
        return "populate + mlock of the device's mapping, counted per page"

    def take(self, run: Run, *, writable: bool) -> None:
        """See `CountedPins`."""
        start, end = run
        code = -lib.umdev_memory_pin(start, end - start, writable)
        if code:
            lib.umdev_memory_unpin(start, end - start)  # of a part of it, perhaps
            raise pin_error(code, run)

    def drop(self, runs: Sequence[Run]) -> None:
        """See `CountedPins`."""
        for start, end in runs:
            lib.umdev_memory_unpin(start, end - start)
