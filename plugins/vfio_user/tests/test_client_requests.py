"""Requests that an exception ends: what becomes of their replies and of the connection."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from umdev.errors import Disconnected, InvalidArgument, SocketPathError, TransportError
from umdev_vfio_user import Client, VfioUserFunction, bus, sockets
from umdev_vfio_user.protocol import Command

from .test_client import WELCOME, FakeServer, answer, descriptors

WAIT = 60.0


def interrupt_once(monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    """Ctrl-C while the next reply is waited for."""

    def wait_for_bytes(timeout: float | None) -> bool:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "_wait_for_bytes", wait_for_bytes)


def test_the_reply_of_an_interrupted_request_is_dropped(device, monkeypatch) -> None:
    with bus.open_function(device) as function:
        function.enable()
        client = function._client
        number = client._connection._next_id
        interrupt_once(monkeypatch, client)
        with pytest.raises(KeyboardInterrupt):
            function.bars[0].read32(8)
        client._connection._next_id = number  # as 65,536 requests later
        assert function.bars[0].read32(0) == 0x5A3B1E
        assert function.bars[0].read32(0) == 0x5A3B1E
        assert (client._replies, client._forgotten, client._connection._under_way) == ({}, set(), {})


def test_descriptors_of_a_dropped_reply_are_closed(device, monkeypatch) -> None:
    with bus.open_function(device) as function:
        interrupt_once(monkeypatch, function._client)
        with pytest.raises(KeyboardInterrupt):
            function._region_info(2)
        function.bars[0].read32(0)
        before = descriptors()
        interrupt_once(monkeypatch, function._client)
        with pytest.raises(KeyboardInterrupt):
            function._region_info(2)
        function.bars[0].read32(0)
        assert descriptors() == before


def test_half_a_message_ends_the_connection(device, monkeypatch) -> None:
    with bus.open_function(device) as function:
        client = function._client

        def send_half(data: memoryview, descriptors: object) -> int:
            monkeypatch.undo()
            client._send_some(data[:20], ())
            raise KeyboardInterrupt

        monkeypatch.setattr(client, "_send_some", send_half)
        with pytest.raises(KeyboardInterrupt):
            function.bars[0].read32(0)
        with pytest.raises(Disconnected, match="KeyboardInterrupt"):
            function.bars[0].read32(0)


def test_a_bad_descriptor_is_the_callers_mistake(function) -> None:
    for wrong in (10**6, 1 << 40):
        with pytest.raises(InvalidArgument):
            function.connect_irq(1, [wrong])
        assert function.bars[0].read32(0) == 0x5A3B1E
    assert function._client._connection._under_way == {}


def test_no_room_for_a_descriptor_keeps_the_connection(function, monkeypatch) -> None:
    def refuse(*_: object) -> int:
        monkeypatch.undo()
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))

    monkeypatch.setattr(function._client, "_send_some", refuse)
    bell = os.eventfd(0)
    with pytest.raises(TransportError) as caught:
        function.connect_irq(1, [bell])
    assert caught.value.errno == errno.ETOOMANYREFS
    os.close(bell)
    assert function.bars[0].read32(0) == 0x5A3B1E


def post_for_ever(client: Client) -> None:
    while True:
        client.post(Command.REGION_WRITE, bytes(1 << 20))


def test_a_server_that_takes_no_messages() -> None:
    ours, theirs = socket.socketpair()

    def welcome() -> None:
        number = theirs.recv(65536)[:4]
        theirs.sendall(WELCOME.replace(b"IDCM", number))

    thread = threading.Thread(target=welcome)
    thread.start()
    with theirs, Client(ours) as client:
        thread.join()
        client._timeout = 0.01
        with pytest.raises(TransportError, match="takes no messages") as caught:
            post_for_ever(client)
        assert caught.value.errno == errno.ETIMEDOUT
        with pytest.raises(Disconnected):
            client.post(Command.REGION_WRITE, b"")


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), 1e9])
def test_timeouts_that_are_none(timeout: float) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(InvalidArgument, match="timeout"):
        Client(ours, timeout=timeout)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"reply_timeout": float("inf")}, InvalidArgument),
        ({"reply_timeout": float("nan")}, InvalidArgument),
        ({"reply_timeout": -1}, InvalidArgument),
        ({"vector_state": "nope"}, InvalidArgument),
        ({"wire_log": "/no/such/folder/log"}, TransportError),
        ({"path": ""}, SocketPathError),
        ({"path": "a\0b"}, SocketPathError),
        ({"path": None, "descriptor": -1}, InvalidArgument),
    ],
)
def test_options_of_a_server(device, tmp_path, options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        bus.serve(device, **{"path": str(tmp_path / "s"), **options})
    assert list(tmp_path.iterdir()) == []
    assert device.attachment is None


def test_posted_writes_wait_for_no_device(device, monkeypatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(type(device), "store", lambda device, value: gate.wait(WAIT))
    with bus.open_function(device, posted=True) as function:
        function.enable()
        for _ in range(3):
            function.bars[0].write32(0x1C, 1)
        assert not gate.is_set()  # and no request has run into its time limit
        gate.set()
        assert function.bars[0].read32(0) == 0x5A3B1E


def test_vectors_beyond_the_descriptors_are_silent(function, device) -> None:
    bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    function.connect_irq(1, bells)
    function.connect_irq(1, bells[:1])
    for vector, connected in enumerate([True, False, False, False]):
        assert device.interrupts.trigger(1, vector) is connected
    for bell in bells:
        os.close(bell)


@pytest.mark.parametrize(
    "ask",
    [
        lambda function: function.mask_irq(1, 1 << 33),
        lambda function: function.unmask_irq(1, -1),
        lambda function: function.trigger_irq(1, 4),
        lambda function: function.mask_irq(-1),
        lambda function: function.connect_unmask(1 << 40, -1),
    ],
)
def test_vectors_that_are_none(function, ask: Callable[[VfioUserFunction], None]) -> None:
    with pytest.raises(InvalidArgument):
        ask(function)
    function.trigger_irq(3)  # ERR is there, whoever listens


def test_buffers_without_room(function) -> None:
    with pytest.raises(TransportError) as caught:
        function.allocate(1 << 47)
    assert caught.value.errno == errno.ENOMEM
    function.allocate(4096).free()


@pytest.mark.parametrize("name", ["vfio-user server", "vfio-user client"])
def test_a_function_without_threads(device, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    start, before = threading.Thread.start, descriptors()

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith(name):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(TransportError, match="no thread is left"):
            bus.open_function(device, share_memory=False)
    assert (device.attachment, descriptors()) == (None, before)
    bus.open_function(device, share_memory=False).close()


FORKED = """
import os, signal, sys, warnings
from umdev.device import Block, Device, MemoryBar, PciId, Register
from umdev.errors import Disconnected
from umdev_vfio_user import bus
warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is what this is about
class Regs(Block):
    plain = Register(0, reset=7)
