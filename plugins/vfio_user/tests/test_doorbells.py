"""Doorbells over vfio-user: what the server offers, what the client believes, and rings from one to the other."""

from __future__ import annotations

import errno
import gc
import os
import select
import struct
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
from umdev.errors import InvalidArgument, NotSupported, ProtocolError, StateError
from umdev_vfio_user import bus
from umdev_vfio_user.io_fds import SubRegion, decode_io_fds

WAIT = 20.0
FIXED = struct.Struct("<IIII")
PART = struct.Struct("<QQIIIIQ")


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


def eventually(check) -> None:
    for _ in range(4000):
        if check():
            return
        time.sleep(0.005)
    raise AssertionError("it did not happen")


def ask(raw, index: int, room: int = 4096) -> tuple[tuple[int, ...], list[tuple[int, ...]], list[int]]:
    """Fixed part, sub-regions and descriptors."""
    error, reply, fds = raw.call(6, FIXED.pack(room, 0, index, 0))
    assert error == 0
    return FIXED.unpack_from(reply), list(PART.iter_unpack(reply[16:])), fds


def close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def descriptors() -> int:
    gc.collect()  # what earlier tests left
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def watchers() -> int:
    return sum(thread.name.startswith("umdev-doorbells") for thread in threading.enumerate())


# The server.


def test_what_is_offered(raw, device) -> None:
    fixed, parts, fds = ask(raw, 0)
    assert fixed == (16 + 4 * 40, 0, 0, 4)
    assert parts == [
        (0x1000, 4, 0, 0, 0, 0, 0),
        (0x1004, 4, 1, 0, 1, 0, 0xCAFE),  # datamatch
        (0x1008, 8, 2, 0, 0, 0, 0),
        (0x1010, 4, 3, 0, 0, 0, 0),
    ]
    assert [str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in fds] == ["anon_inode:[eventfd]"] * 4
    for number, expected in ((0, ("bell", 0)), (1, ("told", 0xCAFE)), (2, ("told", 0))):
        os.eventfd_write(fds[number], 1)
        eventually(lambda wanted=expected: device.seen[-1:] == [wanted])
    assert len(device.seen) == 3
    close(fds)


def test_ports_are_ports(raw, device) -> None:
    fixed, parts, fds = ask(raw, 5)
    assert fixed == (56, 0, 5, 1)
    assert parts == [(4, 4, 0, 0, 2, 0, 0)]
    os.eventfd_write(fds[0], 1)
    eventually(lambda: device.seen == [("port", 0)])
    close(fds)


@pytest.mark.parametrize("index", [1, 3, 4, 6, 7, 8])
def test_regions_without_doorbells(raw, index: int) -> None:
    assert ask(raw, index) == ((16, 0, index, 0), [], [])
    assert watchers() == 0


@pytest.mark.parametrize("room", [16, 17, 16 + 4 * 40 - 1])
def test_too_little_room(raw, room: int) -> None:
    assert ask(raw, 0, room) == ((16 + 4 * 40, 0, 0, 4), [], [])
    assert watchers() == 0
    fixed, _, fds = ask(raw, 0, 16 + 4 * 40)
    assert (fixed[3], len(fds)) == (4, 4)
    close(fds)


@pytest.mark.parametrize(
    ("capabilities", "most"),
    [(b'{"max_msg_fds":3}', 3), (b"{}", 1), (b'{"max_msg_fds":100}', 16), (b'{"max_msg_fds":16}', 16)],
)
def test_no_more_descriptors_than_a_message_may_have(serve, device, capabilities: bytes, most: int) -> None:
    raw = serve().connect(negotiate=False)
    raw.negotiate(b'\0\0\0\0{"capabilities":' + capabilities + b"}" + b" " * 200 + b"\0")
    raw.enable()
    fixed, parts, fds = ask(raw, 2)
    assert (fixed, len(fds)) == ((16 + most * 40, 0, 2, most), most)
    assert [(part[0], part[2]) for part in parts] == [(4 * number, number) for number in range(most)]
    os.eventfd_write(fds[-1], 1)
    eventually(lambda: device.seen == [(most - 1, 0)])
    raw.write32(2, 4 * most, 7)  # the next one is trapped, and sees as little
    assert device.seen[1:] == [(most, 0)]
    close(fds)
    raw.close()


