"""How much a step may do, and how it may end."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from umdev.device import give_way

from ._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable

    from .bells import Bells

UNLIMITED = (1 << 63) - 1


class Step(enum.Enum):
    """What a step of a job came to."""

    DONE = "done"
    MORE = "more"
    """The budget is used up: there is more to do."""
    BLOCKED = "blocked"
    """Nothing to do before something else happens: `Queue.wake`, or a look now and then."""


class Budget:
    """Units that a step may use (bytes moved, plus what the model charges for its commands) and a deadline.

    The step spends and looks; any thread may call `stop` and `expire`.
    """

    __slots__ = ("_answer", "_bells", "_granted", "_native")

    def __init__(
        self,
        units: int = UNLIMITED,
        *,
        deadline_ns: int = 0,
        bells: Bells | None = None,
        answer: Callable[[], None] | None = None,
    ) -> None:
        """deadline_ns: on `time.monotonic_ns`'s clock; 0 for none. A look calls `answer` when one of `bells` rang."""
        self._native = ffi.new("softgpu_budget *", {"units": min(units, UNLIMITED), "deadline_ns": deadline_ns})
        self._granted = units
        self._bells, self._answer = bells, answer

    @property
    def pointer(self) -> int:
        """The `softgpu_budget *` (softgpu.h), valid as long as this object."""
        return int(ffi.cast("uintptr_t", self._native))

    @property
    def left(self) -> bool:
        """Whether the step may go on; ask without any lock.

        Looking also lets handlers run that wait for the interpreter (`give_way`), and takes work from C that may end
        this step.
        """
        # First: a step whose time goes to handlers does a piece of its work nevertheless.
        going_on = bool(lib.softgpu_budget_left(self._native))
        give_way()
        if self._bells is not None and self._answer is not None and self._bells.rung:
            self._answer()
        return going_on

    @property
    def units(self) -> int:
        """What is left; the last piece of work may take it below 0."""
        return int(self._native.units)

    @property
    def used(self) -> int:
        """Units spent so far."""
        return self._granted - self.units

    def spend(self, units: int) -> None:
        """Charge work that was not done by the port or the blitter."""
        self._native.units -= units

    @property
    def stopped(self) -> bool:
        """Whether the work was cancelled; final when it is asked with the lock held that the canceller holds."""
        return bool(self._native.stop)

    def stop(self) -> None:
        """Cancel: what runs on this budget ends as soon as it looks, and is not continued."""
        lib.softgpu_budget_stop(self._native)

    def expire(self) -> None:
        """End this step early; what it did not do is continued on another budget."""
        lib.softgpu_budget_expire(self._native)