class Tiny(Device):
    pci = PciId(1, 2, 3)
    bar = MemoryBar(0, Regs, size=4096)
device = Tiny()
with device, bus.open_function(device, share_memory=sys.argv[1] == "shared") as function:
    function.enable()
    buffer = function.allocate(4096)
    if not os.fork():
        signal.alarm(60)
        try:
            function.bars[0].read32(0)
        except Disconnected as error:
            assert "forked" in str(error)
            sys.exit(7)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
    assert function.bars[0].read32(0) == 7
print("done")
"""


@pytest.mark.parametrize("memory", ["shared", "by message"])
def test_a_forked_process_leaves_the_connection_to_its_parent(memory: str) -> None:
    command = [sys.executable, "-c", FORKED, memory]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout == "done\n", done


def test_close_raises_nothing(device, caplog) -> None:
    fake = FakeServer(
        WELCOME, answer(b"".join(number.to_bytes(4, "little") for number in (16, 3, 0, 0)))
    )  # no regions, no interrupts

    def fail() -> None:
        raise RuntimeError("on purpose")

    function = VfioUserFunction(fake.ours, timeout=2, on_close=fail)
    function.close()
    fake.thread.join()
    assert "on purpose" in caplog.text


def test_one_server_at_a_time_looks_for_a_dead_socket(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else both remove what they find, and the first one's new socket with it."""
    monkeypatch.setattr(sockets, "LOCK_TRIES", 2)
    take: Callable[[], None] = lambda: sockets.listen(str(tmp_path / "s")).close()  # noqa: E731
    take()  # leaves one
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with pytest.raises(SocketPathError, match="locked"):
        take()
    os.close(folder)
    take()
