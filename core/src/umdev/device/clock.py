"""Time as a device model sees it: monotonic, stopped while the VM is paused, driven by hand in tests."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from typing import TYPE_CHECKING, TypeVar

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


class ManualClock(Clock):
    """A clock that moves only by `advance`, which runs what becomes due in the calling thread. For tests."""

    manual = True

    def __init__(self) -> None:
        super().__init__()
        self._now_ns = 0
        self._runners: list[Callable[[int], int | None]] = []

    @property
    def now_ns(self) -> int:
        """Nanoseconds since the clock was made."""
        return self._now_ns

    def set_ns(self, now_ns: int) -> None:
        """Jump without running anything."""
        self._now_ns = now_ns

    def drive(self, runner: Callable[[int], int | None]) -> Callable[[], None]:
        """Register a work queue: `runner(until_ns)` runs its first item due by then and says when that was.

        Returns what ends it.
        """
        self._runners.append(runner)
        return functools.partial(_remove, self._runners, runner)

    def advance(self, seconds: float = 0.0) -> None:
        """Move time forward, running what becomes due in order of time, what it starts included.

        The caller must not hold a device lock. An exception of a work item is logged and counted, never raised here.

        Raises: InvalidArgument for a negative step.
        """
        if seconds < 0:
            raise InvalidArgument(f"time does not go back: advance({seconds})")
        until = self._now_ns + round(seconds * NANOSECONDS)
        if self.paused:
            return
        # Due times first, so that work of two queues runs in the order of time.
        while any(runner(until) is not None for runner in tuple(self._runners)):
            pass
        self._now_ns = until
