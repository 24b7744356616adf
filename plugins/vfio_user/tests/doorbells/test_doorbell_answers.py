"""What the client believes of a server's answer."""

from __future__ import annotations

import os
import struct

import pytest
from umdev.errors import NotSupported, ProtocolError
from umdev_vfio_user import bus
from umdev_vfio_user.io_fds import SubRegion, decode_io_fds

FIXED = struct.Struct("<IIII")
PART = struct.Struct("<QQIIIIQ")


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


def test_descriptors_that_are_no_eventfds(function, monkeypatch: pytest.MonkeyPatch, descriptors) -> None:
    before = descriptors()
    event, (reader, writer) = os.eventfd(0), os.pipe()
    with monkeypatch.context() as patch:
        answer_with(function, patch, answered(part(), part(4, fd=2)), (event, reader, writer))
        with pytest.raises(ProtocolError, match="no eventfd but pipe"):
            function.doorbells(0)
    assert descriptors() == before
    assert list(function.doorbells(0)) == [0x1000, 0x1004, 0x1008, 0x1010]  # a bad answer is not kept


def test_shared_and_unused_descriptors(device, monkeypatch: pytest.MonkeyPatch, descriptors) -> None:
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
