"""Who uses an engine: clients (one per virtual GPU) and their queues (one per hardware engine or channel)."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Protocol

from umdev.device import InvalidArgument

from .limits import FOREVER, Cap, FrameLimiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from .bells import Bell
    from .budget import Budget, Step
    from .scheduler import Scheduler

FIRST_LOOK_NS = 50_000
LAST_LOOK_NS = 10_000_000
"""How often blocked work is looked at: at first, and when it has long been blocked."""


class Job(Protocol):
    """Work that is done step by step."""

    def step(self, budget: Budget) -> Step:
        """Do some, as much as the budget has, and look at `budget.left` often.

        Called without any lock, one step of a scheduler at a time (but see `Scheduler` for memory that is reached by
        message), and in any of its threads: take the device lock for registers and interrupts, briefly, and look at
        `budget.stopped` while it is held. An exception ends this job; it is logged and counted.
        """


class Queue:
    """Jobs of one client that run one after the other. Any thread may call any method, holding the device lock or not.

    Queues of a client take turns, a step each.
    """

    def __init__(self, client: Client, name: str, bell: Bell | None = None) -> None:
        """For `Client.add_queue`."""
        self.client = client
        self.name = name
        self.bell = bell
        """What C rings when it has work for the queue; None without an `answer`."""
        self.busy_ns = 0
        """The engine's time that its steps have taken."""
        self.steps = 0
        self.jobs = 0
        """Jobs that have come to their end."""
        self.failures = 0
        """Jobs whose step raised."""
        self.pending: collections.deque[Job] = collections.deque()
        """For the scheduler: the first one may be running."""
        self.running: Budget | None = None
        """For the scheduler: the budget of the step under way."""
        self.thread = 0
        """For the scheduler: which thread that step is in."""
        self.ready = False
        """For the scheduler: whether it is in its client's round."""
        self.look_ns = FIRST_LOOK_NS
        """For the scheduler: how long to wait before the next look at blocked work."""
        self.look_at: int | None = None
        """For the scheduler: when that is."""

    def submit(self, job: Job) -> None:
        """Run the job after those submitted before. Never runs anything itself.

        Raises: StateError when the client or the scheduler is closed, or with more than 65,536 jobs waiting.
        """
        self.client.scheduler.submit(self, job)

    def wake(self) -> None:
        """Look at blocked work at once; without effect on other work."""
        self.client.scheduler.wake(self)

    def cancel(self, *, wait: bool = False) -> list[Job]:
        """Drop every job; returns those that had not ended. A step under way finds its budget stopped.

        wait: return when that step has returned; then the device lock must not be held.
        """
        return self.client.scheduler.cancel(self, wait=wait)

    def close(self) -> None:
        """Cancel, wait, and leave the client. Without the device lock; may be called twice."""
        self.client.scheduler.remove_queue(self)

    @property
    def waiting(self) -> int:
        """Jobs that have not ended."""
        return len(self.pending)

    def __repr__(self) -> str:
        return f"<Queue {self.client.name}/{self.name}: {self.waiting} waiting>"


class Client:
    """One virtual GPU's claim on the engine, and the account of what it has used. Any thread."""

    def __init__(self, scheduler: Scheduler, name: str, weight: int, cap: float | None) -> None:
        """For `Scheduler.add_client`."""
        self.scheduler = scheduler
        self.name = name
        self.busy_ns = 0
        """The engine's time that its steps have taken, those of queues that are closed included."""
        self.steps = 0
        self.paused = False
        """While set, none of its work begins another step. `resume` clears it."""
        self.queues: list[Queue] = []
        self.round: collections.deque[Queue] = collections.deque()
        """For the scheduler: queues with work, in the order of their turns."""
        self.closed = False
        self.waits = False
        """For the scheduler: a step of it waits for the client's answer to a message; none other begins meanwhile."""
        self.unheard: set[Queue] = set()
        """For the scheduler: whose bells have rung meanwhile."""
        self.held = False
        """For the scheduler: a limit or a pause has kept it from running since it woke."""
        self._frames: FrameLimiter | None = None
        self._cap: Cap | None = None
        self.weight = weight
        self.cap = cap

    @property
    def weight(self) -> int:
        """Share in proportion to other clients' weights, under FairShare; a whole number above 0.

        Setting raises: InvalidArgument.
        """
        return self._weight

    @weight.setter
    def weight(self, weight: int) -> None:
        if weight <= 0:
            raise InvalidArgument(f"{self.name}: a weight is a whole number above 0, not {weight}")
        self._weight = weight

    @property
    def cap(self) -> float | None:
        """The most of the engine's time, of 1, that it may use even when nobody else wants it; None: no cap.

        Setting raises: InvalidArgument.
        """
        return self._cap.share if self._cap else None

    @cap.setter
    def cap(self, share: float | None) -> None:
        self._cap = None if share is None else Cap(share)

    @property
    def frame_rate(self) -> float | None:
        """The most frames per second; None: no limit. Setting raises: InvalidArgument."""
        return self._frames.per_second if self._frames else None

    @frame_rate.setter
    def frame_rate(self, per_second: float | None) -> None:
        self._frames = None if per_second is None else FrameLimiter(per_second)

    def frame(self) -> None:
        """A frame has ended: with a frame rate, no further step begins before the next one's turn."""
        if self._frames:
            self._frames.frame(self.scheduler.clock.now_ns)

    @property
    def due_ns(self) -> int:
        """For the scheduler: from when on limits let it run."""
        if self.paused:
            return FOREVER
        return max(self._frames.due_ns if self._frames else 0, self._cap.due_ns if self._cap else 0)

    def charge(self, start_ns: int, used_ns: int) -> None:
        """For the scheduler: it has used the engine."""
        self.busy_ns += used_ns
        self.steps += 1
        if self._cap:
            self._cap.charge(start_ns, used_ns)

    def add_queue(self, name: str, answer: Callable[[], None] | None = None) -> Queue:
        """A queue. With `answer`, C can give it work without the interpreter: it keeps the work and rings `Queue.bell`.

        Then one of the scheduler's threads, holding no lock, calls `answer`, which submits what there is, and touches
        no guest memory: between two steps, or when a step under way looks at its budget, but not while a step of this
        client waits for a message. One answer at a time, and at least one after the last ring; with a ManualClock,
        when it is advanced. An exception is logged and counted as a job's.

        Raises: StateError when it is closed.
        """
        return self.scheduler.add_queue(self, name, answer)

    def pause(self) -> None:
        """Let no further step begin; the one under way goes on to its end."""
        self.paused = True

    def resume(self) -> None:
        """Undo `pause`."""
        self.paused = False
        self.scheduler.look()

    def close(self) -> None:
        """Drop all work, wait for a step under way, and leave. Without the device lock; may be called twice."""
        self.scheduler.remove_client(self)

    def __repr__(self) -> str:
        return f"<Client {self.name}: weight {self.weight}, {self.busy_ns} ns used>"
