"""The end of a machine before its time, asked for at whatever moment."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from .outcome import Outcome, OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .machine import Machine


class Ending:
    """Once it is asked for, no run of the machine goes on or begins: one under way is stopped, any later one is none.

    Any thread may ask, also before there is a machine, and while it is loaded or reset.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asked = False
        self._machine: Machine | None = None

    def ask(self) -> None:
        """End the machine. If it runs in a block of `of`, this returns when that has ended."""
        with self._changed:
            self._asked = True
            if self._machine is not None:
                self._machine.stop()  # the run under way, or one that is about to begin
                self._changed.wait_for(lambda: self._machine is None)

    @contextlib.contextmanager
    def of(self, machine: Machine) -> Iterator[None]:
        """What `ask` ends: the runs of this machine in the block."""
        with self._changed:
            self._machine = machine
        try:
            yield
        finally:
            with self._changed:
                self._machine = None
                self._changed.notify_all()

    def run(self, machine: Machine, limit: float) -> Outcome:
        """As `Machine.run`, but STOPPED without a run when the end has been asked for. Raises: as it does."""
        return Outcome(OutcomeKind.STOPPED) if self._asked else machine.run(limit)
