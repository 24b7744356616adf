"""Time as a device model sees it: monotonic, stopped while the VM is paused, driven by hand in tests."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

NANOSECONDS = 1_000_000_000
ListenerT = TypeVar("ListenerT")


class Clock:
    """The host's monotonic clock less the time spent paused. Any thread may call any method."""

    manual = False

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._lost_ns = 0
        self._paused_at: int | None = None
        self._listeners: list[Callable[[], None]] = []

    @property
    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary start; never goes back."""
        with self._guard:
            return (self._paused_at if self._paused_at is not None else time.monotonic_ns()) - self._lost_ns

    @property
    def now(self) -> float:
        """`now_ns` in seconds."""
        return self.now_ns / NANOSECONDS

    @property
    def paused(self) -> bool:
        """Whether time stands still."""
        return self._paused_at is not None

    def pause(self) -> None:
        """Stop time; timers that become due wait for `resume`. Pausing twice is the same as once."""
        with self._guard:
            if self._paused_at is None:
                self._paused_at = time.monotonic_ns()
        self._changed()

    def resume(self) -> None:
        """Let time run on from where it stopped."""
        with self._guard:
            if self._paused_at is not None:
                self._lost_ns += time.monotonic_ns() - self._paused_at
                self._paused_at = None
        self._changed()

    def set_ns(self, now_ns: int) -> None:
        """Make `now_ns` the present, as after a restore."""
        with self._guard:
            present = self._paused_at if self._paused_at is not None else time.monotonic_ns()
            self._lost_ns = present - now_ns
        self._changed()

    def watch(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after every pause, resume or jump; it must not block. Returns what ends it."""
        self._listeners.append(listener)
        return functools.partial(_remove, self._listeners, listener)

    def _changed(self) -> None:
        for listener in tuple(self._listeners):
            listener()


def _remove(listeners: list[ListenerT], listener: ListenerT) -> None:
    with contextlib.suppress(ValueError):  # ended before
        listeners.remove(listener)


class _Driver(NamedTuple):
    runner: Callable[[int], object]
    due_ns: Callable[[], int | None] | None


class ManualClock(Clock):
    """A clock that moves only by `advance`, which runs what becomes due in the calling thread. For tests."""

    manual = True

    def __init__(self) -> None:
        super().__init__()
        self._now_ns = 0
        self._drivers: list[_Driver] = []

    @property
    def now_ns(self) -> int:
        """Nanoseconds since the clock was made."""
        return self._now_ns

    def set_ns(self, now_ns: int) -> None:
        """Jump without running anything."""
        self._now_ns = now_ns

    def drive(
        self, runner: Callable[[int], object], due_ns: Callable[[], int | None] | None = None
    ) -> Callable[[], None]:
        """Register a work queue, or what else does things as time passes.

        `due_ns()` says when its first item is due, or None, and `runner(until_ns)` runs that. Without `due_ns`,
        `runner(until_ns)` takes one step by then, setting the time, and returns None once there is none.

        Returns what ends it.
        """
        driver = _Driver(runner, due_ns)
        self._drivers.append(driver)
        return functools.partial(_remove, self._drivers, driver)

    def advance(self, seconds: float = 0.0) -> None:
        """Move time forward, running what becomes due in order of time, what it starts included.

        That holds across the devices on one clock; what is due at the same time runs in order of the devices' making.
        The caller must not hold a device lock. An exception of a work item is logged and counted and not raised here,
        but for KeyboardInterrupt and a test's outcome (pytest.fail): then time stands where that item was due.

        Raises: InvalidArgument for a negative step.
        """
        if seconds < 0:
            raise InvalidArgument(f"time does not go back: advance({seconds})")
        until = self._now_ns + round(seconds * NANOSECONDS)
        if self.paused:
            return
        while self._step(until):
            pass
        self._now_ns = until

    def _step(self, until_ns: int) -> bool:
        """Do what comes next by then. False: nothing does."""
        drivers = tuple(self._drivers)
        known = [
            (at, driver) for driver in drivers if driver.due_ns is not None and (at := driver.due_ns()) is not None
        ]
        due = [each for each in known if each[0] <= until_ns]
        at, first = min(due, key=lambda each: each[0], default=(until_ns, None))
        if any(driver.runner(at) is not None for driver in drivers if driver.due_ns is None):
            return True
        if first is not None:
            self._now_ns = max(self._now_ns, at)
            first.runner(at)
        return first is not None
