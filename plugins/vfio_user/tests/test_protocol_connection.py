"""Framing, descriptors, identifiers: the connection without a socket."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from umdev.errors import ProtocolError, StateError
from umdev_vfio_user.protocol import Command, Connection, DeviceReset, Event, Message, Reply, Role
from umdev_vfio_user.protocol.connection import MAX_UNDER_WAY
from umdev_vfio_user.protocol.constants import MAX_MESSAGE

if TYPE_CHECKING:
    from collections.abc import Iterator


def frame(number: int, command: int, payload: bytes = b"", flags: int = 0, error: int = 0) -> bytes:
    return struct.pack("<HHIII", number, command, 16 + len(payload), flags, error) + payload


@pytest.fixture
def fds() -> Iterator[list[int]]:
    made = [os.eventfd(0) for _ in range(20)]
    yield made
    for fd in made:
        if is_open(fd):
            os.close(fd)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_byte_by_byte() -> None:
    server = Connection(Role.SERVER)
    data = frame(7, 13) + frame(8, 13)
    events = [event for byte in data for event in server.receive(bytes([byte]))]
    assert [event.message.id for event in events if isinstance(event, Event)] == [7, 8]
    assert server.buffered == 0


def test_all_at_once() -> None:
    events = Connection(Role.SERVER).receive(b"".join(frame(n, 13) for n in range(100)))
    assert len(events) == 100
    assert all(isinstance(event, Event) and event.request == DeviceReset() for event in events)


def test_descriptors_belong_to_the_message_with_the_last_byte(fds: list[int]) -> None:
    server = Connection(Role.SERVER)
    irqs = struct.pack("<IIIII", 20, 0x24, 2, 0, 1)
    # What recvmsg returns for A, B+fd, C, D+fd: "AB" with one, "CD" with one.
    first = server.receive(frame(1, 13) + frame(2, 8, irqs), [fds[0]])
    second = server.receive(frame(3, 13) + frame(4, 8, irqs)[:20], [fds[1]])
    third = server.receive(frame(4, 8, irqs)[20:])
    found = {
        event.message.id: event.message.descriptors for event in first + second + third if isinstance(event, Event)
    }
    assert found == {1: (), 2: (fds[0],), 3: (), 4: (fds[1],)}


def test_too_many_descriptors(fds: list[int]) -> None:
    server = Connection(Role.SERVER)
    with pytest.raises(ProtocolError):
        server.receive(frame(1, 13), fds[:17])
    assert not any(is_open(fd) for fd in fds[:17])


def test_too_many_descriptors_one_by_one(fds: list[int]) -> None:
    server = Connection(Role.SERVER)
    data = frame(1, 8, bytes(64))
    for position in range(16):
        server.receive(data[position : position + 1], [fds[position]])
    with pytest.raises(ProtocolError):
        server.receive(data[16:17], [fds[16]])
    assert not any(is_open(fd) for fd in fds[:17])


def test_close_closes_what_nobody_took(fds: list[int]) -> None:
    server = Connection(Role.SERVER)
    server.receive(frame(1, 13)[:5], fds[:2])
    server.close()
    server.close()
    assert not is_open(fds[0])
    assert not is_open(fds[1])


def test_a_broken_message_closes_the_descriptors_of_whole_ones(fds: list[int]) -> None:
    server = Connection(Role.SERVER)
    irqs = struct.pack("<IIIII", 20, 0x24, 2, 0, 1)
    with pytest.raises(ProtocolError):
        server.receive(frame(1, 8, irqs) + frame(2, 1, flags=2), [fds[0]])
    assert not is_open(fds[0])


@pytest.mark.parametrize("size", [0, 15, MAX_MESSAGE + 1, 0xFFFFFFFF])
def test_sizes(size: int) -> None:
    with pytest.raises(ProtocolError):
        Connection(Role.SERVER).receive(struct.pack("<HHIII", 1, 13, size, 0, 0))


@pytest.mark.parametrize("kind", range(2, 16))
def test_types(kind: int) -> None:
    with pytest.raises(ProtocolError):
        Connection(Role.SERVER).receive(frame(1, 13, flags=kind))


def test_refusal_carries_the_errno() -> None:
    (event,) = Connection(Role.SERVER).receive(frame(3, 99))
    assert isinstance(event, Event)
    assert event.request is None
    assert event.refused == errno.EOPNOTSUPP
    assert Connection.reply(event.message, b"ignored", event.refused) == frame(3, 99, b"", 0x21, errno.EOPNOTSUPP)


def test_posted_commands_are_never_answered() -> None:
    message = Message(1, 10, 0x10)
    assert Connection.reply(message, b"abc") == b""
    assert Connection.reply(message, error=errno.EINVAL) == b""


def test_requests_and_replies() -> None:
    client = Connection(Role.CLIENT)
    first, data = client.request(Command.DEVICE_RESET)
    assert data == frame(first, 13)
    second, _ = client.request(Command.REGION_READ, b"x" * 16)
    posted, data = client.request(Command.REGION_WRITE, b"y", reply=False)
    assert data == frame(posted, 10, b"y", 0x10)
    # In any order.
    assert client.receive(frame(second, 9, b"data", 1)) == [Reply(second, Command.REGION_READ, 0, b"data")]
    assert client.receive(frame(first, 13, b"", 0x21, 5)) == [Reply(first, Command.DEVICE_RESET, 5, b"")]


@pytest.mark.parametrize(("said", "heard"), [(22, 22), (0, 5), (70000, 5)])
def test_errors_of_the_peer(said: int, heard: int) -> None:
    client = Connection(Role.CLIENT)
    number, _ = client.request(Command.DEVICE_RESET)
    (reply,) = client.receive(frame(number, 13, b"", 0x21, said))
    assert isinstance(reply, Reply)
    assert reply.error == heard


def test_replies_to_nothing(fds: list[int]) -> None:
    client = Connection(Role.CLIENT)
    number, _ = client.request(Command.DEVICE_RESET)
    with pytest.raises(ProtocolError):
        client.receive(frame(number + 1, 13, b"", 1), fds[:1])
    assert not is_open(fds[0])
    other = Connection(Role.CLIENT)
    number, _ = other.request(Command.DEVICE_RESET)
    with pytest.raises(ProtocolError):
        other.receive(frame(number, 9, b"", 1))


def test_identifiers_are_not_used_twice_at_a_time() -> None:
    client = Connection(Role.CLIENT)
    kept, _ = client.request(Command.DEVICE_RESET)
    seen = set()
    for _ in range(70000):
        number, _ = client.request(Command.DEVICE_RESET)
        assert number != kept
        seen.add(number)
        client.receive(frame(number, 13, b"", 1))
    assert len(seen) == 65535


def test_under_way_is_bounded() -> None:
    client = Connection(Role.CLIENT)
    for _ in range(MAX_UNDER_WAY):
        client.request(Command.DEVICE_RESET)
    with pytest.raises(StateError):
        client.request(Command.DEVICE_RESET)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=80), max_size=20), st.sampled_from(list(Role)))
def test_any_bytes(pieces: list[bytes], role: Role) -> None:
    connection = Connection(role)
    try:
        for piece in pieces:
            connection.receive(piece)
            assert connection.buffered <= sum(map(len, pieces))
    except ProtocolError:
        pass


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 20), st.binary(max_size=100), st.integers(0, 0x3F), st.sampled_from(list(Role)))
def test_any_payload(command: int, payload: bytes, flags: int, role: Role) -> None:
    try:
        events = Connection(role).receive(frame(1, command, payload, flags & 0x30))
    except ProtocolError:
        return
    assert len(events) == 1
    assert isinstance(events[0], Event)
    assert (events[0].request is None) == bool(events[0].refused)
