"""All of it together, with a real thread: two virtual GPUs on one engine, one of them hostile."""

import threading
import time

import pytest
from umdev.device import ResetKind
from umdev_softgpu import Blit, FairShare, Fault, MemoryPort, Reason, Rect, Scheduler, Step, Surface


class Drawing:
    """Fills as a guest may ask for them: the largest there is, for ever, until its memory goes away."""

    def __init__(self, device, space, address, size):
        self.device = device
        self.size = size
        self.surface = Surface(space, address, 0)  # every row in one place
        self.blit = self._next()
        self.began = threading.Event()
        self.answer = None

    def _next(self):
        return Blit.fill(self.surface, Rect(0, 0, self.size, 0xFFFF_FFFF), 1, 0xA5)

    def step(self, budget):
        self.began.set()
        answer = self.blit.step(budget)
        with self.device.locked():
            if not budget.stopped:
                self.answer = answer
        return Step.DONE if isinstance(answer, Fault) else answer


class Small:
    """One small fill, checked by whoever waits for it."""

    def __init__(self, space, address, value):
        self.blit = Blit.fill(Surface(space, address, 64), Rect(0, 0, 16, 4), 4, value)
        self.done = threading.Event()

    def step(self, budget):
        answer = self.blit.step(budget)
        if answer is Step.DONE:
            self.done.set()
        return answer


@pytest.fixture
def scheduler():
    scheduler = Scheduler()
    yield scheduler
    scheduler.close()


@pytest.fixture
def other(request):
    guest = type(request.getfixturevalue("guest"))()
    yield guest
    guest.close()


def test_reset_in_the_middle_of_a_blit(guest, scheduler):
    """The device lock is held, the engine is drawing: once the port is closed no byte changes, and the blit knows."""
    client = scheduler.add_client("vgpu")
    queue = client.add_queue("bcs")
    for turn in range(20):
        port = MemoryPort(guest.device)
        drawing = Drawing(guest.device, port.system, guest.BASE, guest.size)
        queue.submit(drawing)
        assert drawing.began.wait(60)
        with guest.device.locked():
            queue.cancel()
            port.close()
            guest.memory[:] = bytes([turn]) * guest.size
        assert guest.memory[:] == bytes([turn]) * guest.size
        queue.cancel(wait=True)
        assert guest.memory[:] == bytes([turn]) * guest.size
        assert drawing.answer in (None, Step.MORE), "nothing is said of a life that is over"


def test_closed_port_ends_the_job(guest, scheduler):
    port = MemoryPort(guest.device)
    drawing = Drawing(guest.device, port.system, guest.BASE, guest.size)
    queue = scheduler.add_client("vgpu").add_queue("bcs")
    queue.submit(drawing)
    assert drawing.began.wait(60)
    port.close()
    while queue.waiting:
        time.sleep(0.001)
    assert drawing.answer.reason is Reason.CLOSED


def test_function_level_reset_and_unmap_while_it_draws(guest, scheduler):
    """Whatever a client does to its function meanwhile: the engine gets an answer, the client is not kept waiting."""
    port = MemoryPort(guest.device)
    drawing = Drawing(guest.device, port.system, guest.BASE, guest.size)
    queue = scheduler.add_client("vgpu").add_queue("bcs")
    queue.submit(drawing)
    assert drawing.began.wait(60)
    guest.device.reset(ResetKind.FLR)  # clears bus mastering
    while queue.waiting:
        time.sleep(0.001)
    assert drawing.answer.reason is Reason.UNREACHABLE
    guest.device.address_space.bus_master = True
    again = Drawing(guest.device, port.system, guest.BASE, guest.size)
    queue.submit(again)
    assert again.began.wait(60)
    guest.device.address_space.unmap(guest.BASE, guest.size)
    while queue.waiting:
        time.sleep(0.001)
    assert again.answer.reason is Reason.UNREACHABLE
    port.close()


class Noting(FairShare):
    """Fair shares that remember the longest step."""

    longest_ns = 0

    def charge(self, client, start_ns, used_ns):
        if client.name == "vgpu":
            self.longest_ns = max(self.longest_ns, used_ns)
        super().charge(client, start_ns, used_ns)


class Gate:
    """Keeps the engine busy until it is opened."""

    def __init__(self):
        self.open = threading.Event()

    def step(self, budget):
        assert self.open.wait(60)
        return Step.DONE


def test_a_hostile_neighbour_takes_no_more_than_its_share(guest, other):
    """Both draw for ever, from the same moment on: however busy this machine is, they never differ by over a step."""
    policy = Noting()
    scheduler = Scheduler(policy)
    gate = Gate()
    scheduler.add_client("gate").add_queue("gate").submit(gate)
    for side in (guest, other):
        drawing = Drawing(side.device, MemoryPort(side.device).system, side.BASE, side.size)
        scheduler.add_client("vgpu").add_queue("bcs").submit(drawing)
    _, one, two = scheduler.clients
    gate.open.set()
    while one.steps + two.steps < 100:
        time.sleep(0.001)
    scheduler.close()
    assert abs(one.busy_ns - two.busy_ns) <= policy.longest_ns


def test_work_beside_an_endless_neighbour_comes_back_right(guest, other, scheduler):
    """A hundred fills, one after the other, beside a client that never ends; not a byte of it shows here."""
    hostile = MemoryPort(guest.device)
    scheduler.add_client("hostile").add_queue("bcs").submit(
        Drawing(guest.device, hostile.system, guest.BASE, guest.size)
    )
    port = MemoryPort(other.device)
    queue = scheduler.add_client("quiet").add_queue("bcs")
    for number in range(100):
        small = Small(port.system, other.BASE + 256 * number, number * 0x01010101)
        queue.submit(small)
        assert small.done.wait(60)
        assert other.memory[256 * number : 256 * number + 256] == bytes([number]) * 256
    assert other.memory[25600:] == bytes(other.size - 25600)
    assert queue.jobs >= 99
    scheduler.close()
    hostile.close()
    port.close()
