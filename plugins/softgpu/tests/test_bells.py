"""Work that C gives to the scheduler: it keeps the work and rings, and the engine's thread asks for it."""

import threading

import pytest
from umdev.device import ManualClock
from umdev_softgpu import Scheduler, Step

from .conftest import Work

SECONDS = 60
MS = 1_000_000
HOUR = 3600 * 1000 * MS


class Hog:
    """Holds the engine for as long as its budget lasts."""

    def __init__(self):
        self.began = threading.Event()

    def step(self, budget):
        self.began.set()
        while budget.left:
            pass
        return Step.MORE


class Owner:
    """What C would keep for a queue, and the queue."""

    def __init__(self, scheduler, name="owner", work=1):
        self.kept = [Work() for _ in range(work)]
        self.asked = threading.Event()
        self.client = scheduler.add_client(name)
        self.queue = self.client.add_queue("rcs", self.answer)

    def answer(self):
        self.asked.set()
        while self.kept:
            self.queue.submit(self.kept.pop(0))


@pytest.fixture
def scheduler():
    scheduler = Scheduler(budget_ns=HOUR)
    yield scheduler
    scheduler.close()


def test_a_bell_brings_work_to_an_engine_that_sleeps(scheduler):
    owner = Owner(scheduler, work=3)
    kept = list(owner.kept)
    assert owner.queue.bell.pointer
    assert not owner.asked.is_set()
    owner.queue.bell.ring()
    assert all(work.ran.wait(SECONDS) for work in kept)


def test_a_bell_is_heard_in_the_middle_of_another_s_step(scheduler):
    hog = Hog()
    scheduler.add_client("hog").add_queue("rcs").submit(hog)
    assert hog.began.wait(SECONDS)
    owner = Owner(scheduler)
    (work,) = owner.kept
    owner.queue.bell.ring()
    assert work.ran.wait(SECONDS), "the budget is an hour: only a look at the bell can have ended it"


def test_a_bell_is_heard_by_a_step_that_goes_on(scheduler):
    """Its own client's: nobody is preempted, and the engine's thread asks nevertheless."""
    hog = Hog()
    owner = Owner(scheduler)
    (work,) = owner.kept
    owner.queue.submit(hog)
    assert hog.began.wait(SECONDS)
    owner.queue.bell.ring()
    assert owner.asked.wait(SECONDS)
    assert not work.ran.is_set()
    assert owner.queue.waiting == 2


def test_a_queue_without_an_answer_has_no_bell(scheduler):
    assert scheduler.add_client("plain").add_queue("rcs").bell is None


def test_a_bell_that_rings_whenever_it_is_answered_keeps_nobody_out(scheduler):
    owner = Owner(scheduler)
    rings = []

    def answer():
        rings.append(None)
        restless.bell.ring()

    restless = owner.client.add_queue("bcs", answer)
    restless.bell.ring()
    (work,) = owner.kept
    owner.queue.bell.ring()
    assert work.ran.wait(SECONDS)
    owner.client.close()
    assert rings


def test_an_answer_that_fails_is_counted_and_the_engine_goes_on(scheduler, caplog):
    def answer():
        raise ValueError("no work to be had")

    failing = scheduler.add_client("failing").add_queue("rcs", answer)
    owner = Owner(scheduler)
    (work,) = owner.kept
    failing.bell.ring()
    owner.queue.bell.ring()
    assert work.ran.wait(SECONDS)
    assert failing.failures == 1
    assert "engine: failing/rcs can't say what its work is" in caplog.text


def test_who_has_left_is_not_asked(scheduler):
    gone, owner = Owner(scheduler, "gone"), Owner(scheduler)
    gone.client.close()
    (work,) = owner.kept
    gone.queue.bell.ring()
    owner.queue.bell.ring()
    assert work.ran.wait(SECONDS)
    assert not gone.asked.is_set()


def test_a_bell_of_a_scheduler_that_is_closed(scheduler):
    owner = Owner(scheduler)
    scheduler.close()
    owner.queue.bell.ring()
    assert not owner.asked.is_set()


def test_a_manual_clock_asks_when_it_is_advanced():
    clock = ManualClock()
    scheduler = Scheduler(clock=clock)
    owner = Owner(scheduler, work=2)
    kept = list(owner.kept)
    owner.queue.bell.ring()
    assert not owner.asked.is_set()
    clock.advance(1)
    assert all(work.ran.is_set() for work in kept)
    assert threading.current_thread() is threading.main_thread()
    scheduler.close()
