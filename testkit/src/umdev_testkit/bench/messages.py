"""vfio-user rows: what an access costs that comes as a message.

The floor is an echo of the same byte counts between two processes on one CPU; the subject is the umdev server in the
place of the echo. One C loop is the client of both, so that only the server differs.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .device import COUNTER_C, COUNTER_PYTHON
from .measure import Pair
from .native import lib, timed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .measure import Round

__all__ = ["echo", "read_c", "read_python", "write_posted"]

# vfio-user specification 0.9.2 (libvfio-user, docs/vfio-user.rst): header, commands, region access.
HEADER = struct.Struct("<HHIII")
ACCESS = struct.Struct("<QII")
VERSION, REGION_READ, REGION_WRITE = 1, 9, 10
NO_REPLY, ERROR = 0x10, 0x20
BAR0, CONFIG = 0, 7
COMMAND_OFFSET, MEMORY_ENABLE = 4, 2  # PCI Local Bus 3.0, section 6.2.2

WIDTH = 4
REQUEST = HEADER.size + ACCESS.size
REPLY = REQUEST + WIDTH
READS = {"count": 4000}
POSTS = {"count": 60, "batch": 1000}
PATIENCE = 10  # seconds for a message, and for a peer to end


@contextmanager
def read_c() -> Iterator[Pair]:
    """A 4-byte read answered by a C handler."""
    with _read(COUNTER_C) as pair:
        yield pair


@contextmanager
def read_python() -> Iterator[Pair]:
    """A 4-byte read answered by a Python handler."""
    with _read(COUNTER_PYTHON) as pair:
        yield pair


@contextmanager
def write_posted() -> Iterator[Pair]:
    """A 4-byte write without reply to a C handler, one send each; the floor is the echo's round trip."""
    post = _message(REGION_WRITE, ACCESS.pack(COUNTER_C, BAR0, WIDTH) + bytes(WIDTH), NO_REPLY)
    drain = _message(REGION_READ, ACCESS.pack(COUNTER_C, BAR0, WIDTH))
    with _device() as client, _peer("echo", str(REQUEST), str(REPLY)) as echo:

        def subject() -> Sequence[float]:
            before = _counter(client, COUNTER_C)
            times = timed(lib.umdev_bench_posts, client.fileno(), post, len(post), drain, len(drain), REPLY, **POSTS)
            _expect_count(before, _counter(client, COUNTER_C), POSTS["count"] * (POSTS["batch"] + 1))
            return times

        yield Pair(subject, lambda: _round_trips(echo, bytes(REQUEST)))


@contextmanager
def echo() -> Iterator[Round]:
    """The floor of this page, for others: rounds of an echo's round trips."""
    with _peer("echo", str(REQUEST), str(REPLY)) as peer:
        yield lambda: _round_trips(peer, bytes(REQUEST))


@contextmanager
def _read(register: int) -> Iterator[Pair]:
    request = _message(REGION_READ, ACCESS.pack(register, BAR0, WIDTH))
    with _device() as client, _peer("echo", str(REQUEST), str(REPLY)) as echo:

        def subject() -> Sequence[float]:
            before = _counter(client, register)
            times = _round_trips(client, request)
            _expect_count(before, _counter(client, register), READS["count"])
            return times

        yield Pair(subject, lambda: _round_trips(echo, bytes(REQUEST)))


def _round_trips(peer: socket.socket, request: bytes) -> Sequence[float]:
    return timed(lib.umdev_bench_round_trips, peer.fileno(), request, len(request), REPLY, **READS)


@contextmanager
def _device() -> Iterator[socket.socket]:
    """The bench device behind a umdev server: negotiated, memory enabled."""
    with _peer("vfio-user") as client:
        capabilities = json.dumps({"capabilities": {"max_msg_fds": 8, "max_data_xfer_size": 1 << 20}})
        _exchange(client, VERSION, struct.pack("<HH", 0, 0) + capabilities.encode().ljust(256, b"\0"))
        command = struct.pack("<H", MEMORY_ENABLE)
        _exchange(client, REGION_WRITE, ACCESS.pack(COMMAND_OFFSET, CONFIG, len(command)) + command)
        yield client


@contextmanager
def _peer(*arguments: str) -> Iterator[socket.socket]:
    """A process of `umdev_testkit.bench.server` at the other end of a socket; it inherits this thread's CPU."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "umdev_testkit.bench.server", str(theirs.fileno()), *arguments],
                pass_fds=[theirs.fileno()],
            )
        try:
            # Not settimeout(): that makes the descriptor non-blocking, and the C loops block.
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", PATIENCE, 0))
            yield ours
        finally:
            ours.close()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


def _message(command: int, body: bytes, flags: int = 0) -> bytes:
    return HEADER.pack(0x1234, command, HEADER.size + len(body), flags, 0) + body


def _exchange(client: socket.socket, command: int, body: bytes) -> bytes:
    """Send a command and return the body of its reply. Raises: OSError with the errno that the server answered."""
    client.sendall(_message(command, body))
    _, _, size, flags, error = HEADER.unpack(_receive(client, HEADER.size))
    reply = _receive(client, size - HEADER.size)
    if flags & ERROR:
        raise OSError(error, f"the server refused command {command}")
    return reply


def _receive(client: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        part = client.recv(length - len(received))
        if not part:
            raise ConnectionError("the server closed the connection")
        received += part
    return received


def _counter(client: socket.socket, register: int) -> int:
    reply = _exchange(client, REGION_READ, ACCESS.pack(register, BAR0, WIDTH))
    return int.from_bytes(reply[ACCESS.size :], "little")


def _expect_count(before: int, after: int, accesses: int) -> None:
    """Every access reached the handler: else the time says nothing. The read of `before` counts too."""
    if (after - before) % 2**32 != accesses + 1:
        raise RuntimeError(f"{accesses} accesses were sent, {after - before - 1} reached the handler")
