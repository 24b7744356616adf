"""Bare domains and a device with one of everything. Runs inside the Xen test bed.

The domains are another process's (`RemoteDomains`), so that this one gives up its rights to all others, as it does for
users: `Domain` restricts it unless a test says otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import pytest
from umdev.device import (
    RO,
    WO,
    Block,
    Device,
    Interrupts,
    IoBar,
    MemoryBar,
    PciId,
    Register,
    Register8,
    RegisterArray,
    ResetKind,
    State,
    Window,
)
from umdev_testkit.xen_payloads import RESULTS
from umdev_testkit.xen_remote import RemoteDomains

FIFO = 64
collect_ignore = [] if find_spec("umdev_nvme") else ["test_linux_nvme.py"]  # examples are distributions of their own


class Registers(Block["Sample"]):
    """BAR 0."""

    ident = Register(0x00, RO, reset=0x5A3B1E)
    scratch = Register(0x04)
    count = Register(0x08, RO)
    raise_irq = Register(0x30)
    lower_irq = Register(0x34)
    broken = Register(0x40)
    slow = Register(0x44)

    @scratch.on_write
    def counted(self, value: int) -> None:
        self.count.value += 1

    @raise_irq.on_write
    def raised(self, value: int) -> None:
        self.device.interrupts.raise_(value)

    @lower_irq.on_write
    def lowered(self, value: int) -> None:
        self.device.interrupts.lower(value)

    @broken.on_write
    def fails(self, value: int) -> None:
        raise RuntimeError("on purpose")

    @slow.on_write
    def waits(self, value: int) -> None:
        if self.device.hold is not None:
            self.device.hold()


class Queue(Block["Sample"]):
    """BAR 4: a FIFO of 64 bytes that every doubleword of the BAR leads to."""

    words = RegisterArray(0, Register, count=4096)

    @words.on_write
    def push(self, index: int, value: int) -> None:
        self.device.push(value.to_bytes(4, "little"))

    @words.on_read
    def pop(self, index: int) -> int:
        return int.from_bytes(self.device.pop(4), "little")


class Ram(Block["Sample"]):
    """BAR 2: a window between registers."""

    low = Register(0x0000)
    window = Window(0x4000, 0x8000)


class Table(Block["Sample"]):
    """BAR 3: MSI-X."""


class Ports(Block["Sample"]):
    """BAR 5: the FIFO, a byte at a time, and what empties it."""

    data = Register8(0x0)
    clear = Register(0x4, WO)

    @data.on_write
    def push(self, value: int) -> None:
        self.device.push(bytes([value]))

    @data.on_read
    def pop(self) -> int:
        return self.device.pop(1)[0]

    @clear.on_write
    def cleared(self, value: int) -> None:
        self.device.queue.clear()
        self.device.pushed.clear()


class Sample(Device):
    """One of everything."""

    pci = PciId(vendor=0x1234, device=0x5A3B, class_code=0x00FF00)
    interrupts = Interrupts(msi=4, msix=3, msix_bar=3, intx=True)
    bar0 = MemoryBar(0, Registers, size=0x1000, sizes=(1, 2, 4, 8))
    bar2 = MemoryBar(2, Ram, size=0x10000)
    bar3 = MemoryBar(3, Table, size=0x1000)
    bar4 = MemoryBar(4, Queue, size=0x4000)
    bar5 = IoBar(5, Ports, size=16, sizes=(1, 4))
    resets: State[list[str]] = State(list, save=False)
    queue: State[bytearray] = State(bytearray, save=False)
    pushed: State[bytearray] = State(bytearray, save=False)
    hold: State[Callable[[], None] | None] = State(lambda: None, save=False)

    def push(self, data: bytes) -> None:
        self.pushed.extend(data)
        self.queue.extend(data[: FIFO - len(self.queue)])

    def pop(self, count: int) -> bytes:
        found = bytes(self.queue[:count])
        del self.queue[:count]
        return found.ljust(count, b"\xff")

    def on_reset(self, kind: ResetKind) -> None:
        self.resets.append(kind.name)


@pytest.fixture(scope="session", autouse=True)
def _inside_the_bed() -> None:
    if "UMDEV_XEN_BED" not in os.environ:
        pytest.skip("these tests run inside the Xen test bed: plugins/xen/tests/test_in_xen.py")


@pytest.fixture(scope="session")
def domains() -> Iterator[RemoteDomains]:
    """The process that makes domains."""
    with RemoteDomains() as made:
        yield made


@pytest.fixture
def make_guest(domains):
    """`make_guest(vcpus=1)`: a bare domain, paused; destroyed at the end."""
    made = []

    def make(**options):
        made.append(domains.make(**options))
        return made[-1]

    yield make
    for guest in made:
        guest.close()


@pytest.fixture
def guest(make_guest):
    """One processor, 4 MiB."""
    return make_guest()


@pytest.fixture
def domain(guest, sample):  # which outlives it
    """What this process gives to the guest."""
    from umdev_xen import Domain

    with Domain(guest.domid) as opened:
        yield opened


@pytest.fixture
def sample() -> Iterator[Sample]:
    """A Sample that is closed after the domain."""
    with Sample() as device:
        yield device


@pytest.fixture
def results():
    """What the payload left with `result`."""

    def read(guest, count: int) -> list[int]:
        data = guest.read(RESULTS, 4 * count)
        return [int.from_bytes(data[i : i + 4], "little") for i in range(0, 4 * count, 4)]

    return read
