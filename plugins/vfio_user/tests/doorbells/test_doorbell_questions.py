"""Which doorbells the server offers, and to whom."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

FIXED = struct.Struct("<IIII")


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def test_what_is_offered(raw, device, eventually) -> None:
    fixed, parts, fds = raw.doorbells(0)
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
    close_all(fds)


def test_ports_are_ports(raw, device, eventually) -> None:
    fixed, parts, fds = raw.doorbells(5)
    assert fixed == (56, 0, 5, 1)
    assert parts == [(4, 4, 0, 0, 2, 0, 0)]
    os.eventfd_write(fds[0], 1)
    eventually(lambda: device.seen == [("port", 0)])
    close_all(fds)


@pytest.mark.parametrize("index", [1, 3, 4, 6, 7, 8])
def test_regions_without_doorbells(raw, index: int, watchers) -> None:
    assert raw.doorbells(index) == ((16, 0, index, 0), [], [])
    assert watchers() == 0


@pytest.mark.parametrize("room", [16, 17, 16 + 4 * 40 - 1])
def test_too_little_room(raw, room: int, watchers) -> None:
    assert raw.doorbells(0, room) == ((16 + 4 * 40, 0, 0, 4), [], [])
    assert watchers() == 0
    fixed, _, fds = raw.doorbells(0, 16 + 4 * 40)
    assert (fixed[3], len(fds)) == (4, 4)
    close_all(fds)


@pytest.mark.parametrize(
    ("capabilities", "most"),
    [(b'{"max_msg_fds":3}', 3), (b"{}", 1), (b'{"max_msg_fds":100}', 16), (b'{"max_msg_fds":16}', 16)],
)
def test_no_more_descriptors_than_a_message_may_have(serve, device, capabilities: bytes, most: int, eventually) -> None:
    raw = serve().connect(negotiate=False)
    raw.negotiate(b'\0\0\0\0{"capabilities":' + capabilities + b"}" + b" " * 200 + b"\0")
    raw.enable()
    fixed, parts, fds = raw.doorbells(2)
    assert (fixed, len(fds)) == ((16 + most * 40, 0, 2, most), most)
    assert [(part[0], part[2]) for part in parts] == [(4 * number, number) for number in range(most)]
    os.eventfd_write(fds[-1], 1)
    eventually(lambda: device.seen == [(most - 1, 0)])
    raw.write32(2, 4 * most, 7)  # the next one is trapped, and sees as little
    assert device.seen[1:] == [(most, 0)]
    close_all(fds)
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
def test_malformed_questions(raw, memfd: int, payload: bytes, fds: bool, watchers) -> None:
    assert raw.call(6, payload, (memfd,) if fds else ()) == (errno.EINVAL, b"", [])
    assert watchers() == 0
    close_all(raw.doorbells(0)[2])


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


def test_asking_again_gives_the_same(raw, device, eventually, descriptors, watchers) -> None:
    first = raw.doorbells(0)[2]
    before = descriptors()
    for _ in range(100):
        close_all(raw.doorbells(0)[2])
    assert descriptors() == before
    again = raw.doorbells(0)[2]
    os.set_blocking(again[0], False)
    with device.locked():
        os.eventfd_write(first[0], 1)
        os.eventfd_write(again[0], 1)
    eventually(lambda: device.seen)
    close_all(first + again)
    assert watchers() == 1
