"""Clients that come and go, sockets, signals, the wire log."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from umdev.errors import Disconnected, InvalidArgument, SocketPathError, StateError, TransportError
from umdev_vfio_user import Server, bus
from umdev_vfio_user.sockets import MAX_PATH, check_peer, listen

MIB = 1 << 20


def wait_until_detached(served, clients: int) -> None:
    """Until the server has let go of everything of its last client."""
    deadline = time.monotonic() + 60
    while served.server.clients != clients or served.server.attachment.state.value != "attached":
        assert time.monotonic() < deadline, "the client is still served"
        time.sleep(0.002)


def resources() -> tuple[int, int]:
    """Descriptors and lines of /proc/self/maps."""
    gc.collect()  # what earlier tests left
    return sum(1 for _ in Path("/proc/self/fd").iterdir()), len(Path("/proc/self/maps").read_text().splitlines())


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def whole_session(raw, memfd: int) -> None:
    """What a client does that then goes without a word."""
    raw.enable()
    for page in range(8):
        assert raw.map(page << 16, 0x1000, memfd, offset=page << 12) == 0
    assert raw.map(0xFFFC0000, 0x40000, None, flags=1) == 0
    fds = [os.eventfd(0) for _ in range(4)]
    assert raw.irqs(0x24, 0, fds=fds[:1]) == 0
    assert raw.irqs(0x14, 0, fds=fds[1:2]) == 0
    assert raw.irqs(0x24, 1, 0, 4, fds=fds) == 0
    error, _, (region,) = raw.call(5, struct.pack("<IIIIQQ", 256, 0, 2, 0, 0, 0))
    assert error == 0
    raw.write(0, 0x10, struct.pack("<Q", 0x10000))
    raw.write32(0, 0x1C, 42)
    raw.write32(0, 0x20, 43)
    raw.read(7, 0, 4096)
    raw.write(2, 0, bytes(0x10000))
    raw.put(8, struct.pack("<IIIII", 20, 0x24, 1, 0, 4), fds)  # not waited for
    raw.put(9, b"half", fds=fds[:1])
    for fd in [region, *fds]:
        os.close(fd)


@pytest.mark.parametrize("keep_state", [False, True])
def test_two_hundred_clients(serve, device, memfd: int, keep_state: bool) -> None:
    served = serve(keep_state=keep_state)
    seen = {}
    for number in range(1, 201):
        raw = served.connect()
        whole_session(raw, memfd)
        raw.close()
        wait_until_detached(served, number)
        if number in (20, 200):
            gc.collect()
            seen[number] = resources(), resident()
    ((descriptors, maps), memory), ((descriptors_then, maps_then), memory_then) = seen[20], seen[200]
    assert descriptors_then <= descriptors, seen
    # The C library's memory for threads grows in steps, and what is logged is kept: little for each client.
    assert maps_then <= maps + 8, seen
    assert abs(memory_then - memory) < 2 * MIB, seen
    assert device.address_space.mappings == []


def test_state_kept_or_lost(serve, device) -> None:
    for keep in (True, False):
        served = serve(keep_state=keep)
        raw = served.connect()
        raw.enable()
        raw.write32(0, 4, 0x77)
        raw.close()
        wait_until_detached(served, 1)
        again = served.connect()
        if keep:
            assert again.read(7, 4, 2) == b"\7\0"
        again.enable()
        assert again.read32(0, 4) == (0x77 if keep else 0)
        again.close()
        wait_until_detached(served, 2)
        served.server.close()


def test_a_failing_add_on_turns_no_client_away(serve, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    served = serve()
    detach = served.server.attachment.detach

    def fail(kind):
        detach(kind)
        raise ExceptionGroup("add-ons", [RuntimeError("the tracer is broken")])

    monkeypatch.setattr(served.server.attachment, "detach", fail)
    for number in (1, 2):
        raw = served.connect()
        raw.enable()
        raw.close()
        wait_until_detached(served, number)
    path = Path(served.server.socket_path)
    served.server.close()
    assert not path.exists()
    assert "the tracer is broken" in caplog.text


def test_end_at_any_byte(serve, device, memfd: int) -> None:
    """The connection ends after each prefix of a session."""
    served = serve()
    messages = [
        (1, b"\0\0\0\0{}\0", ()),
        (2, struct.pack("<IIQQQ", 32, 3, 0, 0, 0x1000), (memfd,)),
        (8, struct.pack("<IIIII", 20, 0x24, 0, 0, 1), (memfd,)),
        (9, struct.pack("<QII", 0, 0, 4), ()),
    ]
    before = None
    count = 0
    for last, (command, payload, fds) in enumerate(messages):
        for cut in range(0, 16 + len(payload) + 1, 3):
            raw = served.connect(negotiate=False)
            for earlier in messages[:last]:
                raw.call(*earlier)
            whole = struct.pack("<HHIII", 1, command, 16 + len(payload), 0, 0) + payload
            if cut:
                socket.send_fds(raw.socket, [whole[:cut]], list(fds))
            raw.close()
            if last:  # VERSION was said
                count += 1
                wait_until_detached(served, count)
                before = before or resources()
    assert resources() == before


def test_another_client_is_turned_away(serve, device, caplog) -> None:
    served = serve()
    first = served.connect()
    first.enable()
    resets = list(device.resets)
    for _ in range(3):
        with pytest.raises(Disconnected, match="another client may be connected"):
            bus.connect(served.server.socket_path)
    assert f"process {os.getpid()} is turned away: process {os.getpid()} is connected" in caplog.text
    assert (served.server.clients, device.resets) == (1, resets)
    assert first.read(7, 4, 2) == b"\7\0"
    first.close()
    second = served.connect()  # at once: it need not see that the server has noticed
    second.enable()
    second.close()


def test_a_client_that_says_nothing_is_sent_away(serve, device, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()
    resets = list(device.resets)
    with monkeypatch.context() as patience:
        patience.setattr("umdev_vfio_user.server.HANDSHAKE_TIMEOUT", 0.01)
        silent = served.connect(negotiate=False)
        with pytest.raises(EOFError):
            silent.get()
        silent.close()
    assert (served.server.clients, device.resets) == (0, resets)
    served.connect().close()


def test_other_devices_are_not_affected(serve, tmp_path: Path) -> None:
    served = serve()
    other = type(served.device)()
    with bus.open_function(other) as function:
        function.enable()
        bad = served.connect(negotiate=False)
        bad.put(9, bytes(16))
        assert bad.get()[3] == errno.EPROTO
        with pytest.raises(EOFError):
            bad.get()
        bad.close()
        assert function.bars[0].read32(0) == 0x5A3B1E
    other.close()


@pytest.mark.parametrize(
    "first",
    [
        (4, struct.pack("<IIII", 16, 0, 0, 0)),
        (9, struct.pack("<QII", 0, 0, 4)),
        (1, b"\1\0\0\0"),
        (1, b"\0\0\0\0nonsense\0"),
        (1, b""),
    ],
)
def test_no_connection_without_version(serve, first: tuple[int, bytes]) -> None:
    raw = serve().connect(negotiate=False)
    assert raw.call(*first)[0] in (errno.EINVAL, errno.EPROTO)
    with pytest.raises(EOFError):
        raw.get()
    raw.close()


def test_socket_file(serve, tmp_path: Path) -> None:
    served = serve()
    path = Path(served.server.socket_path)
    assert path.stat().st_mode & 0o777 == 0o600
    argument = json.loads(served.server.device_argument)
    assert argument == {"driver": "vfio-user-pci", "socket": {"path": str(path), "type": "unix"}}
    served.server.stop()
    served.thread.join()
    served.server.close()
    assert not path.exists()


def test_socket_paths_that_are_refused(device, tmp_path: Path) -> None:
    long = tmp_path / ("x" * (MAX_PATH + 1 - len(str(tmp_path)) - 1))
    assert len(str(long)) == MAX_PATH + 1
    file = tmp_path / "file"
    file.write_text("mine")
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "busy"))
    listening.listen()
    for path, said in (
        (long, "108 bytes"),
        (file, "no socket"),
        (folder / "s", "private"),
        (tmp_path / "absent" / "s", "No such file"),
        (tmp_path / "busy", "another process"),
    ):
        with pytest.raises(SocketPathError, match=said):
            Server(device, path=str(path))
    listening.close()
    assert file.read_text() == "mine"
    assert device.attachment is None
    # The listener is dead now: its socket is replaced.
    with Server(device, path=str(tmp_path / "busy")):
        pass


def test_a_living_server_does_not_notice_who_wants_its_path(serve, device, tmp_path: Path) -> None:
    """A client that comes and goes would reset the device."""
    served = serve()
    resets = list(device.resets)
    for _ in range(3):
        with pytest.raises(SocketPathError, match="another process"):
            listen(served.server.socket_path)
    raw = served.connect()
    raw.enable()  # answered by who has counted it
    assert (served.server.clients, device.resets) == (1, resets)
    raw.close()
    bound = socket.socket(socket.AF_UNIX)  # about to listen
    bound.bind(str(tmp_path / "bound"))
    with pytest.raises(SocketPathError, match="another process"):
        listen(str(tmp_path / "bound"))
    bound.close()
    listen(str(tmp_path / "bound")).close()


def test_arguments(device, tmp_path: Path) -> None:
    for wrong in ({}, {"path": str(tmp_path / "s"), "descriptor": 0}):
        with pytest.raises(InvalidArgument):
            Server(device, **wrong)
    pipe_read, pipe_write = os.pipe()
    for fd in (pipe_read, 10_000):
        with pytest.raises(InvalidArgument):
            Server(device, descriptor=fd)
    os.close(pipe_read)
    os.close(pipe_write)
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with pytest.raises(InvalidArgument):
        Server(device, descriptor=datagram.fileno())
    datagram.close()
    before = resources()
    with Server(device, path=str(tmp_path / "a")), pytest.raises(StateError, match="already attached"):
        Server(device, path=str(tmp_path / "b"))
    assert resources()[0] == before[0]
    assert list(tmp_path.iterdir()) == []


def test_listening_descriptor(device, tmp_path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    listening.listen()
    with Server(device, descriptor=os.dup(listening.fileno())) as server:
        with pytest.raises(StateError):
            _ = server.device_argument
        thread = threading.Thread(target=server.run)
        thread.start()
        for _ in range(3):
            with bus.connect(tmp_path / "s") as function:
                assert function.config.vendor_id == 0x1234
        server.stop()
        thread.join()
    listening.close()


def test_connected_descriptor_ends_with_its_client(device) -> None:
    ours, theirs = socket.socketpair()
    server = Server(device, descriptor=theirs.detach())
    thread = threading.Thread(target=server.run)
    thread.start()
    ours.close()
    thread.join(10)
    assert not thread.is_alive()
    server.run()  # nobody left
    server.close()
    server.close()
    server.stop()
    with pytest.raises(StateError):
        server.run()


def test_stop_with_a_client(serve) -> None:
    served = serve()
    raw = served.connect()
    served.server.stop()
    served.thread.join(10)
    assert not served.thread.is_alive()
    with pytest.raises(EOFError):
        raw.get()
    raw.close()


SERVE = """
import signal, sys
sys.path[:0] = {path!r}
from umdev.plugins import plugins
from umdev.device import Block, Device, MemoryBar, PciId, Register
class Regs(Block):
    ident = Register(0, reset=7)
