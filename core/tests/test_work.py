"""Clocks and deferred work."""

import contextlib
import threading
import time

import pytest
from umdev.device.clock import Clock, ManualClock
from umdev.device.work import MAXIMUM_PENDING, WorkQueue
from umdev.errors import InvalidArgument, StateError


class Bed:
    def __init__(self, clock):
        self.clock = clock
        self.lock = threading.Lock()
        self.failures = []
        self.ran = []
        self.queue = WorkQueue("test", clock, lambda: self.lock, lambda error, job: self.failures.append(error))

    def note(self, name):
        return lambda: self.ran.append((name, self.lock.locked()))


@pytest.fixture
def bed():
    bed = Bed(ManualClock())
    yield bed
    bed.queue.close()


@pytest.fixture
def live():
    bed = Bed(Clock())
    yield bed
    bed.queue.close()


def until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


def test_work_runs_in_order_of_time_with_the_lock_held(bed):
    bed.queue.after(2, bed.note("late"))
    bed.queue.after(1, bed.note("early"))
    bed.queue.after(1, bed.note("early too"))
    assert bed.ran == []
    bed.clock.advance(1)
    assert bed.ran == [("early", True), ("early too", True)]
    bed.clock.advance(1)
    assert bed.ran[-1] == ("late", True)
    assert bed.clock.now == 2


def test_work_started_by_work_runs_when_due(bed):
    bed.queue.after(1, lambda: bed.queue.after(0, bed.note("child")))
    bed.clock.advance(1)
    assert bed.ran == [("child", True)]


def test_the_clock_shows_the_due_time_to_the_work(bed):
    seen = []
    bed.queue.after(0.25, lambda: seen.append(bed.clock.now))
    bed.clock.advance(5)
    assert seen == [0.25]
    assert bed.clock.now == 5


def test_periodic_work_repeats_until_cancelled(bed):
    work = bed.queue.after(1, bed.note("tick"), period=1)
    bed.clock.advance(3)
    assert len(bed.ran) == 3
    work.cancel()
    bed.clock.advance(3)
    assert len(bed.ran) == 3


def test_clear_cancels_everything_even_from_within(bed):
    bed.queue.after(1, bed.queue.clear, period=1)
    bed.queue.after(2, bed.note("never"))
    bed.clock.advance(5)
    assert bed.ran == []
    assert bed.queue.pending == []


def test_a_paused_manual_clock_does_not_move(bed):
    bed.queue.after(1, bed.note("work"))
    bed.clock.pause()
    bed.clock.advance(5)
    assert (bed.clock.now, bed.ran) == (0, [])


@pytest.mark.parametrize("delay", [-1, float("nan")])
def test_time_does_not_go_back(bed, delay):
    with pytest.raises(InvalidArgument):
        bed.queue.after(delay, bed.note("never"))


def test_a_failure_is_reported_and_the_next_item_runs(live):
    def fail():
        raise ZeroDivisionError

    live.queue.after(0, fail)
    live.queue.after(0, live.note("after"))
    until(lambda: live.ran)
    assert isinstance(live.failures[0], ZeroDivisionError)


def test_a_live_queue_runs_off_the_caller_and_waits_while_paused(live):
    live.clock.pause()
    live.queue.after(0, live.note("work"))
    time.sleep(0.05)
    assert live.ran == []
    live.clock.resume()
    until(lambda: live.ran == [("work", True)])


def test_what_was_popped_before_a_clear_does_not_run(live):
    with live.lock:
        live.queue.after(0, live.note("old life"))
        until(lambda: not live.queue.pending)  # the thread has taken it and waits for the lock
        live.queue.clear()
    live.queue.after(0, live.note("new life"))
    until(lambda: live.ran)
    assert [name for name, _ in live.ran] == ["new life"]


def test_an_idle_queue_has_no_thread():
    before = threading.active_count()
    queues = [WorkQueue(str(n), Clock(), contextlib.nullcontext, lambda *_: None) for n in range(1000)]
    assert threading.active_count() == before
    for queue in queues:
        queue.close()


def test_a_closed_queue_takes_nothing(live):
    live.queue.close()
    with pytest.raises(StateError, match="closed"):
        live.queue.after(0, live.note("never"))


def test_waiting_work_is_bounded(bed):
    for _ in range(MAXIMUM_PENDING):
        bed.queue.after(1, bed.note("x"))
    with pytest.raises(StateError, match="65536"):
        bed.queue.after(1, bed.note("one too many"))


def test_a_clock_loses_its_pauses():
    clock = Clock()
    clock.pause()
    first = clock.now_ns
    time.sleep(0.01)
    assert clock.now_ns == first
    clock.resume()
    assert clock.now_ns - first < 10_000_000
