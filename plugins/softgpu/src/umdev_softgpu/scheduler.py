"""The engine's time: steps of many clients' work, one at a time, as a policy shares it out."""

from __future__ import annotations

import contextlib
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
from .waiting import Running, own

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
    held while a step runs.

    A step that asks for memory by message leaves the engine to others until the client has answered, or has not for as
    long as the bus waits: another thread serves them and hears their bells, and the step goes on when none of theirs is
    under way. The time between is nobody's, no other step of that client begins, and its bells are heard afterwards. So
    there are at most as many threads as clients, and one.

    On a ManualClock there is no thread: `clock.advance()` runs the steps, and each takes the time that its units are
    worth.
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
        self._bells = Bells()  # what `_thread` sleeps on
        self._blocked: list[tuple[int, int, Queue]] = []  # a heap of looks at blocked work
        self._sequence = itertools.count()
        self._running: Running | None = None  # the step that has the engine
        self._returning = 0  # steps that want it back
        self._thread: threading.Thread | None = None  # begins steps and hears bells; None: it waits for a message
        self._threads: set[threading.Thread] = set()
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
                self._expect_thread()
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
            self._expect_thread()

    def wake(self, queue: Queue) -> None:
        """See `Queue.wake`."""
        with self._changed:
            queue.look_ns = FIRST_LOOK_NS
            if queue.pending and queue.running is None:
                self._make_ready(queue)
                self._expect_thread()

    def cancel(self, queue: Queue, *, wait: bool = False) -> list[Job]:
        """See `Queue.cancel`."""
        with self._changed:
            dropped = list(queue.pending)
            queue.pending.clear()
            queue.look_ns = FIRST_LOOK_NS
            running = queue.running
            if running is not None:
                running.stop()
            if wait and running is not None and queue.thread != threading.get_ident():
                self._changed.wait_for(lambda: queue.running is not running)
        return dropped

    def look(self) -> None:
        """Think again whose turn it is."""
        with self._changed:
            if any(client.round for client in self.clients):
                self._expect_thread()
        self._bells.wake()

    def close(self) -> None:
        """Drop all work, wait for steps under way, end the threads. Without any device lock; may be called twice."""
        with self._changed:
            self._closed = True
            threads = self._threads - {threading.current_thread()}
        self._bells.wake()
        for client in tuple(self.clients):
            self.remove_client(client)
        self._forget()
        for thread in threads:
            thread.join()

    # For a step that waits for a message; called in its thread, no lock held.

    def leave(self, step: Running) -> None:
        """Others may use the engine."""
        if self.clock.manual:  # what a test sees must not hang on threads
            return
        with self._changed:
            step.queue.client.waits = True
            self._charge(step, self.clock.now_ns)
            self._free_engine()
            if self._thread is threading.current_thread():
                self._thread = None
                others = any(client.round and not client.waits for client in self.clients)
                if others or self._blocked or self._bells:
                    with contextlib.suppress(RuntimeError):  # the machine has no more threads: they wait
                        self._expect_thread()

    def come_back(self, step: Running) -> None:
        """Have the engine again, as soon as no other step has it."""
        if self.clock.manual:
            return
        client = step.queue.client
        with self._changed:
            self._hurry(client, self.clock.now_ns)
            self._returning += 1
            self._changed.wait_for(lambda: self._running is None)
            self._returning -= 1
            client.waits = False
            step.began = self.clock.now_ns
            self.policy.wake(client, step.began)
            self._running = step
            if self._thread is None:
                self._thread = threading.current_thread()
            for queue in client.unheard:
                if queue.bell is not None:
                    queue.bell.ring()
            client.unheard.clear()

    # Inside; the lock is held where nothing else is said.

    def _expect_open(self) -> None:
        if self._closed:
            raise StateError(f"{self.name} is closed and takes no work")

    def _expect_thread(self) -> None:
        if self._thread is None and not self.clock.manual and not self._closed:
            thread = threading.Thread(target=self._serve, name=f"umdev-{self.name}", daemon=True)
            thread.start()
            self._thread = thread
            self._threads.add(thread)

    def _make_ready(self, queue: Queue) -> None:
        if queue.ready or queue.running is not None:
            return
        client = queue.client
        now = self.clock.now_ns
        if not client.round and not (self._running and self._running.queue.client is client):
            self.policy.wake(client, now)
        self._join_round(queue)
        if not client.waits:
            self._hurry(client, now)
        self._bells.wake()

    def _hurry(self, client: Client, now: int) -> None:
        """End the step under way early, if the policy wants that for a client that woke."""
        step = self._running
        if step is None or step.queue.client is client:
            return
        if self.policy.preempts(client, step.queue.client, now - step.began):
            step.budget.expire()

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
        if self._running is not None or self._returning:  # a step that waited goes on; its end wakes us
            return Turn(None), now + LONGEST_SLEEP_NS
        self._look_at_blocked(now)
        ready = []
        again = now + LONGEST_SLEEP_NS
        for client in self.clients:
            if not client.round or client.waits:
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

    def _listen(self) -> None:
        """`_answer`, in the middle of a step; one that has waited leaves it to the thread that took its place."""
        if self._thread is threading.current_thread():
            self._answer()

    def _ask(self, queue: Queue, answer: Callable[[], None]) -> None:
        with self._changed:
            # Its step may want the engine, which we may have, with the device lock held, which the answer takes.
            if queue.client.waits:
                queue.client.unheard.add(queue)
                return
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
        own_thread = threading.current_thread()
        with self._changed:
            while not self._closed and self._thread is own_thread:
                if self._bells.rung:
                    self._unlocked(self._answer)
                now = self.clock.now_ns
                turn, again = self._next(now)
                if turn.client is None:
                    self._unlocked(functools.partial(self._bells.wait, again - now))
                    continue
                limit = min(turn.ns, self.budget_ns)
                deadline_ns = time.monotonic_ns() + limit
                budget = Budget(UNLIMITED, deadline_ns=deadline_ns, bells=self._bells, answer=self._listen)
                self._step(turn.client, budget, now, lambda: self.clock.now_ns)
            self._threads.discard(own_thread)

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
        queue.running, queue.thread = budget, threading.get_ident()
        self._running = own.step = step = Running(self, queue, budget, started)
        self._changed.release()
        outcome = Step.DONE
        failed = False
        try:
            outcome = job.step(budget)
        except (Exception, SystemExit):  # a model's mistake ends its own work, not everybody's
            failed = True
            log.exception("%s: a job of %s/%s failed", self.name, client.name, queue.name)
        finally:
            own.step = None
            self._changed.acquire()
        ended = end()
        self._free_engine()
        queue.running = None
        queue.failures += failed
        self._charge(step, ended)
        if queue.pending and queue.pending[0] is job and not budget.stopped:
            self._go_on(queue, outcome, ended)
        elif queue.pending:  # cancelled, and submitted anew
            self._make_ready(queue)

    def _free_engine(self) -> None:
        """For steps that want it back, for who waits for the end of this one, and for who begins the next one."""
        self._running = None
        self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._bells.wake()

    def _charge(self, step: Running, ended: int) -> None:
        """For what it did since it got the engine; a wait makes two steps of one."""
        queue, used = step.queue, ended - step.began
        queue.steps += 1
        queue.busy_ns += used
        self.busy_ns += used
        queue.client.charge(step.began, used)
        self.policy.charge(queue.client, step.began, used)

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