class Tiny(Device):
    pci = PciId(1, 2, 3)
    bar = MemoryBar(0, Regs, size=16)
server = plugins().load_bus("vfio-user").serve(Tiny(), path=sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: server.stop())
print("ready", flush=True)
server.run()
server.close()
print("done", flush=True)
"""


@pytest.mark.parametrize("connected", [False, True])
def test_sigterm(tmp_path: Path, connected: bool) -> None:
    path = tmp_path / "s"
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE.format(path=sys.path), str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    function = bus.connect(path) if connected else None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("done\n", 0)
    assert not path.exists()
    if function is not None:
        function.close()


def test_killed_server_leaves_a_socket_that_the_next_one_replaces(device, tmp_path: Path) -> None:
    path = tmp_path / "s"
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE.format(path=sys.path), str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate()
    assert path.exists()
    with Server(device, path=str(path)):
        assert path.exists()
    assert not path.exists()


def test_wire_log(serve, tmp_path: Path, memfd: int) -> None:
    log = tmp_path / "wire.log"
    served = serve(wire_log=log)
    raw = served.connect()
    raw.enable()
    raw.read32(0, 0)
    raw.map(0, 0x1000, memfd)
    opened = [int(link.name) for link in Path("/proc/self/fd").iterdir() if os.path.realpath(link) == str(log)]
    assert [os.get_inheritable(descriptor) for descriptor in opened] == [False]
    raw.call(99)
    raw.put(10, struct.pack("<QII", 4, 0, 4) + b"\1\2\3\4", flags=0x10)
    raw.close()
    wait_until_detached(served, 1)
    lines = log.read_text().splitlines()
    assert lines[0] == "CONNECTED client=1"
    assert lines[1].startswith("VERSION id=101 major=0 minor=0 capabilities={max_msg_fds:16")
    assert lines[2:5] == [
        "REGION_WRITE id=102 region=7 offset=0x4 count=2 data=0700",
        "REGION_READ id=103 region=0 offset=0x0 count=4 data=1e3b5a00",
        lines[4],
    ]
    assert lines[4].startswith("DMA_MAP id=104 address=0 size=4096 offset=0 flags=READABLE|WRITABLE descriptor=")
    assert lines[4].endswith(" -> ok")
    assert lines[5] == f"COMMAND_99 id=105 payload= -> error={errno.EOPNOTSUPP} (Operation not supported)"
    assert lines[6:] == ["REGION_WRITE id=0 region=0 offset=0x4 count=4 data=01020304 no-reply", "DISCONNECTED"]


def test_wire_log_of_dma_by_message(device, tmp_path: Path) -> None:
    log = tmp_path / "wire.log"
    with bus.open_function(device, share_memory=False, wire_log=log) as function:
        function.enable()
        with function.allocate(4096) as buffer:
            device.memory.write(buffer.address, bytes(100_000 % 4096))
    lines = [line for line in log.read_text().splitlines() if line.startswith("DMA_W")]
    at = f"address={buffer.address:#x}"
    assert lines == [f"DMA_WRITE id=0 {at} count=0", f"DMA_WRITE id=1 {at} count={100_000 % 4096}"]


def test_peer_of_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    check_peer(ours)
    uid = os.getuid()
    if uid == 0:  # root may always connect; look at a peer that is not
        credentials = struct.pack("iII", 1, 4242, 4242)
        monkeypatch.setattr(socket.socket, "getsockopt", lambda *_: credentials, raising=False)
    else:
        monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with pytest.raises(TransportError, match="may not connect") as refused:
        check_peer(ours)
    assert refused.value.errno == errno.EACCES
    ours.close()
    theirs.close()
