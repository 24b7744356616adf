"""Policies of slices on a fake clock: best effort, equal and fixed shares, frame rates."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from umdev.device import InvalidArgument
from umdev_softgpu import BestEffort, EqualShare, FixedShare, Step

from .conftest import MS, SECOND, Endless, Milliseconds, Uneven, make, shares


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
    queue.submit(Milliseconds(1, lambda _: ended.append(clock.now_ns - start)))
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
        queue.submit(Milliseconds(2, next_frame))

    queue.submit(Milliseconds(2, next_frame))
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
        queue.submit(Milliseconds(length[0], next_frame))

    queue.submit(Milliseconds(50, next_frame))
    clock.advance(1)
    assert queue.jobs == pytest.approx(20, abs=1)
    length[0] = 1
    clock.advance(0.06)
    before = queue.jobs
    clock.advance(1)
    assert queue.jobs - before == pytest.approx(100, abs=1)
