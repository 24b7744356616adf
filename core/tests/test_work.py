"""Clocks and deferred work."""

import asyncio
import contextlib
import gc
import threading
import time
import weakref

import pytest
from umdev.device.clock import Clock, ManualClock
from umdev.device.work import MAXIMUM_PENDING, WorkQueue
from umdev.errors import InvalidArgument, StateError


class Lock:
    """A lock that says when somebody comes for it."""

    def __init__(self):
        self._lock = threading.Lock()
        self.locked = self._lock.locked
        self.wanted = 0

    def __enter__(self):
        self.wanted += 1
        self._lock.acquire()

    def __exit__(self, *_):
        self._lock.release()


class Bed:
    def __init__(self, clock):
        self.clock = clock
        self.lock = Lock()
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


def until(condition, seconds=60.0):
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


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf")])
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


def wait_for_the_thread(live):
    """Until the queue's thread waits for the device lock, which the caller holds."""
    until(lambda: live.lock.wanted == 2)


def test_what_waits_for_the_lock_is_cleared_too(live):
    with live.lock:
        live.queue.after(0, live.note("old life"))
        wait_for_the_thread(live)
        live.queue.clear()
    live.queue.after(0, live.note("new life"))
    until(lambda: live.ran)
    assert [name for name, _ in live.ran] == ["new life"]


def test_what_waits_for_the_lock_is_still_pending_and_stops_with_the_clock(live):
    with live.lock:
        work = live.queue.after(0, live.note("later"))
        wait_for_the_thread(live)
        assert live.queue.pending == [work], "or it would be missing from a snapshot"
        live.clock.pause()
    until(lambda: not live.lock.locked())
    assert (live.ran, live.queue.pending) == ([], [work])
    live.clock.resume()
    until(lambda: live.ran)


def test_a_guest_may_program_a_timer_for_the_end_of_time(live):
    live.queue.after(2**64 / 1e9, live.note("in 584 years"))
    live.queue.after(1e300, live.note("later"), period=1e300)
    assert all(work.due_ns < 1 << 64 for work in live.queue.pending)
    time.sleep(0.01)  # the thread looks at it
    live.queue.after(0, live.note("now"))
    until(lambda: live.ran)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, pytest.fail.Exception])
def test_a_job_that_raises_anything_ends_nothing(live, error):
    def leave():
        raise error

    live.queue.after(0, leave)
    live.queue.after(0, live.note("after"))
    until(lambda: live.ran)
    assert isinstance(live.failures[0], error)
    assert live.queue.pending == []


def test_who_drives_a_clock_can_be_interrupted(bed):
    def interrupt():
        raise KeyboardInterrupt

    bed.queue.after(1, interrupt, period=2)
    with pytest.raises(KeyboardInterrupt):
        bed.clock.advance(5)
    assert bed.clock.now == 1
    assert not bed.lock.locked()
    assert [work.due_ns for work in bed.queue.pending] == [3_000_000_000]


def test_work_of_several_devices_runs_in_order_of_time(bed):
    other = Bed(bed.clock)
    order = []
    bed.queue.after(1, lambda: order.append(("first", bed.clock.now)), period=2)
    other.queue.after(2, lambda: order.append(("other", bed.clock.now)), period=2)
    other.queue.after(1, lambda: order.append(("at once", bed.clock.now)))
    forget = bed.clock.drive(lambda until_ns: order.append(("step by", until_ns / 1e9)))
    bed.clock.advance(3)
    assert [each for each in order if each[0] != "step by"] == [
        ("first", 1), ("at once", 1), ("other", 2), ("first", 3)
    ]  # fmt: skip
    assert [by for name, by in order if name == "step by"] == [1, 1, 2, 3, 3]
    forget()
    bed.clock.advance(1)
    assert order[-1] == ("other", 4)
    other.queue.close()


def test_cancelled_work_takes_no_room(bed):
    for _ in range(MAXIMUM_PENDING + 10):
        bed.queue.after(60, bed.note("rearmed")).cancel()
    bed.queue.after(1, bed.note("real"))
    bed.clock.advance(100)
    assert [name for name, _ in bed.ran] == ["real"]


@pytest.mark.parametrize("kind", [Clock, ManualClock])
def test_a_clock_that_devices_share_forgets_the_closed_ones(kind):
    clock = kind()
    queue = WorkQueue("short-lived", clock, contextlib.nullcontext, lambda *_: None)
    watcher = weakref.ref(queue)
    queue.close()
    queue.close()
    del queue
    gc.collect()
    assert watcher() is None


def test_an_idle_queue_has_no_thread():
    before = threading.active_count()
    queues = [WorkQueue(str(n), Clock(), contextlib.nullcontext, lambda *_: None) for n in range(1000)]
    assert threading.active_count() <= before
    for queue in queues:
        queue.close()


def test_work_for_which_there_is_no_thread_is_refused_and_the_next_runs(live, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(StateError, match="no thread is left"):
            live.queue.after(0, live.note("refused"))
    assert live.queue.pending == []
    live.queue.after(0, live.note("next"))
    until(lambda: live.ran)
    assert live.ran == [("next", True)]


def test_an_interrupt_while_the_thread_starts_leaves_none_behind(live, monkeypatch):
    """Ctrl-C may come when the new thread runs already."""
    before, start = threading.active_count(), threading.Thread.start

    def interrupted(thread):
        start(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            live.queue.after(0, live.note("interrupted"))
    until(lambda: threading.active_count() == before)
    live.queue.after(0, live.note("next"))
    until(lambda: live.ran)
    live.queue.close()
    assert (live.ran, threading.active_count()) == ([("next", True)], before)


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