@pytest.mark.parametrize(
    ("payload", "fds"),
    [
        (FIXED.pack(4096, 1, 0, 0), False),
        (FIXED.pack(4096, 0, 0, 1), False),
        (FIXED.pack(4096, 0, 9, 0), False),
        (FIXED.pack(4096, 0, 0xFFFFFFFF, 0), False),
        (FIXED.pack(15, 0, 0, 0), False),
        (FIXED.pack(0, 0, 0, 0), False),
        (FIXED.pack(4096, 0, 0, 0)[:-1], False),
        (FIXED.pack(4096, 0, 0, 0) + b"\0", False),
        (b"", False),
        (FIXED.pack(4096, 0, 0, 0), True),
    ],
)
def test_malformed_questions(raw, memfd: int, payload: bytes, fds: bool) -> None:
    assert raw.call(6, payload, (memfd,) if fds else ()) == (errno.EINVAL, b"", [])
    assert watchers() == 0
    close(ask(raw, 0)[2])


def test_not_before_version(serve) -> None:
    raw = serve().connect(negotiate=False)
    raw.put(6, FIXED.pack(4096, 0, 0, 0))
    assert raw.get()[3] == errno.EPROTO
    with pytest.raises((EOFError, ConnectionError)):
        raw.get()
    raw.close()


def test_a_question_that_wants_no_answer(raw) -> None:
    raw.put(6, FIXED.pack(4096, 0, 0, 0), flags=0x10)
    assert raw.read32(0, 8) == 0


def test_asking_again_gives_the_same(raw, device) -> None:
    first = ask(raw, 0)[2]
    before = descriptors()
    for _ in range(100):
        close(ask(raw, 0)[2])
    assert descriptors() == before
    again = ask(raw, 0)[2]
    os.set_blocking(again[0], False)
    with device.locked():
        os.eventfd_write(first[0], 1)
        os.eventfd_write(again[0], 1)
    eventually(lambda: device.seen)
    close(first + again)
    assert watchers() == 1


def test_rings_are_dropped_while_decoding_is_off(raw, device) -> None:
    fds = ask(raw, 0)[2]
    raw.write(7, 4, b"\0\0")
    for number in range(3):
        aborted = device.native.counters["aborted"]
        os.eventfd_write(fds[number], 1)
        eventually(lambda before=aborted: device.native.counters["aborted"] == before + 1)
    raw.enable()
    assert device.seen == []
    os.eventfd_write(fds[0], 1)
    eventually(lambda: device.seen == [("bell", 0)])
    close(fds)


def test_messages_go_on_while_a_ring_is_handled(raw, device) -> None:
    fds = ask(raw, 0)[2]
    os.eventfd_write(fds[3], 1)
    assert device.entered.wait(WAIT)
    raw.write32(0, 8, 5)
    assert raw.read32(0, 8) == 5
    device.go_on.set()
    close(fds)


# Both ends.


def test_rings_are_no_messages(device, tmp_path: Path) -> None:
    log = tmp_path / "wire"
    with bus.open_function(device, wire_log=log) as function:
        function.assign_bars()
        function.enable()
        bells = function.doorbells(0)
        assert list(bells) == [0x1000, 0x1004, 0x1008, 0x1010]
        assert [(bell.offset, bell.width, bell.value) for bell in bells.values()] == [
            (0x1000, 4, None), (0x1004, 4, 0xCAFE), (0x1008, 8, None), (0x1010, 4, None),
        ]  # fmt: skip
        assert function.doorbells(0) is bells
        function.config.read8(0xFE)
        eventually(lambda: "offset=0xfe" in log.read_text())  # a line is written after its answer
        before = log.read_text().count("\n")
        for number in range(1, 6):
            bells[0x1000].ring()
            eventually(lambda count=number: len(device.seen) == count)
        bells[0x1004].ring()
        eventually(lambda: device.seen[5:] == [("told", 0xCAFE)])
        function.config.read32(0)
        eventually(lambda: log.read_text().count("\n") > before)
        after = log.read_text().splitlines()[before:]
        assert len(after) == 1, after  # the read that follows
        assert "REGION_READ" in after[0]
    text = log.read_text()
    assert "DEVICE_GET_REGION_IO_FDS" in text
    assert not any("REGION_WRITE" in line and "region=0 " in line for line in text.splitlines())


