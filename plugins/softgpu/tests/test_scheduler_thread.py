"""The engine with a thread of its own: it begins, gives way, and ends when it is told to."""

import threading

import pytest
from umdev_softgpu import Budget, Scheduler, Step
from umdev_softgpu._native import lib

MS = 1_000_000
SECOND = 1000 * MS


class Spinning:
    """Holds the engine until its budget says no."""

    def __init__(self):
        self.began = threading.Event()
        self.steps = 0

    def step(self, budget):
        self.steps += 1
        self.began.set()
        while budget.left:
            pass
        return Step.MORE


class Signal:
    """Tells that it ran."""

    def __init__(self):
        self.ran = threading.Event()

    def step(self, budget):
        self.ran.set()
        return Step.DONE


HOUR = 3600 * SECOND


@pytest.fixture
def scheduler():
    scheduler = Scheduler(budget_ns=HOUR)
    yield scheduler
    scheduler.close()


def test_no_thread_before_the_first_work(scheduler):
    def ours():
        return [thread for thread in threading.enumerate() if thread.name == "umdev-idle engine"]

    scheduler.name = "idle engine"
    queue = scheduler.add_client("vgpu").add_queue("bcs")
    assert len(ours()) == 0
    job = Signal()
    queue.submit(job)
    assert job.ran.wait(60)
    assert len(ours()) == 1
    scheduler.close()
    assert len(ours()) == 0


def test_a_client_that_wakes_ends_the_hog_s_step(scheduler):
    hog, small = Spinning(), Signal()
    scheduler.add_client("hog").add_queue("bcs").submit(hog)
    queue = scheduler.add_client("small").add_queue("bcs")
    assert hog.began.wait(60)
    queue.submit(small)
    assert small.ran.wait(60), "the budget is an hour: only the wake can have ended it"


def test_cancel_waits_for_the_step(scheduler):
    hog = Spinning()
    queue = scheduler.add_client("hog").add_queue("bcs")
    queue.submit(hog)
    assert hog.began.wait(60)
    assert queue.cancel(wait=True) == [hog]
    steps = hog.steps
    after = Signal()
    queue.submit(after)
    assert after.ran.wait(60)
    assert (queue.running, hog.steps) == (None, steps)


def test_close_ends_a_step_under_way(scheduler):
    hog = Spinning()
    client = scheduler.add_client("hog")
    client.add_queue("bcs").submit(hog)
    assert hog.began.wait(60)
    client.close()
    assert scheduler.clients == []
    assert client.busy_ns == scheduler.busy_ns > 0


def test_budget_ends_steps(scheduler):
    scheduler.budget_ns = MS
    hog = Spinning()
    queue = scheduler.add_client("hog").add_queue("bcs")
    queue.submit(hog)
    assert hog.began.wait(60)
    other = Signal()
    queue.client.add_queue("rcs").submit(other)
    assert other.ran.wait(60)


def test_many_threads_submit(scheduler):
    queues = [scheduler.add_client(f"vgpu{number}").add_queue("bcs") for number in range(4)]
    jobs = [[Signal() for _ in range(100)] for _ in queues]
    threads = [
        threading.Thread(target=lambda queue=queue, mine=mine: [queue.submit(job) for job in mine])
        for queue, mine in zip(queues, jobs, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(job.ran.wait(60) for mine in jobs for job in mine)


def test_handlers_that_take_all_of_a_step_s_time_leave_it_one_piece(monkeypatch):
    budget = Budget(1000)
    monkeypatch.setattr("umdev_softgpu.budget.give_way", budget.expire)
    assert budget.left
    assert not budget.left


class Asking:
    """Waits for a client, as a transfer by message does, while `answer` is not set."""

    def __init__(self):
        self.began, self.answer, self.ended = threading.Event(), threading.Event(), threading.Event()

    def step(self, budget):
        lib.softgpu_wait_begins()
        self.began.set()
        self.answer.wait()
        lib.softgpu_wait_ends()
        self.ended.set()
        return Step.DONE


def test_others_run_while_a_step_waits_for_its_client(scheduler):
    asking, behind = Asking(), Signal()
    client = scheduler.add_client("mute")
    client.add_queue("bcs").submit(asking)
    assert asking.began.wait(60)
    client.add_queue("rcs").submit(behind)
    other = scheduler.add_client("other").add_queue("bcs")
    for _ in range(10):
        job = Signal()
        other.submit(job)
        assert job.ran.wait(60)
    assert not asking.ended.is_set()
    assert not behind.ran.is_set(), "a client has one step at a time"
    asking.answer.set()
    assert asking.ended.wait(60)
    assert behind.ran.wait(60)


def test_a_step_that_waited_goes_on_when_nobody_else_has_the_engine(scheduler, monkeypatch):
    # Which of the two has had more of the engine so far is the machine's to say.
    monkeypatch.setattr(scheduler.policy, "preempts", lambda *_: True)
    asking, hog = Asking(), Spinning()
    scheduler.add_client("slow").add_queue("bcs").submit(asking)
    assert asking.began.wait(60)
    scheduler.add_client("hog").add_queue("bcs").submit(hog)
    assert hog.began.wait(60)
    asking.answer.set()
    assert asking.ended.wait(60), "the hog's budget is an hour: only the return can have ended its step"


def test_many_slow_clients_share_an_engine_with_a_hog(scheduler):
    scheduler.budget_ns = MS
    jobs = [Asking() for _ in range(8)]
    for number, job in enumerate(jobs):
        scheduler.add_client(f"slow {number}").add_queue("bcs").submit(job)
    scheduler.add_client("hog").add_queue("bcs").submit(Spinning())
    assert all(job.began.wait(60) for job in jobs)
    for job in jobs:
        job.answer.set()
    assert all(job.ended.wait(60) for job in jobs)


def test_cancel_and_close_wait_for_a_step_that_waits(scheduler):
    asking = Asking()
    client = scheduler.add_client("slow")
    queue = client.add_queue("bcs")
    queue.submit(asking)
    assert asking.began.wait(60)
    threading.Timer(0.05, asking.answer.set).start()
    assert queue.cancel(wait=True) == [asking]
    assert asking.ended.is_set()
    after = Signal()
    queue.submit(after)
    assert after.ran.wait(60)
    scheduler.close()
    assert not [thread for thread in threading.enumerate() if thread.name == f"umdev-{scheduler.name}"]
