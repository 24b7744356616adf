"""Who gets how much of the engine: shares on a fake clock, to the step; life and death of work."""

import random
import threading

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from umdev.device import InvalidArgument, ManualClock, StateError
from umdev_softgpu import BestEffort, EqualShare, FairShare, FixedShare, Scheduler, Step

MS = 1_000_000
SECOND = 1000 * MS


class Endless:
    """A batch that jumps to itself."""

    def __init__(self):
        self.steps = 0

    def step(self, budget):
        self.steps += 1
        budget.spend(max(budget.units, 1))
        return Step.MORE


class Work:
    """So many milliseconds of work."""

    def __init__(self, ms, done=None):
        self.left = round(ms * Scheduler().units_per_ms)
        self.done = done

    def step(self, budget):
        used = min(self.left, budget.units)
        budget.spend(used)
        self.left -= used
        if self.left:
            return Step.MORE
        if self.done is not None:
            self.done(self)
        return Step.DONE


class Uneven(Endless):
    """Steps of any length, over the budget too: a command that can't be divided."""

    def __init__(self, seed, longest):
        super().__init__()
        self.random = random.Random(seed)
        self.longest = longest

    def step(self, budget):
        budget.spend(self.random.randint(1, self.longest))
        return Step.MORE


class Regular:
    """A client that asks for `ms` of work every `period_ms`, and notes how long each waited."""

    def __init__(self, clock, queue, ms, period_ms):
        self.clock, self.queue, self.ms, self.period_ms = clock, queue, ms, period_ms
        self.latencies = []

    def run(self, seconds):
        for _ in range(round(seconds * 1000 / self.period_ms)):
            start = self.clock.now_ns
            # The clock shows when the last step began: it moves when the step has ended.
            self.queue.submit(Work(self.ms, lambda _, start=start: self.latencies.append(self.clock.now_ns - start)))
            self.clock.advance(self.period_ms / 1000)


def make(policy, *, hogs=0, **how):
    clock = ManualClock()
    scheduler = Scheduler(policy, clock=clock, **how)
    clients = [scheduler.add_client(f"vgpu{number}") for number in range(hogs)]
    for client in clients:
        client.add_queue("bcs").submit(Endless())
    return clock, scheduler, clients


def shares(clients, elapsed_ns):
    return [client.busy_ns / elapsed_ns for client in clients]


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


# Slices.


def test_best_effort_shares_equally_and_never_waits():
    clock, scheduler, clients = make(BestEffort(), hogs=3)
    scheduler.add_client("idle").add_queue("ce")
    clock.advance(6)
    assert shares(clients, 6 * SECOND) == pytest.approx([1 / 3] * 3, abs=0.005)
    assert scheduler.busy_ns == 6 * SECOND


def test_best_effort_turns_are_slices():
    clock, _, (one, other) = make(BestEffort(5 * MS), hogs=2)
    clock.advance(0.005)
    assert (one.busy_ns, other.busy_ns) == (5 * MS, 0)
    clock.advance(0.005)
    assert (one.busy_ns, other.busy_ns) == (5 * MS, 5 * MS)


@settings(deadline=None, max_examples=20)
@example(longest=[1 << 20, 1 << 20, 24 << 20], seed=0)
@given(longest=st.lists(st.integers(1 << 20, 30 << 20), min_size=3, max_size=3), seed=st.integers(0, 100))
def test_best_effort_with_steps_over_the_slice(longest, seed):
    clock, _, clients = make(BestEffort(), hogs=3)
    for number, client in enumerate(clients):
        client.queues[0].cancel()
        client.queues[0].submit(Uneven(seed + number, longest[number]))
    clock.advance(3)
    total = sum(client.busy_ns for client in clients)
    for client in clients:
        assert abs(client.busy_ns - total / 3) < 12 * MS, "at most a slice and the longest step"


def test_equal_share_keeps_an_idle_client_s_slot_empty():
    clock, scheduler, (hog,) = make(EqualShare(), hogs=1)
    clock.advance(1)
    assert hog.busy_ns == SECOND
    idle = scheduler.add_client("idle")
    clock.advance(1)
    assert hog.busy_ns - SECOND == pytest.approx(SECOND / 2, abs=2 * MS)
    idle.close()
    before = hog.busy_ns
    clock.advance(1)
    assert hog.busy_ns - before == SECOND


def test_fixed_share_is_the_same_whoever_comes_and_goes():
    clock, scheduler, (hog,) = make(FixedShare(4, 3 * MS), hogs=1)
    clock.advance(1.2)
    assert hog.busy_ns == pytest.approx(300 * MS, abs=3 * MS)
    others = [scheduler.add_client(f"more{number}") for number in range(3)]
    for client in others:
        client.add_queue("ce").submit(Endless())
    before = hog.busy_ns
    clock.advance(1.2)
    assert hog.busy_ns - before == pytest.approx(300 * MS, abs=3 * MS)
    assert shares(others, 1200 * MS) == pytest.approx([0.25] * 3, abs=0.003)
    with pytest.raises(InvalidArgument, match="all 4 slots are taken: fifth"):
        scheduler.add_client("fifth")
    others[0].close()
    scheduler.add_client("fifth")


