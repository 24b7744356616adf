"""The control socket of a host process: who asks what, and how messages are framed.

A message is its length (4 bytes, little endian) and that much MessagePack. Every request gets one reply. Only the same
user and root are heard.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import msgspec
from umdev.errors import Disconnected, ProtocolError

from .failures import RemoteError, exit_code, line

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "Add",
    "Entry",
    "Failed",
    "Query",
    "Reply",
    "Request",
    "Show",
    "Stop",
    "Trace",
    "Traced",
    "call",
    "connect",
    "failed",
    "listen",
]

REQUEST_LIMIT = 1 << 20
REPLY_LIMIT = 256 << 20
"""Bytes: a reply may carry a screenshot."""
_LENGTH = struct.Struct("<I")
_BUSY_POLL = 0.01
_PEER = struct.Struct("3i")


class Add(msgspec.Struct, tag_field="verb", tag=True):
    """Make a device and serve it; the reply is what `Show` says of it."""

    uuid: str
    type: str
    attributes: dict[str, str]
    socket: str | None
    """Where the bus listens; None: in the runtime directory."""
    wire_log: str | None = None
    """A file for every message of the bus, if it can write one."""
    options: dict[str, Any] = {}
    """The bus's own (`serve_options`), by name."""


class Stop(msgspec.Struct, tag_field="verb", tag=True):
    """End a device. The reply says whether the process ends with it."""

    uuid: str


class Show(msgspec.Struct, tag_field="verb", tag=True):
    """Describe a device."""

    uuid: str


class Query(msgspec.Struct, tag_field="verb", tag=True):
    """Call a query of the model."""

    uuid: str
    name: str
    arguments: dict[str, Any]


class Trace(msgspec.Struct, tag_field="verb", tag=True):
    """Follow a device: after the reply come `Traced` messages until the device or the connection is gone."""

    uuid: str
    patterns: list[str]
    """Names, with `*` and `?`; none: all."""
    records: int
    """Kept per thread until they are read."""


Request = Add | Stop | Show | Query | Trace


class Entry(msgspec.Struct, array_like=True):
    """One access or event. Times in ns, of the host's CLOCK_MONOTONIC."""

    time: int
    kind: str
    """`read`, `write` or `event`."""
    name: str
    text: str
    """For people, without the time."""
    value: int
    offset: int
    """In the region; of an event: an address of the model's choice."""
    length: int
    duration: int
    outcome: str
    thread: int


class Traced(msgspec.Struct, array_like=True):
    """What came since the last message, and how much is lost because it was not read in time."""

    entries: list[Entry]
    lost: int
    over: bool = False
    """The last message: the device has gone."""


class Done(msgspec.Struct, tag_field="verb", tag=True):
    """The request was served."""

    result: Any = None


class Failed(msgspec.Struct, tag_field="verb", tag=True):
    """The request failed: the error's name, text and exit code."""

    error: str
    text: str
    code: int


Reply = Done | Failed


def failed(error: BaseException) -> Failed:
    """An error as it crosses to the command."""
    name, _, text = line(error).partition(": ")
    return Failed(name, text, exit_code(error))


def listen(folder: Path) -> socket.socket:
    """A listening control socket in a folder, for its owner only."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.fchmod(listener.fileno(), 0o600)  # the mode that bind gives the file
    with _short(folder) as short:
        listener.bind(f"{short}/control")
    listener.listen()
    return listener


def connect(folder: Path, timeout: float) -> socket.socket:
    """Raises: Disconnected when nobody listens there, or has no place for more clients for `timeout` seconds."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    deadline = time.monotonic() + timeout
    try:
        with _short(folder) as short:
            while True:
                try:
                    connection.connect(f"{short}/control")
                    break
                except BlockingIOError:  # so many clients wait already (unix(7), EAGAIN)
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(_BUSY_POLL)
    except BlockingIOError as error:
        connection.close()
        raise Disconnected(f"the process in {folder} lives, but takes no more clients") from error
    except OSError as error:
        connection.close()
        raise Disconnected(f"no process answers in {folder}: {error.strerror or error}") from error
    return connection


def peer_is_trusted(connection: socket.socket) -> bool:
    """Whether the other end is the same user or root."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _pid, user, _group = _PEER.unpack(credentials)
    return user in (0, os.geteuid())


def call(folder: Path, request: Request, timeout: float = 60.0) -> Any:
    """Ask the host process in a folder and return its result.

    Raises: RemoteError with what it answered; Disconnected; ProtocolError.
    """
    with connect(folder, timeout) as connection:
        try:
            send(connection, msgspec.msgpack.encode(request))
            body = receive(connection, REPLY_LIMIT)
        except OSError as error:
            if isinstance(error, Disconnected | ProtocolError):
                raise
            raise Disconnected(f"the process in {folder} did not answer: {error}") from error
    if body is None:
        raise Disconnected(f"the process in {folder} ended before it answered")
    return unwrap(body)


def unwrap(body: bytes) -> Any:
    """The result in a reply. Raises: RemoteError, ProtocolError."""
    try:
        reply = msgspec.msgpack.decode(body, type=Reply)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the host process sent no reply: {error}") from error
    if isinstance(reply, Failed):
        raise RemoteError(reply.error, reply.text, reply.code)
    return reply.result


def send(connection: socket.socket, body: bytes) -> None:
    """Write one message."""
    connection.sendall(framed(body))


def framed(body: bytes) -> bytes:
    """A message as it goes over the socket."""
    return _LENGTH.pack(len(body)) + body


def receive(connection: socket.socket, limit: int) -> bytes | None:
    """Read one message; None when the peer closed instead. Raises: ProtocolError."""
    head = _exactly(connection, _LENGTH.size)
    if not head:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > limit:
        raise ProtocolError(f"a message of {length} bytes; the limit is {limit}")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = connection.recv(min(length - len(parts), 1 << 20))
        if not part:
            if parts or length != _LENGTH.size:
                raise ProtocolError("a message ended early")
            break
        parts += part
    return bytes(parts)


@contextlib.contextmanager
def _short(folder: Path) -> Any:
    """The folder under a short name: a unix socket's path has 107 bytes at most, a folder's may be longer."""
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Disconnected(f"no process answers in {folder}: {error.strerror}") from error
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
