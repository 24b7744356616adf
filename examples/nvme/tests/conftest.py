"""A driver for the tests: it does what a kernel's driver does, and what none should."""

import struct
import time
from typing import NamedTuple

import pytest
from umdev.device import DeviceContext, ManualClock
from umdev_nvme import Nvme64M

CAP, VS, INTMS, INTMC, CC, CSTS, AQA, ASQ, ACQ = 0x00, 0x08, 0x0C, 0x10, 0x14, 0x1C, 0x24, 0x28, 0x30
DOORBELLS = 0x1000
READY, FATAL, SHUT_DOWN = 1, 2, 2 << 2
ENABLE = 1 | 6 << 16 | 4 << 20
PAGE = 4096
SECONDS = 60  # far more than anything takes; what comes earlier is seen earlier


def until(condition, what="it never came true"):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def entry(opcode, command=0, namespace=0, prp1=0, prp2=0, *cdws, flags=0):
    """A submission queue entry; `cdws` are command dwords 10 to 15."""
    dwords = [dword & 0xFFFF_FFFF for dword in cdws] + [0] * (6 - len(cdws))
    return struct.pack("<BBHI16xQQ6I", opcode, flags, command, namespace, prp1, prp2, *dwords)


class Completion(NamedTuple):
    result: int
    head: int
    queue: int
    command: int
    status: int

    @property
    def code(self):
        return self.status & 0x7FF


class Queue:
    """A submission queue with a completion queue of its own."""

    def __init__(self, driver, number, entries):
        self.driver, self.number, self.entries = driver, number, entries
        self.buffers = [driver.function.allocate(entries * size) for size in (64, 16)]
        self.tail = self.head = 0
        self.phase = 1
        self.last_command = 0

    @property
    def submissions(self):
        return self.buffers[0]

    @property
    def completions(self):
        return self.buffers[1]

    def submit(self, opcode, namespace=0, prp1=0, prp2=0, *cdws, flags=0, ring=True):
        self.last_command = self.last_command + 1 & 0xFFFF
        self.submissions.write(
            64 * self.tail, entry(opcode, self.last_command, namespace, prp1, prp2, *cdws, flags=flags)
        )
        self.tail = (self.tail + 1) % self.entries
        if ring:
            self.ring()
        return self.last_command

    def ring(self, value=None):
        self.driver.bar.write32(DOORBELLS + 8 * self.number, self.tail if value is None else value)

    def seen(self, value=None):
        self.driver.bar.write32(DOORBELLS + 8 * self.number + 4, self.head if value is None else value)

    def poll(self):
        """The next completion, or None; it is not acknowledged."""
        data = self.completions.read(16 * self.head, 16)
        result, _, head, queue, command, status = struct.unpack("<IIHHHH", data)
        if status & 1 != self.phase:
            return None
        self.head = (self.head + 1) % self.entries
        if not self.head:
            self.phase ^= 1
        return Completion(result, head, queue, command, status >> 1)

    def wait(self, acknowledge=True):
        """The next completion."""
        found = []
        until(lambda: found.append(self.poll()) or found[-1], f"no completion on queue {self.number}")
        if acknowledge:
            self.seen()
        return found[-1]

    def command(self, *arguments, **options):
        """Submit, wait, and see that the completion is that of the command."""
        command = self.submit(*arguments, **options)
        self.driver.progress()
        completion = self.wait()
        assert (completion.command, completion.queue) == (command, self.number)
        return completion


class Driver:
    def __init__(self, function, device):
        self.function, self.device, self.bar = function, device, function.bars[0]
        self.admin = None
        self.page = function.allocate(PAGE)

    def progress(self):
        """Let deferred work run, where the test is who does it."""
        if self.device.clock.manual:
            self.device.clock.advance()

    def status(self):
        return self.bar.read32(CSTS)

    def enable(self, entries=32, cc=ENABLE):
        self.admin = Queue(self, 0, entries)
        self.bar.write32(AQA, entries - 1 | entries - 1 << 16)
        self.bar.write64(ASQ, self.admin.submissions.address)
        self.bar.write64(ACQ, self.admin.completions.address)
        self.bar.write32(CC, cc)
        until(lambda: self.status() & READY, "the controller does not get ready")
        return self

    def disable(self):
        self.bar.write32(CC, 0)
        until(lambda: not self.status() & READY, "the controller does not stop")

    def create(self, number=1, entries=16, vector=0, interrupts=True):
        queue = Queue(self, number, entries)
        where = number | entries - 1 << 16
        made = self.admin.command(5, 0, queue.completions.address, 0, where, vector << 16 | interrupts << 1 | 1)
        assert made.status == 0
        assert self.admin.command(1, 0, queue.submissions.address, 0, where, number << 16 | 1).status == 0
        return queue

    def identify(self, what, namespace=0):
        assert self.admin.command(6, namespace, self.page.address, 0, what).status == 0
        return self.page.read(0, PAGE)

    def data(self, size):
        """A buffer, and the PRP list that names its pages: PRP1 and PRP2."""
        buffer = self.function.allocate(size)
        pages = range(buffer.address, buffer.address + buffer.size, PAGE)
        if len(pages) <= 2:
            return buffer, pages[0], pages[1] if len(pages) == 2 else 0
        listed = self.function.allocate(PAGE)
        listed.write(0, struct.pack(f"<{len(pages) - 1}Q", *pages[1:]))
        return buffer, pages[0], listed.address


@pytest.fixture
def device():
    return Nvme64M()


@pytest.fixture
def driver(any_function, device):
    """A driver on each of the buses in turn."""
    return Driver(any_function(device), device)


@pytest.fixture
def stepped(loopback_function):
    """A driver whose device does deferred work only in `driver.progress()`."""
    device = Nvme64M(DeviceContext(clock=ManualClock()))
    return Driver(loopback_function(device), device)


@pytest.fixture(autouse=True)
def no_faults(monkeypatch):
    """Whatever a driver does, no handler and no work of the model fails."""
    made, open_ = [], Nvme64M.on_open

    def on_open(device):
        open_(device)
        made.append(device.native)

    monkeypatch.setattr(Nvme64M, "on_open", on_open)
    yield
    assert [native.counters["faulted"] for native in made] == [0] * len(made)


@pytest.fixture
def make_driver():
    """`make_driver(function, device)`."""
    return Driver
