"""Doorbells: what may be declared, and what an eventfd that rings one does to its device."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from umdev.addresses import RegionOffset
from umdev.bus import Attachment, Doorbell
from umdev.device import (
    RC,
    RO,
    RW,
    W1C,
    W1S,
    WO,
    Block,
    Device,
    Field,
    Flag,
    IoBar,
    MemoryBar,
    PciId,
    Register,
    Register8,
    Register64,
    RegisterArray,
    State,
)
from umdev.driver import Function
from umdev.errors import DeclarationError, InvalidArgument, MappingPoisoned, StateError, TransportError
from umdev.loopback.function import LoopbackFunction


class Bells(Block["Rung"]):
    status = Register(0x00, RO, reset=7)
    every = Register(0x10, WO, reset=3, doorbell=True)
    one = Register(0x14, doorbell=0xCAFE)
    zero = Register8(0x18, doorbell=0)
    wide = Register64(0x20, RO, doorbell=True)
    queues = RegisterArray(0x100, Register, WO, count=3, stride=8, doorbell=True)
    tails = RegisterArray(0x104, Register, WO, count=2, stride=8, doorbell=9)
    broken = Register(0x200, WO, doorbell=True)
    slow = Register(0x204, WO, doorbell=True)
    dma = Register(0x208, WO, doorbell=True)

    @every.on_write
    @one.on_write
    @zero.on_write
    @wide.on_write
    def rung(self, value: int) -> None:
        self.device.seen.append(value)

    @queues.on_write
    @tails.on_write
    def queue_rung(self, index: int, value: int) -> None:
        self.device.seen.append((index, value))

    @broken.on_write
    def fails(self, value: int) -> None:
        raise RuntimeError("on purpose")

    @dma.on_write
    def reads(self, value: int) -> None:
        self.device.seen.append(self.device.memory.read(1 << 32, 8))

    @slow.on_write
    def waits(self, value: int) -> None:
        self.device.entered.set()
        assert self.device.go_on.wait(20)


class Ports(Block["Rung"]):
    bell = Register(0, WO, doorbell=True)

    @bell.on_write
    def rung(self, value: int) -> None:
        self.device.seen.append("port")


class Rung(Device):
    pci = PciId(vendor=0x1234, device=0xBE11, class_code=0xFF0000)
    ports = IoBar(4, Ports, size=16)
    bar0 = MemoryBar(0, Bells, size=4096)
    seen: State[list[Any]] = State(list, save=False)
    entered: State[threading.Event] = State(threading.Event, save=False)
    go_on: State[threading.Event] = State(threading.Event, save=False)


def eventually(check: Callable[[], object]) -> None:
    for _ in range(4000):
        if check():
            return
        time.sleep(0.005)
    raise AssertionError("it did not happen")


def bell_at(attachment: Attachment, offset: int, region: int = 0) -> int:
    (found,) = (d for d in attachment.doorbells if (d.region, d.offset) == (region, offset))
    return attachment.connect_doorbell(found)


def watchers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("umdev-doorbells")]


@pytest.fixture
def device() -> Iterator[Rung]:
    with Rung() as made:
        yield made


@pytest.fixture
def function(device: Rung) -> Iterator[LoopbackFunction]:
    with LoopbackFunction(device) as opened:
        opened.assign_bars()
        opened.enable()
        yield opened


def test_what_is_declared_is_found(function: LoopbackFunction) -> None:
    found = [(d.region, d.offset, d.width, d.value) for d in function.attachment.doorbells]
    assert found == [
        (0, 0x10, 4, None), (0, 0x14, 4, 0xCAFE), (0, 0x18, 1, 0), (0, 0x20, 8, None),
        (0, 0x100, 4, None), (0, 0x104, 4, 9), (0, 0x108, 4, None), (0, 0x10C, 4, 9),
        (0, 0x110, 4, None), (0, 0x200, 4, None), (0, 0x204, 4, None), (0, 0x208, 4, None),
        (4, 0, 4, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        (lambda: Register(0, doorbell=True), "declare it WO or RO"),
        (lambda: Register(0, RW, doorbell=True), "keeps none"),
        (lambda: Register(0, W1C, doorbell=True), "keeps none"),
        (lambda: Register(0, W1S, doorbell=True), "keeps none"),
        (
            lambda: type("Mixed", (Register,), {"low": Field(0, 3, RW)})(0, WO, doorbell=True),
            "Mixed at 0x0.*keeps none",
        ),
        (lambda: type("Mixed", (Register,), {"done": Flag(9, W1C)})(0, RO, doorbell=True), "keeps none"),
        (lambda: Register(0x40, WO, masked=True, doorbell=True), "0x40.*can't be masked"),
        (lambda: Register64(0x40, WO, commit="high", doorbell=True), "0x40.*commit halves"),
        (lambda: RegisterArray(0, Register64, WO, count=2, commit="low", doorbell=True), "commit halves"),
        (lambda: RegisterArray(0, Register, count=2, doorbell=True), "keeps none"),
        (lambda: Register8(0x41, doorbell=0x100), "Register8 at 0x41: doorbell 0x100 does not fit in 1 bytes"),
        (lambda: Register(0, doorbell=-1), "does not fit"),
    ],
)
def test_declarations_that_are_refused(declare: Callable[[], object], said: str) -> None:
    with pytest.raises(DeclarationError, match=said):
        declare()


def test_declarations_that_fit() -> None:
    assert Register(0, RC, doorbell=True).doorbell is True
    assert Register(0, masked=True, doorbell=0x0001_0001).doorbell == 0x0001_0001
    assert Register64(0, commit="low", doorbell=1).doorbell == 1
    assert Register(0, doorbell=1).doorbell is not True
    assert Register(0).doorbell is False


def test_a_doorbell_is_answered_by_something() -> None:
    class Mute(Block[Any]):
        bell = Register(0, WO, doorbell=True)

    class Model(Device):
        pci = PciId(vendor=1, device=2, class_code=0)
        bar0 = MemoryBar(0, Mute, size=16)

    with pytest.raises(DeclarationError, match=r"Mute\.bell is a doorbell that nothing answers"):
        Model()


def test_a_doorbell_has_a_size_that_its_bar_takes() -> None:
    with pytest.raises(DeclarationError, match="wide is a doorbell of 8 bytes"):
        MemoryBar(0, Bells, size=4096, sizes=(1, 4))


def test_an_event_is_a_write(device: Rung, function: LoopbackFunction) -> None:
    attachment = function.attachment
    before = device.native.counters["writes"]
    expected: list[Any] = []
    for region, offset, what in (
        (0, 0x10, 0), (0, 0x14, 0xCAFE), (0, 0x18, 0), (0, 0x20, 0),
        (0, 0x110, (2, 0)), (0, 0x10C, (1, 9)), (4, 0, "port"),
    ):  # fmt: skip
        os.eventfd_write(bell_at(attachment, offset, region), 1)
        expected.append(what)
        eventually(lambda: device.seen == expected)
    assert device.native.counters["writes"] == before + len(expected)
    assert device.bar0.every.value == 0
    assert device.bar0.one.value == 0xCAFE


def test_a_trapped_store_is_the_same_to_the_handler(device: Rung, function: LoopbackFunction) -> None:
    bar = function.bars[0]
    bar.write32(0x10, 0xFFFF)
    bar.write16(0x12, 0xFFFF)
    bar.write32(0x14, 0xFFFF)
    bar.write64(0x20, 0xFFFF)
    bar.write32(0x108, 0xFFFF)
    assert device.seen == [0, 0, 0xFFFF, 0, (1, 0)]
    assert bar.read32(0x10) == 0
    assert bar.read64(0x20) == 0


def test_several_rings_may_be_one_call_and_the_last_is_seen(device: Rung, function: LoopbackFunction) -> None:
    bell = bell_at(function.attachment, 0x10)
    with device.locked():
        for _ in range(1000):
            os.eventfd_write(bell, 1)
    eventually(lambda: device.seen)
    count = len(device.seen)
    os.eventfd_write(bell, 1)
    eventually(lambda: len(device.seen) > count)
    assert len(device.seen) <= 3  # one that waited for the lock, one for the others, one alone


def test_a_handler_that_raises_is_a_fault(device: Rung, function: LoopbackFunction) -> None:
    os.eventfd_write(bell_at(function.attachment, 0x200), 1)
    eventually(lambda: device.native.counters["faulted"] == 1)
    assert isinstance(device.native.last_fault, RuntimeError)
    os.eventfd_write(bell_at(function.attachment, 0x10), 1)
    eventually(lambda: device.seen == [0])


def test_a_file_that_shrank_is_a_fault_of_who_rang(device: Rung, function: LoopbackFunction, memfd: int) -> None:
    """The thread that rings meets SIGBUS as any other does: it must not block it."""
    device.address_space.map(1 << 32, 4096, descriptor=memfd)
    bell = bell_at(function.attachment, 0x208)
    os.eventfd_write(bell, 1)
    eventually(lambda: device.seen == [bytes(8)])
    os.ftruncate(memfd, 0)
    os.eventfd_write(bell, 1)
    eventually(lambda: isinstance(device.last_fault, MappingPoisoned))


def test_closed_gates_drop_rings(device: Rung, function: LoopbackFunction) -> None:
    function.enable(memory=False)
    bell = bell_at(function.attachment, 0x10)
    aborted = device.native.counters["aborted"]
    os.eventfd_write(bell, 1)
    eventually(lambda: device.native.counters["aborted"] == aborted + 1)
    function.enable()
    os.eventfd_write(bell, 1)
    eventually(lambda: device.seen == [0])


def test_a_slow_handler_holds_up_no_other_device(device: Rung, function: LoopbackFunction) -> None:
    os.eventfd_write(bell_at(function.attachment, 0x204), 1)
    assert device.entered.wait(20)
    with Rung() as other, LoopbackFunction(other) as opened:
        opened.enable()
        os.eventfd_write(bell_at(opened.attachment, 0x10), 1)
        eventually(lambda: other.seen == [0])
    device.go_on.set()


def test_detaching_ends_the_bells(device: Rung) -> None:
    gc.collect()  # what earlier tests left
    before = sorted(Path("/proc/self/fd").iterdir())
    for number in range(1, 51):
        with LoopbackFunction(device) as function:
            function.enable()
            bell = bell_at(function.attachment, 0x10)
            assert bell_at(function.attachment, 0x10) == bell
            kept = os.dup(bell)
            os.eventfd_write(kept, 1)
            eventually(lambda: device.seen)
            if number % 2:
                os.eventfd_write(kept, 1)  # on its way while the attachment ends
        assert not watchers()
        count = device.native.counters["writes"]
        os.eventfd_write(kept, 1)
        os.close(kept)
        assert device.native.counters["writes"] == count
        with pytest.raises(StateError, match="detached"):
            bell_at(function.attachment, 0x10)
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_detaching_from_the_handler_that_was_rung(device: Rung) -> None:
    function = LoopbackFunction(device)
    function.enable()
    before = len(list(Path("/proc/self/fd").iterdir()))
    ended = threading.Event()

    def end(value: int) -> None:
        device.entered.set()
        function.attachment.detach()
        ended.set()

    device.native.raise_faults = True
    device.regions[0].bind(2, "write")  # by slot: status, every, one, ...
    device.regions[0].writes[2] = end
    os.eventfd_write(bell_at(function.attachment, 0x14), 1)
    assert ended.wait(20)
    eventually(lambda: not watchers())
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    function.close()


def test_devices_without_rings_have_no_thread(function: LoopbackFunction) -> None:
    assert function.attachment.doorbells
    assert not watchers()
    bell_at(function.attachment, 0x10)
    bell_at(function.attachment, 0x14)
    assert len(watchers()) == 1


@pytest.mark.parametrize(
    ("region", "offset", "width", "value"),
    [(0, 0, 4, None), (0, 16, 2, None), (0, 16, 4, 0), (0, 20, 4, None), (9, 0, 4, None)],
)
def test_only_what_is_declared_is_connected(
    function: LoopbackFunction, region: int, offset: int, width: int, value: int | None
) -> None:
    with pytest.raises(InvalidArgument, match="no such doorbell"):
        function.attachment.connect_doorbell(Doorbell(region, RegionOffset(offset), width, value))


def test_bells_for_which_there_is_no_thread_are_refused(
    function: LoopbackFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(TransportError, match="no thread is left for doorbells"):
            function.doorbells(0)
    assert function.doorbells(0)


def test_the_drivers_view(device: Rung, function: LoopbackFunction) -> None:
    bells = function.doorbells(0)
    assert list(bells) == [0x10, 0x14, 0x18, 0x20, 0x100, 0x104, 0x108, 0x10C, 0x110, 0x200, 0x204, 0x208]
    assert (bells[0x14].offset, bells[0x14].width, bells[0x14].value) == (0x14, 4, 0xCAFE)
    assert function.doorbells(0) is bells
    assert function.doorbells(7) == {}
    with pytest.raises(InvalidArgument, match="no region 3"):
        function.doorbells(3)
    bells[0x14].ring()
    eventually(lambda: device.seen == [0xCAFE])
    function.doorbells(4)[0].ring()
    eventually(lambda: device.seen == [0xCAFE, "port"])
    function.close()
    for dead in (bells[0x10].ring, lambda: function.doorbells(0), lambda: bells[0x10].descriptor):
        with pytest.raises(StateError, match="closed"):
            dead()


def test_a_bus_without_doorbells(function: LoopbackFunction) -> None:
    assert Function.doorbells(function, 0) == {}
    with pytest.raises(InvalidArgument, match="no region 3"):
        Function.doorbells(function, 3)


def test_a_quiesced_device_does_nothing_by_itself_and_answers(function: LoopbackFunction, device: Rung) -> None:
    bell = bell_at(function.attachment, 0x10)
    ran: list[int] = []
    function.attachment.quiesce()
    device.after(0, lambda: ran.append(1))
    assert function.bars[0].read32(0) == 7
    function.bars[0].write32(0x14, 5)
    os.eventfd_write(bell, 1)
    eventually(lambda: device.seen == [5, 0])
    assert ran == []
    function.attachment.resume()
    eventually(lambda: ran)
