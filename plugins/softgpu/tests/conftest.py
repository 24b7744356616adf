"""A device whose guest memory lies scattered, as guests' memory does; jobs, and schedulers on a fake clock."""

import mmap
import os
import random
import threading

import pytest
from umdev.device import Block, Device, ManualClock, MemoryBar, PciId
from umdev_softgpu import MemoryPort, Scheduler, Step

PAGE = 4096
MS = 1_000_000
SECOND = 1000 * MS


class Work:
    """A job, and whether it ran."""

    def __init__(self):
        self.ran = threading.Event()

    def step(self, budget):
        self.ran.set()
        return Step.DONE


class Endless:
    """A batch that jumps to itself."""

    def __init__(self):
        self.steps = 0

    def step(self, budget):
        self.steps += 1
        budget.spend(max(budget.units, 1))
        return Step.MORE


class Milliseconds:
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
            self.queue.submit(
                Milliseconds(self.ms, lambda _, start=start: self.latencies.append(self.clock.now_ns - start))
            )
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


class NoRegisters(Block["Function"]):
    pass


class Function(Device):
    """A function without a register: what is tested here is what lies behind one."""

    pci = PciId(vendor=0x1234, device=0x5678, class_code=0x038000)
    bar0 = MemoryBar(0, NoRegisters, size=4096)


class Guest:
    """Guest memory of one map, and a device that may reach it."""

    BASE = 0x1_0000_0000

    def __init__(self, size=1 << 20):
        self.size = size
        self.descriptor = os.memfd_create("guest")
        os.ftruncate(self.descriptor, size)
        self.memory = mmap.mmap(self.descriptor, size)
        self.device = Function()
        self.device.address_space.map(self.BASE, size, descriptor=self.descriptor)
        self.device.address_space.bus_master = True

    def close(self):
        self.device.close()
        self.memory.close()
        os.close(self.descriptor)


@pytest.fixture
def guest():
    guest = Guest()
    yield guest
    guest.close()


@pytest.fixture
def port(guest):
    port = MemoryPort(guest.device)
    yield port
    port.close()
