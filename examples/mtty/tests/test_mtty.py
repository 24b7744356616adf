"""mtty on every bus: what a 16550A driver does, and the bytes at the host's end."""

import errno
import os
import pkgutil
import random
import resource
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from umdev.device import InvalidArgument, NoInstanceLeft
from umdev_mtty import Mtty1, Mtty2, parent
from umdev_mtty.port import ACCEPT_PAUSE, OUTGOING_LIMIT, HostPort

DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
DLAB, RTS, DTR, OUT2, LOOP = 0x80, 0x02, 0x01, 0x08, 0x10


@pytest.fixture
def device():
    return Mtty2()


@pytest.fixture
def card(any_function, device):
    return any_function(device)


@pytest.fixture(autouse=True)
def _own_instances(tmp_path, monkeypatch):
    """Ports are counted over all processes of a user: other tests, and devices that run, are not this test's."""
    monkeypatch.setenv("UMDEV_RUNTIME_DIR", str(tmp_path / "run"))


def start(port):
    port.write8(IIR, 0x07)  # enable and clear the FIFOs, trigger at one byte
    port.write8(LCR, 0x03)
    port.write8(MCR, RTS | DTR | OUT2)


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


def drain(port, count):
    """Read as a driver in polled mode does."""
    data = bytearray()
    deadline = time.monotonic() + 60
    while len(data) < count and time.monotonic() < deadline:
        if port.read8(LSR) & 1:
            data.append(port.read8(DATA))
    return bytes(data)


def send(port, data):
    for byte in data:
        until(lambda: port.read8(LSR) & 0x20)
        port.write8(DATA, byte)


def read_exactly(descriptor, count):
    data = b""
    while len(data) < count:
        data += os.read(descriptor, count - len(data))
    return data


def test_scratch_divisor_and_reset_values(card):
    port = card.bars[0]
    assert (port.read8(IIR), port.read8(LSR), port.read8(IER)) == (0x01, 0x60, 0x00)
    port.write8(SCR, 0xA5)
    port.write8(LCR, DLAB | 3)
    port.write8(DATA, 0x34)
    port.write8(IER, 0x12)
    assert (port.read8(DATA), port.read8(IER)) == (0x34, 0x12)
    port.write8(LCR, 3)
    assert (port.read8(IER), port.read8(SCR)) == (0x00, 0xA5)


def test_a_16550a_shows_its_fifos(card):
    port = card.bars[0]
    port.write8(IIR, 1)
    assert port.read8(IIR) & 0xC0 == 0xC0
    port.write8(IIR, 0)
    assert port.read8(IIR) & 0xC0 == 0


def test_loopback_mode(card):
    port = card.bars[0]
    start(port)
    port.write8(MCR, LOOP | RTS | OUT2)
    assert port.read8(MSR) & 0xF0 == 0x90  # RTS -> CTS, OUT2 -> DCD
    port.write8(DATA, 0x42)
    assert port.read8(LSR) & 1
    assert port.read8(DATA) == 0x42


def test_bytes_pass_both_ways_on_both_ports_at_once(card, device):
    paths = device.query("terminals")
    hosts = [os.open(path, os.O_RDWR | os.O_NOCTTY) for path in paths]
    try:
        for number, host in enumerate(hosts):
            port, out, back = card.bars[number], random.randbytes(300), random.randbytes(300)
            start(port)
            writer = threading.Thread(target=os.write, args=(host, back))
            writer.start()
            send(port, out)
            assert read_exactly(host, len(out)) == out
            assert drain(port, len(back)) == back
            writer.join()
    finally:
        for host in hosts:
            os.close(host)


def test_a_driver_that_does_not_look_loses_bytes_and_costs_no_memory(card, device):
    port = card.bars[0]
    start(port)
    with device.locked():  # so the thread can take nothing meanwhile
        for number in range(3 * OUTGOING_LIMIT):
            device.uarts[0].push(number & 0xFF)
        assert not device.uarts[0].line_status.transmit_empty
    assert device.query("lost") == [2 * OUTGOING_LIMIT, 0]
    host = os.open(device.query("terminals")[0], os.O_RDWR | os.O_NOCTTY)
    try:
        sent = bytes(number & 0xFF for number in range(OUTGOING_LIMIT))
        assert read_exactly(host, len(sent)) == sent
        until(lambda: port.read8(LSR) & 0x60 == 0x60)
    finally:
        os.close(host)


def test_a_cleared_fifo_fills_again(card, device):
    (path, _) = device.query("terminals")
    host = os.open(path, os.O_RDWR | os.O_NOCTTY)
    try:
        port = card.bars[0]
        start(port)
        os.write(host, bytes(range(40)))
        until(lambda: len(device.uarts[0].received) == 16)
        port.write8(IIR, 0x03)
        assert drain(port, 24) == bytes(range(16, 40))
    finally:
        os.close(host)


def test_nothing_is_delivered_before_request_to_send(card, device):
    (path, _) = device.query("terminals")
    host = os.open(path, os.O_RDWR | os.O_NOCTTY)
    try:
        port = card.bars[0]
        start(port)
        port.write8(MCR, 0)
        os.write(host, b"x")
        time.sleep(0.1)
        assert not port.read8(LSR) & 1
        port.write8(MCR, RTS)
        assert drain(port, 1) == b"x"
    finally:
        os.close(host)


