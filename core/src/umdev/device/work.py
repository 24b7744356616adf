"""Deferred work: what a handler must not do at once runs here, later, with the device lock held.

Each device that defers anything has one thread, made at first use; a device that never does costs nothing. Work of one
device never delays another's. Every item carries the generation of its device's life: a reset starts a new generation,
and no item of an older one runs after it.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from ..errors import DmaAborted, InvalidArgument, StateError
from .clock import NANOSECONDS, Clock, ManualClock

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

log = logging.getLogger("umdev.device")

Job: TypeAlias = Callable[[], object]

MAXIMUM_PENDING = 65536
"""Items that may wait on one device: a guest must not grow a queue without bound."""
LONGEST_DELAY = float((1 << 63) // NANOSECONDS)
"""Seconds, some 292 years: so that a time in nanoseconds fits 64 bits, which is what saved state has."""
LONGEST_SLEEP = 3600.0
"""Seconds after which the thread looks again: what a guest programs may exceed what the C library can wait for."""


def _nanoseconds(seconds: float) -> int:
    return round(min(seconds, LONGEST_DELAY) * NANOSECONDS)


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
        self._running: list[Work] = []  # off the heap: a reset from within, or meanwhile, must still end its periods
        self._sequence = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._forget = (
            clock.drive(self._run, self._due_ns) if isinstance(clock, ManualClock) else clock.watch(self._notify)
        )

    def after(self, delay: float, job: Job, *, period: float = 0.0) -> Work:
        """Run `job` once `delay` seconds have passed on the clock, then every `period` seconds if that is not 0.

        Never runs it before returning, not even for a delay of 0. More than 292 years count as 292. Any thread, any
        lock state.

        Raises: InvalidArgument for a negative or infinite time; StateError when closed, with more than 65,536 items
        waiting, or when the process can't have the thread that the first item needs: a later one tries again.
        """
        if not (0 <= delay < math.inf and 0 <= period < math.inf):
            raise InvalidArgument(f"{self._name}: a delay or period can't be negative or infinite: {delay}, {period}")
        due = self._clock.now_ns + _nanoseconds(delay)
        work = Work(due, next(self._sequence), job, _nanoseconds(period))
        with self._wake:
            if self._closed:
                raise StateError(f"{self._name}: the device is closed and takes no work")
            if len(self._heap) >= MAXIMUM_PENDING:
                self._heap = sorted(waiting for waiting in self._heap if not waiting.cancelled)
            if len(self._heap) >= MAXIMUM_PENDING:
                raise StateError(
                    f"{self._name}: {MAXIMUM_PENDING} work items are waiting; the model starts more than it ends"
                )
            if self._thread is None and not self._clock.manual:
                self._thread = self._started()  # first: what waits without a thread waits for ever
            heapq.heappush(self._heap, work)
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
        self._forget()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._serve, name=f"umdev-work-{self._name}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise StateError(f"{self._name}: no thread is left for deferred work: {error}") from error
        return thread

    def _cancel_all(self) -> None:
        for work in (*self._heap, *self._running):
            work.cancelled = True
        self._heap.clear()

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _serve(self) -> None:
        while self._wait():
            self._run(None)

    def _wait(self) -> bool:
        """Until an item is due; False when the queue closes."""
        with self._wake:
            while not self._closed and self._thread is threading.current_thread():  # else `after` was interrupted
                timeout = None
                if self._heap and not self._clock.paused:
                    timeout = (self._heap[0].due_ns - self._clock.now_ns) / NANOSECONDS
                    if timeout <= 0:
                        return True
                    timeout = min(timeout, LONGEST_SLEEP)
                self._wake.wait(timeout)
        return False

    def _due_ns(self) -> int | None:
        with self._wake:
            return self._heap[0].due_ns if self._heap else None

    def _take(self, until_ns: int | None) -> Work | None:
        """The first item that is due by `until_ns`, or by now. None: time was stopped, or a reset came, meanwhile."""
        with self._wake:
            if until_ns is not None or not self._clock.paused:
                limit = self._clock.now_ns if until_ns is None else until_ns
                if self._heap and self._heap[0].due_ns <= limit:
                    return heapq.heappop(self._heap)
        return None

    def _run(self, until_ns: int | None) -> None:
        """Run the first item that is due by `until_ns`, or by now.

        It is taken with the device lock held: what waits for the lock is still there to be saved, paused or cleared.
        """
        with self._lock():
            work = self._take(until_ns)
            if work is None or work.cancelled:
                return
            self._running.append(work)
            try:
                work.job()
            except DmaAborted as error:  # a reset made an end of it, and of what it would have done
                log.debug("%s: %s", self._name, error)
            except BaseException as error:  # a model's failure must not end its device's thread
                self._failed(error, work.job)
                # In the thread of who advances a manual clock: Ctrl-C, or the outcome of a test.
                if until_ns is not None and not isinstance(error, (Exception, SystemExit)):
                    raise
            finally:
                with self._wake:
                    self._running.remove(work)
                    if work.period_ns and not work.cancelled and not self._closed:
                        work.due_ns += work.period_ns
                        heapq.heappush(self._heap, work)
