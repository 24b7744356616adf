"""Bells of an engine whose steps wait for their clients: whoever begins the steps hears them."""

import threading
import time

import pytest
from umdev_softgpu import Scheduler, Step
from umdev_softgpu._native import lib

from .conftest import Work

SECONDS = 60
HOUR = 3600 * 1_000_000_000


class Asking:
    """Waits for its client until `answer` is set, comes back with a device's lock, and goes on until `go_on` is set."""

    def __init__(self, lock):
        self.lock = lock
        self.looks = True
        self.began, self.answer, self.locked, self.back, self.go_on, self.ended = (threading.Event() for _ in range(6))

    def step(self, budget):
        lib.softgpu_wait_begins()
        self.began.set()
        self.answer.wait()
        with self.lock:
            self.locked.set()
            lib.softgpu_wait_ends()
        self.back.set()
        if not self.looks:
            self.go_on.wait()
        while not self.go_on.is_set() and budget.left:
            pass
        self.ended.set()
        return Step.DONE


class Owner:
    """What C would keep for a queue, its device's lock, and the queue."""

    def __init__(self, scheduler, name):
        self.lock = threading.Lock()
        self.kept = []
        self.asked = threading.Event()
        self.refused = False
        self.client = scheduler.add_client(name)
        self.queue = self.client.add_queue("rcs", self.answer)

    def answer(self):
        if not self.lock.acquire(timeout=SECONDS):
            self.refused = True
            return
        self.asked.set()
        while self.kept:
            self.queue.submit(self.kept.pop(0))
        self.lock.release()

    def ring(self):
        work = Work()
        with self.lock:
            self.kept.append(work)
        self.queue.bell.ring()
        return work


class Held:
    """Has the engine, and looks at its budget once, when it is told to."""

    def __init__(self):
        self.began, self.look, self.looked = (threading.Event() for _ in range(3))
        self.goes_on = None

    def step(self, budget):
        self.began.set()
        self.look.wait()
        self.goes_on = budget.left
        self.looked.set()
        return Step.DONE


@pytest.fixture
def scheduler():
    scheduler = Scheduler(name="engine that waits", budget_ns=HOUR)
    yield scheduler
    scheduler.close()
    settle(scheduler, 0)


@pytest.fixture
def slow(scheduler):
    """A client whose step waits for it."""
    owner = Owner(scheduler, "slow")
    owner.asking = Asking(owner.lock)
    owner.client.add_queue("bcs").submit(owner.asking)
    assert owner.asking.began.wait(SECONDS)
    yield owner
    owner.asking.answer.set()
    owner.asking.go_on.set()


def threads(scheduler):
    return [thread for thread in threading.enumerate() if thread.name == f"umdev-{scheduler.name}"]


def settle(scheduler, count):
    """Wait for threads that end."""
    until = time.monotonic() + SECONDS
    while len(threads(scheduler)) > count and time.monotonic() < until:
        time.sleep(0.001)
    assert len(threads(scheduler)) == count


def test_bells_are_heard_while_a_step_waits_for_its_client(scheduler, slow):
    owner = Owner(scheduler, "owner")
    for _ in range(10):
        assert owner.ring().ran.wait(SECONDS)
    assert len(threads(scheduler)) == 2
    assert not slow.asking.ended.is_set()


def test_a_bell_is_heard_though_nobody_has_called_the_scheduler_since_the_wait_began(scheduler):
    owner = Owner(scheduler, "owner")
    asking = Asking(owner.lock)
    scheduler.add_client("slow").add_queue("bcs").submit(asking)
    assert asking.began.wait(SECONDS)
    heard = owner.ring().ran.wait(SECONDS)
    asking.answer.set()
    asking.go_on.set()
    assert heard


def test_a_bell_is_heard_while_a_step_that_waited_has_the_engine(scheduler, slow):
    owner = Owner(scheduler, "owner")
    slow.asking.answer.set()
    assert slow.asking.back.wait(SECONDS)
    work = owner.ring()
    assert work.ran.wait(SECONDS), "the budget is an hour: only the bell can have ended the step"


def test_one_answer_at_a_time_while_a_step_that_waited_has_the_engine(scheduler, slow):
    inside, together, answers, done = threading.Lock(), [], [], threading.Event()

    def answer():
        if not inside.acquire(blocking=False):
            together.append(None)
            return
        answers.append(None)
        if len(answers) < 20:
            queue.bell.ring()
            time.sleep(0.001)
        else:
            done.set()
        inside.release()

    queue = scheduler.add_client("owner").add_queue("rcs", answer)
    slow.asking.answer.set()
    assert slow.asking.back.wait(SECONDS)
    queue.bell.ring()
    assert done.wait(SECONDS)
    assert not slow.asking.ended.is_set()
    assert not together


def test_no_step_begins_while_one_that_waited_has_the_engine(scheduler, slow):
    slow.asking.looks = False
    slow.asking.answer.set()
    assert slow.asking.back.wait(SECONDS)
    owner = Owner(scheduler, "owner")
    work = owner.ring()
    assert owner.asked.wait(SECONDS), "bells are heard whatever the step does"
    time.sleep(0.01)  # for a step that should not begin
    assert not work.ran.is_set()
    slow.asking.go_on.set()
    assert work.ran.wait(SECONDS)


def test_a_step_comes_back_with_a_lock_that_its_client_s_answers_take(scheduler, slow):
    held = Held()
    scheduler.add_client("other").add_queue("rcs").submit(held)
    assert held.began.wait(SECONDS)
    work = slow.ring()
    slow.asking.answer.set()
    assert slow.asking.locked.wait(SECONDS)
    held.look.set()
    assert slow.asking.back.wait(SECONDS)
    slow.asking.go_on.set()
    assert work.ran.wait(SECONDS)
    assert held.looked.is_set()
    assert not slow.refused, "the step that has the engine waits for the lock of the one that wants it"


def test_a_client_that_waits_is_asked_when_it_is_back(scheduler, slow):
    work = slow.ring()
    other = Owner(scheduler, "other")
    assert other.ring().ran.wait(SECONDS), "bells are heard in their order"
    assert not slow.asked.is_set()
    slow.asking.answer.set()
    assert slow.asked.wait(SECONDS)
    slow.asking.go_on.set()
    assert work.ran.wait(SECONDS)


def test_one_thread_is_left_after_many_waits(scheduler):
    owner = Owner(scheduler, "owner")
    queue = scheduler.add_client("slow").add_queue("bcs")
    for _ in range(20):
        asking = Asking(threading.Lock())
        queue.submit(asking)
        assert asking.began.wait(SECONDS)
        work = owner.ring()
        asking.answer.set()
        asking.go_on.set()
        assert work.ran.wait(SECONDS)
        assert asking.ended.wait(SECONDS)
    settle(scheduler, 1)
    assert owner.ring().ran.wait(SECONDS)


def test_a_client_that_waits_ends_nobody_s_step(scheduler, slow):
    held = Held()
    scheduler.add_client("other").add_queue("rcs").submit(held)
    assert held.began.wait(SECONDS)
    slow.queue.submit(Work())
    held.look.set()
    assert held.looked.wait(SECONDS)
    assert held.goes_on, "it was asked to end for work that can't begin"


def test_close_ends_the_thread_that_listens_and_the_one_that_waits(scheduler, slow):
    owner = Owner(scheduler, "owner")
    assert owner.ring().ran.wait(SECONDS)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    settle(scheduler, 1)
    slow.asking.answer.set()
    closing.join(SECONDS)
    assert not closing.is_alive()
    assert slow.asking.ended.is_set()
    assert threads(scheduler) == []
