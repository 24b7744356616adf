"""A device with doorbells, and what its tests look at."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

import pytest
from umdev.device import (
    WO,
    Block,
    Device,
    DmaError,
    IoBar,
    MemoryBar,
    PciId,
    Register,
    Register64,
    RegisterArray,
    State,
)

WAIT = 20.0


class Registers(Block["Rung"]):
    address = Register64(0x00)
    scratch = Register(0x08)
    bell = Register(0x1000, WO, doorbell=True)
    numbered = Register(0x1004, doorbell=0xCAFE)
    wide = Register64(0x1008, WO, doorbell=True)
    slow = Register(0x1010, WO, doorbell=True)

    @bell.on_write
    def rung(self, value: int) -> None:
        self.device.rung("bell", value)

    @numbered.on_write
    @wide.on_write
    def told(self, value: int) -> None:
        self.device.rung("told", value)

    @slow.on_write
    def waits(self, value: int) -> None:
        self.device.entered.set()
        assert self.device.go_on.wait(WAIT)


class Many(Block["Rung"]):
    queues = RegisterArray(0, Register, WO, count=40, doorbell=True)

    @queues.on_write
    def rung(self, index: int, value: int) -> None:
        self.device.rung(index, value)


class Ports(Block["Rung"]):
    bell = Register(4, WO, doorbell=True)

    @bell.on_write
    def rung(self, value: int) -> None:
        self.device.rung("port", value)


class Rung(Device):
    """Notes each ring, and what the driver's memory said after it."""

    pci = PciId(vendor=0x1234, device=0xBE11, class_code=0xFF0000)
    bar0 = MemoryBar(0, Registers, size=0x2000)
    bar2 = MemoryBar(2, Many, size=4096)
    bar3 = MemoryBar(3, Block, size=4096)
    bar5 = IoBar(5, Ports, size=16)
    seen: State[list] = State(list, save=False)
    memories: State[list] = State(list, save=False)
    entered: State[threading.Event] = State(threading.Event, save=False)
    go_on: State[threading.Event] = State(threading.Event, save=False)

    def rung(self, what: object, value: int) -> None:
        """A handler was called."""
        self.seen.append((what, value))
        if self.bar0.address.value:
            self.after(0, self.look)

    def look(self) -> None:
        """Deferred, as memory may be reached by message."""
        if address := self.bar0.address.value:
            try:
                self.memories.append(int.from_bytes(self.memory.read(address, 4), "little"))
            except DmaError as error:
                self.memories.append(type(error).__name__)


@pytest.fixture
def device():
    """Instead of the sample of the other tests."""
    with Rung() as made:
        yield made


@pytest.fixture
def eventually():
    """Wait until a condition holds."""

    def wait(check) -> None:
        for _ in range(4000):
            if check():
                return
            time.sleep(0.005)
        raise AssertionError("it did not happen")

    return wait


@pytest.fixture
def descriptors():
    """Count this process's descriptors."""

    def count() -> int:
        gc.collect()  # what earlier tests left
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    return count


@pytest.fixture
def watchers():
    """Count the threads that wait for rings."""

    def count() -> int:
        return sum(thread.name.startswith("umdev-doorbells") for thread in threading.enumerate())

    return count