@pytest.mark.parametrize("policy", [FixedShare(4), EqualShare()])
def test_an_idle_time_pays_what_is_owed(policy):
    """One step that took far too long, then nobody has work for minutes."""
    clock, scheduler, _ = make(policy)
    queue = scheduler.add_client("vgpu").add_queue("bcs")
    scheduler.add_client("other")

    class Long:
        def step(self, budget):
            budget.spend(round(600 * scheduler.units_per_ms))
            return Step.DONE

    queue.submit(Long())
    clock.advance(600)
    ended = []
    start = clock.now_ns
    queue.submit(Work(1, lambda _: ended.append(clock.now_ns - start)))
    clock.advance(3)
    assert ended[0] <= 20 * MS


@settings(deadline=None, max_examples=50)
@given(late=st.integers(0, 9 * MS), over=st.integers(0, 9 * MS), seed=st.integers(0, 100), hogs=st.integers(1, 4))
def test_a_late_host_takes_nothing_from_anybody_s_share(late, over, seed, hogs):
    """Steps that take up to `over` too long, and sleeps up to `late`: a hog's part stays a quarter all the same."""
    lateness, now = random.Random(seed), 0
    policy = FixedShare(4)
    _, scheduler, clients = make(policy, hogs=hogs)
    used = dict.fromkeys(clients, 0)
    while now < 4 * SECOND:
        turn = policy.choose(clients, now)
        if turn.client is None:
            now += turn.ns + lateness.randint(0, late)
            continue
        step = min(turn.ns, MS) + lateness.randint(0, over)
        policy.charge(turn.client, now, step)
        used[turn.client] += step
        now += step
    whole = sum(used.values()) + policy.empty_ns
    assert [part / whole for part in used.values()] == pytest.approx([1 / 4] * hogs, abs=0.01)
    assert whole == pytest.approx(now, rel=0.01)
    scheduler.close()


def test_time_that_nobody_wanted_is_nobody_s():
    clock, _, (hog, other) = make(FixedShare(2), hogs=2)
    clock.advance(0.1)
    for client in (hog, other):
        client.queues[0].cancel()
    clock.advance(1000.001)
    hog.queues[0].submit(Endless())
    clock.advance(0.1)
    assert hog.busy_ns == pytest.approx(100 * MS, abs=2 * MS)


@pytest.mark.parametrize("rate", [45, 60])
def test_frame_rate_limiter(rate):
    """Frames of 2 ms, submitted as fast as they end: their number is the rate's, and the rest of the time is free."""
    clock, scheduler, _ = make(BestEffort())
    client = scheduler.add_client("game")
    client.frame_rate = rate
    queue = client.add_queue("ce")

    def next_frame(_):
        client.frame()
        queue.submit(Work(2, next_frame))

    queue.submit(Work(2, next_frame))
    clock.advance(10)
    assert queue.jobs == pytest.approx(10 * rate, abs=1)
    client.frame_rate = None
    clock.advance(1)
    assert queue.jobs == pytest.approx(10 * rate + 500, abs=2)


def test_frames_that_take_longer_than_their_time_are_not_made_up_for():
    clock, scheduler, _ = make(BestEffort())
    client = scheduler.add_client("game")
    client.frame_rate = 100
    queue = client.add_queue("ce")
    length = [50]

    def next_frame(_):
        client.frame()
        queue.submit(Work(length[0], next_frame))

    queue.submit(Work(50, next_frame))
    clock.advance(1)
    assert queue.jobs == pytest.approx(20, abs=1)
    length[0] = 1
    clock.advance(0.06)
    before = queue.jobs
    clock.advance(1)
    assert queue.jobs - before == pytest.approx(100, abs=1)


# Work.


def test_jobs_of_a_queue_run_in_order_and_queues_take_turns():
    clock, scheduler, _ = make(FairShare())
    client = scheduler.add_client("vgpu")
    order = []
    for name in "ab":
        queue = client.add_queue(name)
        for number in range(3):
            queue.submit(Work(1, lambda _, name=name, number=number: order.append(f"{name}{number}")))
    clock.advance(1)
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert [queue.busy_ns for queue in client.queues] == [3 * MS, 3 * MS]
    assert client.busy_ns == 6 * MS
    assert [queue.jobs for queue in client.queues] == [3, 3]


def test_an_endless_batch_is_cancelled_and_the_next_one_runs():
    clock, _, (client,) = make(FairShare(), hogs=1)
    queue = client.queues[0]
    hog = queue.pending[0]
    queue.submit(Work(1))
    clock.advance(0.5)
    assert queue.waiting == 2
    assert queue.cancel()[0] is hog
    steps = hog.steps
    queue.submit(Work(1))
    clock.advance(0.5)
    assert (queue.waiting, queue.jobs, hog.steps) == (0, 1, steps)


def test_a_job_that_raises_ends_alone(caplog):
    clock, scheduler, _ = make(FairShare())
    queue = scheduler.add_client("vgpu").add_queue("rcs")

    class Broken:
        def step(self, budget):
            raise ZeroDivisionError("a model's mistake")

    queue.submit(Broken())
    queue.submit(Work(1))
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
    busy.submit(Work(5))
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
