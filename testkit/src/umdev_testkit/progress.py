"""Progress on stderr: a bar for a person at a terminal, plain lines for a log."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Progress"]

_WIDTH = 28  # characters of the bar itself
_MEGABYTE = 1_000_000
_REDRAW = 0.1  # seconds


class Progress:
    """One task of a known size in bytes, as a context manager.

    To a terminal: a bar that is redrawn in place. Else: one line when it starts, one when it ends, however it ends.
    """

    def __init__(self, label: str, total: int, stream: TextIO | None = None) -> None:
        self._label = label
        self._total = total
        self._stream = stream or sys.stderr
        self._bar = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._done = 0
        self._started = self._drawn = 0.0

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if self._bar:
            self._draw()
        else:
            self._stream.write(f"umdev: {self._label}: {self._total / _MEGABYTE:.1f} MB\n")
            self._stream.flush()
        return self

    def update(self, done: int) -> None:
        """Show that `done` bytes of the total are finished."""
        self._done = min(done, self._total)
        if self._bar and time.monotonic() - self._drawn >= _REDRAW:
            self._draw()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        seconds = time.monotonic() - self._started
        outcome = "failed" if kind else f"done in {seconds:.1f} s"
        if self._bar:
            self._done = self._done if kind else self._total
            self._draw()
            self._stream.write(f"  {outcome}\n")
        else:
            self._stream.write(f"umdev: {self._label}: {outcome}\n")
        self._stream.flush()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        part = self._done / self._total if self._total else 1.0
        filled = int(part * _WIDTH)
        self._stream.write(
            f"\r{self._label} [{'#' * filled}{'.' * (_WIDTH - filled)}] {part:4.0%}"
            f" {self._done / _MEGABYTE:6.1f} of {self._total / _MEGABYTE:.1f} MB"
        )
        self._stream.flush()
