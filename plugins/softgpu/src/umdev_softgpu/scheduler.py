"""The engine's time: one thread that runs steps of many clients' work, as a policy shares it out."""

from __future__ import annotations

import functools
import heapq
import itertools
import logging
import threading
import time
from typing import TYPE_CHECKING

from umdev.device import Clock, InvalidArgument, ManualClock, StateError

from ._native import lib
from .bells import Bells
from .budget import UNLIMITED, Budget, Step
from .client import FIRST_LOOK_NS, LAST_LOOK_NS, Client, Queue
from .limits import NANOSECONDS
from .policy import FairShare, Policy, Turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from .client import Job

log = logging.getLogger("umdev.softgpu")

BUDGET_NS = 1_000_000
UNITS_PER_MS = 4 << 20
"""What a millisecond of a manual clock is worth."""
LEAST_STEP_NS = 1_000
"""What a step takes of a manual clock, however little it did: endless work must come to the end of the time."""
PENDING_LIMIT = 65_536
SLICE_NS = 10_000_000
"""Longer than what Linux gives a thread (3 ms at most), so that whoever wakes goes before the engine's thread."""
LONGEST_SLEEP_NS = 3600 * NANOSECONDS


class Scheduler:
    """One engine. Any thread may call any method.

    Its thread starts with the first work, or the first queue that C may fill, and sleeps when there is none.

    A step gets at most `budget_ns`; what it takes, to the nanosecond, is charged to its queue and client. No lock is
    held while a step runs. On a ManualClock there is no thread: `clock.advance()` runs the steps, and each takes the
    time that its units are worth.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        name: str = "engine",
        clock: Clock | None = None,
        budget_ns: int = BUDGET_NS,
        units_per_ms: int = UNITS_PER_MS,
    ) -> None:
        """Raises: InvalidArgument for a budget or a rate that is not above 0."""
        if budget_ns <= 0 or units_per_ms <= 0:
            raise InvalidArgument(f"{name}: a budget of {budget_ns} ns at {units_per_ms} units a millisecond is none")
        self.policy = policy or FairShare()
        self.name = name
        self.clock = clock or Clock()
        self.budget_ns = budget_ns
        self.units_per_ms = units_per_ms
        self.busy_ns = 0
        """The time that all steps have taken."""
        self.clients: list[Client] = []
        self._changed = threading.Condition()  # a step has ended
        self._bells = Bells()  # what the thread sleeps on
        self._blocked: list[tuple[int, int, Queue]] = []  # a heap of looks at blocked work
        self._sequence = itertools.count()
        self._running: tuple[Client, int] | None = None  # and when its step began
        self._runner = 0  # the thread that runs it
        self._thread: threading.Thread | None = None
        self._closed = False
        self._forget: Callable[[], None] = lambda: None
        if isinstance(self.clock, ManualClock):
            self._forget = self.clock.drive(self._advance)

    # Clients and queues.

    def add_client(self, name: str, *, weight: int = 1, cap: float | None = None) -> Client:
        """Raises: InvalidArgument (weight, cap, or the policy has no room), StateError (closed)."""
        client = Client(self, name, weight, cap)
        with self._changed:
            self._expect_open()
            self.policy.join(client, self.clock.now_ns)
            self.clients.append(client)
        return client

    def remove_client(self, client: Client) -> None:
        """See `Client.close`."""
        with self._changed:
            client.closed = True
        for queue in tuple(client.queues):
            self.remove_queue(queue)
        with self._changed:
            if client in self.clients:
                self.clients.remove(client)
                self.policy.leave(client, self.clock.now_ns)

    def add_queue(self, client: Client, name: str, answer: Callable[[], None] | None = None) -> Queue:
        """See `Client.add_queue`."""
        with self._changed:
            if client.closed:
                raise StateError(f"{client.name} has left {self.name} and gets no queue {name}")
            queue = Queue(client, name)
            if answer is not None:
                queue.bell = self._bells.add(functools.partial(self._ask, queue, answer))
                self._start_thread()
            client.queues.append(queue)
        return queue

    def remove_queue(self, queue: Queue) -> None:
        """See `Queue.close`."""
        self.cancel(queue, wait=True)
        with self._changed:
            if queue in queue.client.queues:
                queue.client.queues.remove(queue)

    # Work.

    def submit(self, queue: Queue, job: Job) -> None:
        """See `Queue.submit`."""
        with self._changed:
            self._expect_open()
            if queue not in queue.client.queues or queue.client.closed:
                raise StateError(f"{queue.client.name}/{queue.name} is closed and takes no work")
            if len(queue.pending) >= PENDING_LIMIT:
                raise StateError(
                    f"{queue.client.name}/{queue.name}: {PENDING_LIMIT} jobs are waiting; cancel some, or submit less"
                )
            queue.pending.append(job)
            if len(queue.pending) == 1:
                self._make_ready(queue)
            self._start_thread()

    def wake(self, queue: Queue) -> None:
        """See `Queue.wake`."""
        with self._changed:
            queue.look_ns = FIRST_LOOK_NS
            if queue.pending and queue.running is None:
                self._make_ready(queue)

    def cancel(self, queue: Queue, *, wait: bool = False) -> list[Job]:
        """See `Queue.cancel`."""
        with self._changed:
            dropped = list(queue.pending)
            queue.pending.clear()
            queue.look_ns = FIRST_LOOK_NS
            running = queue.running
            if running is not None:
                running.stop()
            if wait and running is not None and self._runner != threading.get_ident():
                self._changed.wait_for(lambda: queue.running is not running)
        return dropped

    def look(self) -> None:
        """Think again whose turn it is."""
        self._bells.wake()

    def close(self) -> None:
        """Drop all work, wait for a step under way, end the thread. Without any device lock; may be called twice."""
        with self._changed:
            self._closed = True
            thread, self._thread = self._thread, None
        self._bells.wake()
        for client in tuple(self.clients):
            self.remove_client(client)
        self._forget()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # Inside; the lock is held where nothing else is said.

    def _expect_open(self) -> None:
        if self._closed:
            raise StateError(f"{self.name} is closed and takes no work")

    def _start_thread(self) -> None:
        if self._thread is None and not self.clock.manual and not self._closed:
            self._thread = threading.Thread(target=self._serve, name=f"umdev-{self.name}", daemon=True)
            self._thread.start()

    def _make_ready(self, queue: Queue) -> None:
        if queue.ready or queue.running is not None:
            return
        client = queue.client
        now = self.clock.now_ns
        if not client.round and not (self._running and self._running[0] is client):
            self.policy.wake(client, now)
        self._join_round(queue)
        if self._running is not None:
            running, started = self._running
            if running is not client and self.policy.preempts(client, running, now - started):
                for other in running.queues:
                    if other.running is not None:
                        other.running.expire()
        self._bells.wake()

    def _join_round(self, queue: Queue) -> None:
        queue.ready = True
        queue.look_at = None
        queue.client.round.append(queue)

    def _look_at_blocked(self, now: int) -> None:
        while self._blocked and self._blocked[0][0] <= now:
            due, _, queue = heapq.heappop(self._blocked)
            if queue.look_at == due and queue.pending:  # else it was woken meanwhile
                self._make_ready(queue)

    def _next(self, now: int) -> tuple[Turn, int]:
        """Whose turn it is; and, for nobody's, when to think again."""
        self._look_at_blocked(now)
        ready = []
        again = now + LONGEST_SLEEP_NS
        for client in self.clients:
            if not client.round:
                continue
            due = client.due_ns
            if due > now:
                client.held = True
                again = min(again, due)
                continue
            if client.held:  # what it could not use is not saved up
                client.held = False
                self.policy.wake(client, now)
            ready.append(client)
        turn = self.policy.choose(ready, now)
        if ready:
            again = min(again, now + turn.ns)
        if self._blocked:
            again = min(again, self._blocked[0][0])
        return turn, again

    def _answer(self) -> None:
        """Let owners of queues submit what they have rung for. Without the lock."""
        for bell in self._bells.take():
            bell.answer()

    def _ask(self, queue: Queue, answer: Callable[[], None]) -> None:
        try:
            if not queue.client.closed:
                answer()
        except (Exception, SystemExit):  # as a job's
            if queue.client.closed:  # it has left just now
                return
            queue.failures += 1
            log.exception("%s: %s/%s can't say what its work is", self.name, queue.client.name, queue.name)

    def _unlocked(self, call: Callable[[], None]) -> None:
        self._changed.release()
        try:
            call()
        finally:
            self._changed.acquire()

    def _serve(self) -> None:
        lib.softgpu_thread_computes(SLICE_NS)  # a kernel that does not know it does without
        with self._changed:
            while not self._closed:
                if self._bells.rung:
                    self._unlocked(self._answer)
                now = self.clock.now_ns
                turn, again = self._next(now)
                if turn.client is None:
                    self._unlocked(functools.partial(self._bells.wait, again - now))
                    continue
                limit = min(turn.ns, self.budget_ns)
                deadline_ns = time.monotonic_ns() + limit
                budget = Budget(UNLIMITED, deadline_ns=deadline_ns, bells=self._bells, answer=self._answer)
                self._step(turn.client, budget, now, lambda: self.clock.now_ns)

    def _advance(self, until_ns: int) -> int | None:
        """One step on a manual clock, or the way to the next one. None: nothing more happens by then."""
        self._answer()
        with self._changed:
            now = self.clock.now_ns
            if now >= until_ns or self._closed:
                return None
            turn, again = self._next(now)
            if turn.client is None:
                if again > until_ns:
                    return None
                self.clock.set_ns(max(now, again))
                return again
            limit = min(turn.ns, self.budget_ns, until_ns - now)
            budget = Budget(max(1, limit * self.units_per_ms * 1000 // NANOSECONDS))

            def end() -> int:
                used = budget.used * NANOSECONDS // (self.units_per_ms * 1000)
                ended = now + max(LEAST_STEP_NS, used)
                self.clock.set_ns(min(ended, until_ns))
                return ended

            self._step(turn.client, budget, now, end)
            return now

    def _step(self, client: Client, budget: Budget, started: int, end: Callable[[], int]) -> None:
        """Runs without the lock in between."""
        queue = client.round.popleft()
        queue.ready = False
        if not queue.pending:  # cancelled while it waited for its turn
            return
        job = queue.pending[0]
        queue.running = budget
        self._running = client, started
        self._runner = threading.get_ident()
        self._changed.release()
        outcome = Step.DONE
        failed = False
        try:
            outcome = job.step(budget)
        except (Exception, SystemExit):  # a model's mistake ends its own work, not everybody's
            failed = True
            log.exception("%s: a job of %s/%s failed", self.name, client.name, queue.name)
        finally:
            self._changed.acquire()
        ended = end()
        self._running = None
        queue.running = None
        queue.failures += failed
        self._charge(queue, started, ended - started)
        if queue.pending and queue.pending[0] is job and not budget.stopped:
            self._go_on(queue, outcome, ended)
        elif queue.pending:  # cancelled, and submitted anew
            self._make_ready(queue)
        self._changed.notify_all()

    def _charge(self, queue: Queue, started: int, used: int) -> None:
        queue.steps += 1
        queue.busy_ns += used
        self.busy_ns += used
        queue.client.charge(started, used)
        self.policy.charge(queue.client, started, used)

    def _go_on(self, queue: Queue, outcome: Step, now: int) -> None:
        if outcome is Step.BLOCKED:
            queue.look_at = now + queue.look_ns
            heapq.heappush(self._blocked, (queue.look_at, next(self._sequence), queue))
            queue.look_ns = min(2 * queue.look_ns, LAST_LOOK_NS)
            return
        queue.look_ns = FIRST_LOOK_NS
        if outcome is Step.DONE:
            queue.pending.popleft()
            queue.jobs += 1
        if queue.pending:
            self._join_round(queue)
