"""Who gets how much of the engine: fair shares on a fake clock, to the step; life and death of work."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from umdev.device import InvalidArgument, ManualClock, StateError
from umdev_softgpu import BestEffort, FairShare, FixedShare, Scheduler, Step

from .conftest import MS, SECOND, Endless, Milliseconds, Regular, Uneven, make, shares

# Fair shares.


@pytest.mark.parametrize(("weights", "expected"), [
    ([1, 1], [1 / 2, 1 / 2]),
    ([2, 4], [1 / 3, 2 / 3]),
    ([2, 4, 8, 16], [2 / 30, 4 / 30, 8 / 30, 16 / 30]),
])  # fmt: skip
def test_shares_follow_weights(weights, expected):
    clock, scheduler, clients = make(FairShare(), hogs=len(weights))
    for client, weight in zip(clients, weights, strict=True):
        client.weight = weight
    clock.advance(10)
    assert shares(clients, 10 * SECOND) == pytest.approx(expected, abs=0.001)
    assert sum(client.busy_ns for client in clients) == scheduler.busy_ns == 10 * SECOND


@settings(deadline=None, max_examples=20)
@given(
    weights=st.lists(st.integers(1, 16), min_size=2, max_size=6),
    longest=st.lists(st.integers(1 << 20, 20 << 20), min_size=6, max_size=6),
    seed=st.integers(0, 1000),
)
def test_shares_whatever_the_steps(weights, longest, seed):
    """However long its steps, over the budget or far below: nobody gains more than one step."""
    clock, _, clients = make(FairShare(), hogs=len(weights))
    for number, client in enumerate(clients):
        client.weight = weights[number]
        client.queues[0].cancel()
        client.queues[0].submit(Uneven(seed + number, longest[number]))
    clock.advance(3)
    total = sum(client.busy_ns for client in clients)
    for client, weight in zip(clients, weights, strict=True):
        assert abs(client.busy_ns - total * weight / sum(weights)) < 2 * 5 * MS * len(weights), weights


def test_who_has_no_work_leaves_its_share_to_the_others():
    clock, scheduler, (one, other) = make(FairShare(), hogs=2)
    scheduler.add_client("idle", weight=16).add_queue("bcs")
    clock.advance(1)
    assert shares([one, other], SECOND) == pytest.approx([0.5, 0.5], abs=0.002)


def test_time_not_used_is_not_saved_up():
    clock, scheduler, (hog,) = make(FairShare(), hogs=1)
    late = scheduler.add_client("late")
    queue = late.add_queue("bcs")
    clock.advance(5)
    queue.submit(Endless())
    before = hog.busy_ns
    clock.advance(1)
    assert late.busy_ns == pytest.approx(SECOND / 2, abs=2 * MS)
    assert hog.busy_ns - before == pytest.approx(SECOND / 2, abs=2 * MS)


@pytest.mark.parametrize("hogs", [1, 3])
def test_short_work_waits_for_one_budget(hogs):
    """Half a millisecond every four, among hogs: each is done within one budget of its own time."""
    clock, scheduler, _ = make(FairShare(), hogs=hogs)
    queue = scheduler.add_client("small").add_queue("bcs")
    regular = Regular(clock, queue, 0.5, 8)
    regular.run(2)
    assert queue.jobs == 250
    assert queue.busy_ns == 250 * MS // 2
    assert max(regular.latencies) <= scheduler.budget_ns


def test_a_cap_holds_and_the_rest_is_not_saved():
    clock, _, (capped, other) = make(FairShare(), hogs=2)
    capped.cap = 0.25
    clock.advance(4)
    assert shares([capped, other], 4 * SECOND) == pytest.approx([0.25, 0.75], abs=0.005)
    other.queues[0].cancel()
    before = capped.busy_ns
    clock.advance(4)
    assert capped.busy_ns - before == pytest.approx(SECOND, abs=15 * MS), "alone it stays capped"
    capped.cap = None
    other.queues[0].submit(Endless())
    before = other.busy_ns
    clock.advance(1)
    assert other.busy_ns - before == pytest.approx(SECOND / 2, abs=15 * MS)


def test_a_capped_client_that_was_idle_gets_no_more_for_it():
    clock, scheduler, _ = make(FairShare())
    capped = scheduler.add_client("capped", cap=0.1)
    queue = capped.add_queue("bcs")
    clock.advance(10)
    queue.submit(Endless())
    clock.advance(1)
    assert capped.busy_ns == pytest.approx(100 * MS, abs=12 * MS)


# Work.


def test_jobs_of_a_queue_run_in_order_and_queues_take_turns():
    clock, scheduler, _ = make(FairShare())
    client = scheduler.add_client("vgpu")
    order = []
    for name in "ab":
        queue = client.add_queue(name)
        for number in range(3):
            queue.submit(Milliseconds(1, lambda _, name=name, number=number: order.append(f"{name}{number}")))
    clock.advance(1)
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert [queue.busy_ns for queue in client.queues] == [3 * MS, 3 * MS]
    assert client.busy_ns == 6 * MS
    assert [queue.jobs for queue in client.queues] == [3, 3]


def test_an_endless_batch_is_cancelled_and_the_next_one_runs():
    clock, _, (client,) = make(FairShare(), hogs=1)
    queue = client.queues[0]
    hog = queue.pending[0]
    queue.submit(Milliseconds(1))
    clock.advance(0.5)
    assert queue.waiting == 2
    assert queue.cancel()[0] is hog
    steps = hog.steps
    queue.submit(Milliseconds(1))
    clock.advance(0.5)
    assert (queue.waiting, queue.jobs, hog.steps) == (0, 1, steps)


def test_a_job_that_raises_ends_alone(caplog):
    clock, scheduler, _ = make(FairShare())
    queue = scheduler.add_client("vgpu").add_queue("rcs")

    class Broken:
        def step(self, budget):
            raise ZeroDivisionError("a model's mistake")

    queue.submit(Broken())
    queue.submit(Milliseconds(1))
    clock.advance(0.01)
    assert (queue.failures, queue.jobs, queue.waiting) == (1, 2, 0)
    assert "a job of vgpu/rcs failed" in caplog.text


def test_blocked_work_is_looked_at_ever_more_rarely_until_it_is_woken():
    clock, scheduler, _ = make(FairShare())
    queue = scheduler.add_client("vgpu").add_queue("rcs")
    free = []

    class Semaphore:
        looks = 0

        def step(self, budget):
            self.looks += 1
            return Step.DONE if free else Step.BLOCKED

    semaphore = Semaphore()
    queue.submit(semaphore)
    clock.advance(10)
    assert 1000 <= semaphore.looks <= 1020
    free.append(True)
    looks = semaphore.looks
    queue.wake()
    clock.advance(0.00001)
    assert (semaphore.looks - looks, queue.waiting) == (1, 0)


def test_waking_blocked_work_often_does_not_make_it_look_more_often_later():
    clock, scheduler, _ = make(FairShare())
    queue = scheduler.add_client("vgpu").add_queue("rcs")
    looks = []

    class Never:
        def step(self, budget):
            looks.append(clock.now_ns)
            return Step.BLOCKED

    queue.submit(Never())
    for _ in range(1000):
        queue.wake()
        clock.advance(0.00001)
    clock.advance(1)
    del looks[:]
    clock.advance(1)
    assert len(looks) == pytest.approx(100, abs=2)


@pytest.mark.parametrize("manual", [True, False])
def test_a_step_may_end_its_own_queue(manual):
    """A batch that resets its engine: waiting for itself would be for ever."""
    clock = ManualClock()
    scheduler = Scheduler(clock=clock) if manual else Scheduler()
    client = scheduler.add_client("vgpu")
    queue = client.add_queue("rcs")
    ended = threading.Event()

    class Reset:
        def step(self, budget):
            assert queue.cancel(wait=True) == [self]
            assert budget.stopped
            client.close()
            ended.set()
            return Step.MORE

    queue.submit(Reset())
    if manual:
        clock.advance(0.01)
    assert ended.wait(60)
    assert scheduler.clients == []
    scheduler.close()


def test_blocked_work_lets_the_client_s_other_queues_go_on():
    clock, scheduler, _ = make(FairShare())
    client = scheduler.add_client("vgpu")

    class Never:
        def step(self, budget):
            return Step.BLOCKED

    client.add_queue("rcs").submit(Never())
    busy = client.add_queue("bcs")
    busy.submit(Milliseconds(5))
    clock.advance(0.01)
    assert busy.jobs == 1
    client.close()
    clock.advance(1)
    assert scheduler.clients == []


def test_pause_and_resume():
    clock, _, (one, other) = make(FairShare(), hogs=2)
    one.pause()
    clock.advance(1)
    assert (one.busy_ns, other.busy_ns) == (0, SECOND)
    one.resume()
    clock.advance(1)
    assert one.busy_ns == pytest.approx(SECOND / 2, abs=2 * MS)


def test_limits_have_names():
    scheduler = Scheduler(clock=ManualClock())
    with pytest.raises(InvalidArgument, match="vgpu: a weight is a whole number above 0, not 0"):
        scheduler.add_client("vgpu", weight=0)
    with pytest.raises(InvalidArgument, match="a cap is a share of the engine"):
        scheduler.add_client("vgpu", cap=1.5)
    client = scheduler.add_client("vgpu")
    with pytest.raises(InvalidArgument, match="a frame rate is above 0"):
        client.frame_rate = 0
    queue = client.add_queue("bcs")
    for _ in range(65_536):
        queue.submit(None)
    with pytest.raises(StateError, match="65536 jobs are waiting"):
        queue.submit(None)
    client.close()
    client.close()
    with pytest.raises(StateError, match="takes no work"):
        queue.submit(None)
    with pytest.raises(StateError, match="has left engine"):
        client.add_queue("rcs")
    scheduler.close()
    scheduler.close()
    with pytest.raises(StateError, match="engine is closed"):
        scheduler.add_client("late")
    for bad in (lambda: Scheduler(budget_ns=0), lambda: BestEffort(0), lambda: FixedShare(0)):
        with pytest.raises(InvalidArgument):
            bad()
