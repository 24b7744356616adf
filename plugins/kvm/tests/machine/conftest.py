"""A device with one of everything, machines that end with their test, and what this host's KVM can do."""

from __future__ import annotations

import functools
import os
import struct
import time
from collections.abc import Callable, Iterator

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
    ResetKind,
    State,
    Window,
)
from umdev.errors import HypervisorError, NotSupported
from umdev.hypervisor import open_userfault
from umdev_kvm import Machine, OutcomeKind
from umdev_kvm.linux import KERNEL
from umdev_kvm.probe import why_partial
from umdev_testkit.payloads import assemble

ELSEWHERE = "(the same tests run inside a TCG guest: test_in_guest.py)"
"""Why it is no loss that this machine skips a test."""


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


class Registers(Block["Sample"]):
    """BAR 0."""

    ident = Register(0x00, RO, reset=0x5A3B1E)
    scratch = Register(0x04)
    count = Register(0x08, RO)
    bell = Register(0x10, doorbell=7)
    every = Register(0x14, WO, doorbell=True)
    posted = Register(0x20)
    posted_too = Register(0x24)
    raise_irq = Register(0x30)
    lower_irq = Register(0x34)
    broken = Register(0x40)

    @scratch.on_write
    def counted(self, value: int) -> None:
        self.count.value += 1

    @bell.on_write
    def rung(self, value: int) -> None:
        self.device.log.append(("bell", value))

    @every.on_write
    def rung_by_any(self, value: int) -> None:
        self.device.log.append(("every", value))

    @posted.on_write
    def stored(self, value: int) -> None:
        self.device.log.append(("posted", value))

    @posted_too.on_write
    def stored_too(self, value: int) -> None:
        self.device.log.append(("posted_too", value))

    @raise_irq.on_write
    def raised(self, value: int) -> None:
        self.device.interrupts.raise_(value)

    @lower_irq.on_write
    def lowered(self, value: int) -> None:
        self.device.interrupts.lower(value)

    @broken.on_write
    def fails(self, value: int) -> None:
        raise RuntimeError("on purpose")


class Ram(Block["Sample"]):
    """BAR 2: a window between registers."""

    low = Register(0x0000)
    window = Window(0x4000, 0x8000)


class Table(Block["Sample"]):
    """BAR 3: MSI-X."""


class Ports(Block["Sample"]):
    """BAR 5."""

    data = Register(0x0)


class Sample(Device):
    """One of everything."""

    pci = PciId(vendor=0x1234, device=0x5A3B, class_code=0x00FF00)
    interrupts = Interrupts(msi=2, msix=3, msix_bar=3, intx=True)
    bar0 = MemoryBar(0, Registers, size=0x1000)
    bar2 = MemoryBar(2, Ram, size=0x10000)
    bar3 = MemoryBar(3, Table, size=0x1000)
    bar5 = IoBar(5, Ports, size=16)
    log: State[list[tuple[str, int]]] = State(list, save=False)
    resets: State[list[str]] = State(list, save=False)

    def on_reset(self, kind: ResetKind) -> None:
        self.resets.append(kind.name)


def small_kernel(source: str, *, preferred: int = 0) -> bytes:
    """A bzImage of a few instructions, which would like to run at `preferred`, where it wants 64 KiB."""
    header = bytearray(1024)
    header[0x1F1], header[0x201], header[0x211] = 1, 0x66, 1
    struct.pack_into("<4sH", header, 0x202, b"HdrS", 0x020F)
    struct.pack_into("<I", header, 0x22C, 0x37FF_FFFF)
    struct.pack_into("<I", header, 0x230, 0x20_0000 if preferred else 0)
    struct.pack_into("<I", header, 0x238, 2047)
    struct.pack_into("<QI", header, 0x258, preferred, 0x1_0000)
    return bytes(header) + assemble(source, "protected", KERNEL)


@functools.cache
def why_no_kvm() -> str | None:
    """What keeps this host from making a machine."""
    try:
        Machine(memory=1 << 20).close()
    except (NotSupported, HypervisorError) as error:
        return str(error)
    return None


@functools.cache
def why_incomplete() -> str | None:
    """Some hosts run guests by an instruction emulator that knows no iret: enough for most tests, not for all."""
    if (why := why_partial()) is not None:
        return f"this host's KVM emulates guests in part only ({why}); the TCG guest runs this test"
    return None


@pytest.fixture
def make_machine(request: pytest.FixtureRequest, sample: Sample) -> Iterator[Callable[..., Machine]]:
    """`make_machine(memory=..., vcpus=...)`; closed before the sample. Skips, saying why, without KVM."""
    if why := why_no_kvm():
        pytest.skip(f"{why} {ELSEWHERE}")
    if request.node.get_closest_marker("complete_kvm") and (why := why_incomplete()):
        pytest.skip(why)
    made: list[Machine] = []

    def make(**options: int) -> Machine:
        made.append(Machine(**options))
        return made[-1]

    yield make
    for machine in made:
        machine.close()


@pytest.fixture
def userfault():
    """This user may have a userfaultfd, which TRAP and TRACK need."""
    try:
        os.close(open_userfault().descriptor)
    except NotSupported as error:
        pytest.skip(f"{error} {ELSEWHERE}")


@pytest.fixture
def sample():
    """A Sample that is closed after the machine."""
    with Sample() as device:
        yield device


@pytest.fixture
def machine(make_machine):
    """4 MiB and a processor."""
    return make_machine(memory=4 << 20)


@pytest.fixture
def plugged(sample, machine):
    """The machine with the sample in slot 1, everything enabled."""
    machine.firmware.enable(machine.plug(sample))
    return machine


@pytest.fixture
def run(plugged):
    """Assemble, load and run on the machine with the sample: `run(source)` is the value at the exit port.

    `bar0` and so on are constants in the source.
    """

    def go(source: str, mode: str = "protected", limit: float = 20.0) -> int:
        bars = "".join(f".set bar{n}, {plugged.firmware.address(1, n):#x}\n" for n in (0, 2, 3, 5))
        plugged.load(assemble(bars + source, mode), mode, address=0x10000)
        outcome = plugged.run(limit)
        assert outcome.kind is OutcomeKind.EXIT, str(outcome)
        return outcome.value

    return go