def test_interrupts_follow_the_priorities(card, device):
    port = card.bars[0]
    (path, _) = device.query("terminals")
    host = os.open(path, os.O_RDWR | os.O_NOCTTY)
    try:
        start(port)
        with card.enable_interrupts("intx") as interrupts:
            port.write8(IER, 0x03)
            assert interrupts.wait(timeout=60) == 1
            os.write(host, b"z")
            until(lambda: port.read8(LSR) & 1)
            assert port.read8(IIR) & 0x0F == 0x04, "received data comes before an empty transmitter"
            assert port.read8(DATA) == ord("z")
            assert port.read8(IIR) & 0x0F == 0x02
            assert port.read8(IIR) & 0x0F == 0x01, "reading IIR cleared the transmitter's interrupt"
            interrupts.acknowledge()
            assert interrupts.wait(timeout=0.05) == 0
    finally:
        os.close(host)


def test_a_unix_socket_peer_comes_and_goes(tmp_path):
    from umdev_testkit.functions import attach

    path = tmp_path / "port"
    device = parent.create("mtty-1", attributes={"port0": f"unix:{path}"})
    with device, attach(device, "loopback") as card:
        port = card.bars[0]
        start(port)
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(path))
                until(lambda: port.read8(MSR) & 0x80)
                peer.sendall(b"hello")
                assert drain(port, 5) == b"hello"
                port.write8(DATA, ord("!"))
                assert peer.recv(1) == b"!"
            until(lambda: not port.read8(MSR) & 0x80)
    assert not path.exists()


def test_a_peer_waits_while_no_descriptor_is_left(tmp_path, monkeypatch, caplog):
    """The port tries again, and does not spin."""
    from umdev_testkit.functions import attach

    path = tmp_path / "port"
    pauses = []
    enough = threading.Event()

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            enough.set()

    monkeypatch.setattr("umdev_mtty.port.time", SimpleNamespace(sleep=pause))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    device = parent.create("mtty-1", attributes={"port0": f"unix:{path}"})
    with device, attach(device, "loopback") as card, socket.socket(socket.AF_UNIX) as peer:
        port = card.bars[0]
        start(port)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # fewer than are open
            peer.connect(str(path))
            assert enough.wait(20)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        peer.sendall(b"hello")
        assert drain(port, 5) == b"hello"
    assert pauses == [ACCEPT_PAUSE] * 3
    assert "no connection: [Errno 24]" in caplog.text


def test_a_card_whose_second_port_can_not_be_had_leaves_nothing_of_the_first(tmp_path):
    taken = tmp_path / "taken"
    taken.touch()
    ports = {"port0": f"unix:{tmp_path}/port", "port1": f"unix:{taken}"}
    with pytest.raises(OSError, match=f"in use: '{taken}'"):
        parent.create("mtty-2", attributes=ports)
    assert not (tmp_path / "port").exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(f"mtty-{tmp_path}")]
    with parent.create("mtty-2", attributes={**ports, "port1": "pty"}) as device:
        assert device.query("terminals")[0] == f"{tmp_path}/port"


@pytest.mark.parametrize(
    ("where", "refused", "error"),
    [
        ("unix", "pathlib.Path.chmod", OSError),
        ("pty", "tty.setraw", OSError),
        ("pty", "os.pipe2", OSError),
        ("unix", "os.pipe2", OSError),
        ("pty", "threading.Thread.start", RuntimeError),
        ("unix", "threading.Thread.start", RuntimeError),
    ],
)
def test_a_card_whose_second_port_lacks_something_leaves_nothing_of_either(
    tmp_path, monkeypatch, where, refused, error
):
    owner, _, name = refused.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    allowed, calls = getattr(owner, name), []

    def second_is_refused(*arguments, **options):
        calls.append(name)
        if len(calls) == 2:
            raise error("refused")
        return allowed(*arguments, **options)

    ports = {f"port{number}": f"unix:{tmp_path}/port{number}" if where == "unix" else where for number in range(2)}
    before = set(Path("/proc/self/fd").iterdir())
    monkeypatch.setattr(owner, name, second_is_refused)
    with pytest.raises(error, match="refused"):
        parent.create("mtty-2", attributes=ports)
    assert len(calls) == 2
    assert set(Path("/proc/self/fd").iterdir()) <= before
    assert not list(tmp_path.glob("port*"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mtty-")]
    with parent.create("mtty-2", attributes=ports) as device:
        assert len(device.query("terminals")) == 2


def test_a_path_that_is_too_long_is_named(tmp_path):
    path = tmp_path / ("long" * 30)
    with pytest.raises(OSError, match=f"too long: '{path}'") as raised:
        HostPort(f"unix:{path}", None, None)
    assert raised.value.errno == errno.ENAMETOOLONG


def test_ports_are_shared_out():
    cards = [parent.create("mtty-2") for _ in range(11)]
    try:
        assert parent.available_instances("mtty-2") == 1
        assert parent.available_instances("mtty-1") == 2
        cards.append(parent.create("mtty-1"))
        assert parent.available_instances("mtty-2") == 0
        cards.append(parent.create("mtty-1"))
        with pytest.raises(NoInstanceLeft):
            parent.create("mtty-1")
    finally:
        for card in cards:
            card.close()
    assert parent.available_instances("mtty-1") == 24


@pytest.mark.parametrize("where", ["carrier-pigeon", "unix", "unix:", ""])
def test_a_port_goes_to_a_known_place(where):
    for refuses in (lambda: parent.check_attributes("mtty-1", {"port0": where}), lambda: HostPort(where, None, None)):
        with pytest.raises(InvalidArgument, match="pty"):
            refuses()
    with pytest.raises(InvalidArgument, match="pty"):
        parent.create("mtty-1", attributes={"port0": where})
    assert parent.available_instances("mtty-1") == 24


def test_single_port_card_has_one_bar():
    with Mtty1() as card:
        assert list(card.regions) == [0]