def test_the_last_of_ten_thousand_rings_is_seen(function, device) -> None:
    bell = function.doorbells(0)[0x1000]
    with function.allocate(4096) as buffer:
        function.bars[0].write64(0, buffer.address)
        for number in range(1, 10_001):
            buffer.write32(0, number)
            bell.ring()
        eventually(lambda: device.memories[-1:] == [10_000])
        function.bars[0].write64(0, 0)
        with device.locked():
            device.native.settle(cancel=False)  # who looks at the memory now has done so when it goes
    assert 1 <= len(device.seen) <= 10_000
    assert all(isinstance(found, int) for found in device.memories)
    assert device.memories == sorted(device.memories)


def test_four_threads_ring(function, device) -> None:
    bells = function.doorbells(2)
    assert len(bells) == 16

    def ring(offset: int) -> None:
        for _ in range(2000):
            bells[offset].ring()

    threads = [threading.Thread(target=ring, args=(4 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: {what for what, _ in device.seen} == {0, 1, 2, 3})


def test_a_ring_never_waits(function, device) -> None:
    bell = function.doorbells(0)[0x1000]
    os.set_blocking(bell.descriptor, True)
    waiting = select.poll()
    waiting.register(bell.descriptor)
    with device.locked():
        bell.ring()
        eventually(
            lambda: waiting.poll(0) == [(bell.descriptor, select.POLLOUT)]
        )  # taken; its write waits for the lock
        os.eventfd_write(bell.descriptor, (1 << 64) - 2)
        assert waiting.poll(0) == [(bell.descriptor, select.POLLIN)]
        for _ in range(3):
            bell.ring()
    eventually(lambda: len(device.seen) == 2)


def test_bad_regions(function) -> None:
    for index in (-1, 1, 9):
        with pytest.raises(InvalidArgument):
            function.doorbells(index)
    assert function.doorbells(3) == {}
    assert function.doorbells(7) == {}


def test_closing(device) -> None:
    before = descriptors()
    for _ in range(3):
        with bus.open_function(device) as function:
            bell = function.doorbells(0)[0x1000]
            function.doorbells(2)
            kept = os.dup(bell.descriptor)
        with pytest.raises(StateError):
            bell.ring()
        with pytest.raises(StateError):
            function.doorbells(0)
        writes = device.native.counters["writes"]
        os.eventfd_write(kept, 1)
        assert watchers() == 0
        assert device.native.counters["writes"] == writes
        os.close(kept)
    assert descriptors() == before


# Clients that come and go.


def wait_until_detached(served, clients: int) -> None:
    eventually(lambda: served.server.clients == clients and served.server.attachment.state.value == "attached")


def test_a_client_that_goes_while_it_rings(serve, device) -> None:
    served = serve()
    for number in range(1, 11):
        raw = served.connect()
        raw.enable()
        fds = ask(raw, 0)[2]
        ending = threading.Event()

        def hammer(fd: int = fds[0], stop: threading.Event = ending) -> None:
            while not stop.is_set():
                os.eventfd_write(fd, 1)
                time.sleep(0)

        thread = threading.Thread(target=hammer)
        thread.start()
        eventually(lambda: device.seen)
        raw.close()
        wait_until_detached(served, number)
        assert watchers() == 0
        device.seen.clear()
        writes = device.native.counters["writes"]
        os.eventfd_write(fds[0], 1)
        ending.set()
        thread.join()
        assert device.native.counters["writes"] == writes
        assert device.seen == []
        close(fds)
    again = served.connect()
    again.enable()
    fds = ask(again, 0)[2]
    os.eventfd_write(fds[0], 1)
    eventually(lambda: device.seen == [("bell", 0)])
    close(fds)
    again.close()


def test_two_hundred_clients_leave_nothing(serve) -> None:
    served = serve()
    seen = {}
    for number in range(1, 201):
        raw = served.connect()
        raw.enable()
        for index in (0, 2, 5):
            fds = ask(raw, index)[2]
            os.eventfd_write(fds[0], 1)
            close(fds)
        raw.close()
        wait_until_detached(served, number)
        seen[number] = descriptors(), watchers()
    assert seen[20] == seen[200]
    assert seen[200][1] == 0


# What the client believes.


def answered(
    *parts: bytes, index: int = 0, flags: int = 0, count: int | None = None, argsz: int | None = None
) -> bytes:
    body = b"".join(parts)
    return (
        FIXED.pack(16 + len(body) if argsz is None else argsz, flags, index, len(parts) if count is None else count)
        + body
    )


def part(offset: int = 0, size: int = 4, fd: int = 0, kind: int = 0, flags: int = 0, value: int = 0) -> bytes:
    return PART.pack(offset, size, fd, kind, flags, 0, value)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        answered()[:-1],
        answered(flags=1),
        answered(index=1),
        answered(part(), argsz=57),
        answered(part(), argsz=55),
        answered(part(), argsz=1 << 31),
        answered(part(), count=2),
        answered(part(), count=0xFFFFFFFF),
        answered(part()[:-1], count=1),
        answered(part() + b"\0", part()[:-1], part()),
        answered(part(fd=2)),
        answered(part(fd=0xFFFFFFFF)),
        answered(part(size=3)),
        answered(part(size=16)),
        answered(part(size=1 << 63)),
        answered(part(offset=0xFFD)),
        answered(part(offset=0x1000)),
        answered(part(offset=(1 << 64) - 1)),
        answered(part(offset=0x1001, size=0)),
        answered(part(flags=1, value=1 << 32)),
        answered(part(), part(fd=7)),
    ],
)
def test_answers_that_break_the_protocol(reply: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_io_fds(reply, 0, 0x1000, 2)


def test_answers_that_are_right() -> None:
    assert decode_io_fds(answered(), 0, 0x1000, 0) == []
    reply = answered(part(0xFFC, fd=1), part(8, 8, flags=1, value=(1 << 64) - 1), part(0x1000, 0), part(4, flags=2))
    assert decode_io_fds(reply, 0, 0x1000, 2) == [
        SubRegion(1, 0xFFC, 4, None),
        SubRegion(0, 8, 8, (1 << 64) - 1),
        SubRegion(0, 0x1000, 0, None),
        SubRegion(0, 4, 4, None),
    ]
    longer = answered(part() + bytes(8), part(4, fd=1) + bytes(8))
    assert [found.offset for found in decode_io_fds(longer, 0, 0x1000, 2)] == [0, 4]
    others = answered(part(kind=1, fd=99), part(kind=2, fd=99), part(flags=4, fd=99), part(0x10))
    assert [found.offset for found in decode_io_fds(others, 0, 0x1000, 1)] == [0x10]


def answer_with(function, monkeypatch: pytest.MonkeyPatch, reply: bytes, fds: tuple[int, ...]) -> None:
    monkeypatch.setattr(function._client, "request", lambda *_: (reply, fds))


def test_descriptors_that_are_no_eventfds(function, monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    event, (reader, writer) = os.eventfd(0), os.pipe()
    with monkeypatch.context() as patch:
        answer_with(function, patch, answered(part(), part(4, fd=2)), (event, reader, writer))
        with pytest.raises(ProtocolError, match="no eventfd but pipe"):
            function.doorbells(0)
    assert descriptors() == before
    assert list(function.doorbells(0)) == [0x1000, 0x1004, 0x1008, 0x1010]  # a bad answer is not kept


def test_shared_and_unused_descriptors(device, monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    with bus.open_function(device) as function:
        shared, unused = os.eventfd(0), os.eventfd(0)
        with monkeypatch.context() as patch:
            reply = answered(part(), part(4), part(flags=1, value=9))
            answer_with(function, patch, reply, (shared, unused))
            bells = function.doorbells(0)
        assert [(bell.offset, bell.value, bell.descriptor) for bell in bells.values()] == [
            (0, None, shared), (4, None, shared),
        ]  # fmt: skip
        bells[0].ring()
        bells[4].ring()
        assert os.eventfd_read(shared) == 2
    assert descriptors() == before


def test_servers_without_doorbells(function, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotSupported("DEVICE_GET_REGION_IO_FDS")

    monkeypatch.setattr(function._client, "request", refuse)
    assert function.doorbells(0) == {}
    monkeypatch.undo()
