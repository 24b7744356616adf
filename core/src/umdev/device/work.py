"""Deferred work: what a handler must not do at once runs here, later, with the device lock held.

Each device that defers anything has one thread, made at first use; a device that never does costs nothing. Work of one
device never delays another's. Every item carries the generation of its device's life: a reset starts a new generation,
and no item of an older one runs after it.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from ..errors import InvalidArgument, StateError
from .clock import NANOSECONDS, Clock, ManualClock

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

log = logging.getLogger("umdev.device")

Job: TypeAlias = Callable[[], object]

MAXIMUM_PENDING = 65536
"""Items that may wait on one device: a guest must not grow a queue without bound."""


@dataclass(order=True)
class Work:
    """A pending item; `cancel()` it while it waits."""

    due_ns: int
    sequence: int
    job: Job = field(compare=False)
    period_ns: int = field(default=0, compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        """Make sure that it does not run again. Final with the device lock held; without, it may be running now."""
        self.cancelled = True


class WorkQueue:
    """The timers and work items of one device.

    `lock()` yields the device lock; `failed(exception, job)` is told of an item that raised.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        lock: Callable[[], AbstractContextManager[object]],
        failed: Callable[[BaseException, Job], None],
    ) -> None:
        self._name = name
        self._clock = clock
        self._lock = lock
        self._failed = failed
        self._wake = threading.Condition()
        self._heap: list[Work] = []
        self._popped: Work | None = None  # taken off the heap, not finished: a reset must reach it too
        self._sequence = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False
        if isinstance(clock, ManualClock):
            clock.drive(self._run_due)
        else:
            clock.watch(self._notify)

    def after(self, delay: float, job: Job, *, period: float = 0.0) -> Work:
        """Run `job` once `delay` seconds have passed on the clock, then every `period` seconds if that is not 0.

        Never runs it before returning, not even for a delay of 0. Any thread, any lock state.

        Raises: InvalidArgument for a negative time; StateError when closed, or with more than 65,536 items waiting.
        """
        if not (delay >= 0 and period >= 0):
            raise InvalidArgument(f"{self._name}: a delay or period can't be negative: {delay}, {period}")
        due = self._clock.now_ns + round(delay * NANOSECONDS)
        work = Work(due, next(self._sequence), job, round(period * NANOSECONDS))
        with self._wake:
            if self._closed:
                raise StateError(f"{self._name}: the device is closed and takes no work")
            if len(self._heap) >= MAXIMUM_PENDING:
                raise StateError(
                    f"{self._name}: {MAXIMUM_PENDING} work items are waiting; the model starts more than it ends"
                )
            heapq.heappush(self._heap, work)
            if self._thread is None and not self._clock.manual:
                self._thread = threading.Thread(target=self._serve, name=f"umdev-work-{self._name}", daemon=True)
                self._thread.start()
            self._wake.notify()
        return work

    @property
    def pending(self) -> list[Work]:
        """What waits, in order of time."""
        with self._wake:
            return sorted(work for work in self._heap if not work.cancelled)

    def clear(self) -> None:
        """Start a new generation: nothing that waits now ever runs. Call it with the device lock held."""
        with self._wake:
            self._cancel_all()

    def close(self) -> None:
        """Clear, and end the thread. Waits for it unless called from it."""
        with self._wake:
            self._closed = True
            self._cancel_all()
            self._wake.notify()
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _cancel_all(self) -> None:
        for work in (*self._heap, *filter(None, [self._popped])):
            work.cancelled = True
        self._heap.clear()

    def _take(self) -> Work:
        self._popped = heapq.heappop(self._heap)
        return self._popped

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _serve(self) -> None:
        while (work := self._next()) is not None:
            self._run(work)

    def _next(self) -> Work | None:
        """Wait for the first due item; None when the queue closes."""
        with self._wake:
            while not self._closed:
                timeout = None
                if self._heap and not self._clock.paused:
                    timeout = (self._heap[0].due_ns - self._clock.now_ns) / NANOSECONDS
                    if timeout <= 0:
                        return self._take()
                self._wake.wait(timeout)
        return None

    def _run_due(self, until_ns: int) -> int | None:
        with self._wake:
            if not self._heap or self._heap[0].due_ns > until_ns:
                return None
            work = self._take()
        self._clock.set_ns(max(self._clock.now_ns, work.due_ns))
        self._run(work)
        return work.due_ns

    def _run(self, work: Work) -> None:
        with self._lock():
            if work.cancelled:  # by a reset that came between the pop and the lock
                return
            try:
                work.job()
            except Exception as error:  # noqa: BLE001  # a model's failure must not end its device's thread
                self._failed(error, work.job)
            if work.period_ns and not work.cancelled:
                work.due_ns += work.period_ns
                with self._wake:
                    if not self._closed:
                        heapq.heappush(self._heap, work)
