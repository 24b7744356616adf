"""VERSION: negotiation, limits, and what is refused."""

from __future__ import annotations

import json

import pytest
from umdev.errors import ProtocolError
from umdev_vfio_user.protocol import Capabilities, decode_version, encode_version, negotiate
from umdev_vfio_user.protocol.version import MAX_DEPTH, MAX_JSON, OURS

QEMU = (
    b"\0\0\0\0"
    b'{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, "max_data_xfer_size": 1048576, '
    b'"migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "write_multiple": true}}\0'
)


def request(minor: int = 0, **capabilities: object) -> bytes:
    return b"\0\0" + minor.to_bytes(2, "little") + json.dumps({"capabilities": capabilities}).encode() + b"\0"


def test_qemu_gets_what_it_knows() -> None:
    client, reply = negotiate(QEMU)
    assert client == Capabilities(max_msg_fds=16, write_multiple=True)
    assert client.vector_state == "client"
    assert len(reply) <= len(QEMU)
    assert reply[:4] == b"\0\0\0\0"  # QEMU proposes 0.0 and refuses a higher minor version
    assert reply[-1:] == b"\0"
    said = json.loads(reply[4:-1])
    assert said == {
        "capabilities": {
            "write_multiple": True,
            "max_msg_fds": 16,
            "max_data_xfer_size": 1 << 20,
            "pgsizes": 4096,
            "max_dma_maps": 65535,
        }
    }


@pytest.mark.parametrize(("proposed", "answered"), [(0, 0), (1, 1), (2, 1), (65535, 1)])
def test_minor_is_the_lower_one(proposed: int, answered: int) -> None:
    _, reply = negotiate(request(proposed))
    assert int.from_bytes(reply[2:4], "little") == answered


def test_reply_never_longer_than_request() -> None:
    for padding in range(200):
        payload = b"\0\0\0\0" + b'{"capabilities":{}' + b" " * padding + b"}\0"
        _, reply = negotiate(payload)
        assert len(reply) <= len(payload)
        if len(reply) > 4:
            json.loads(reply[4:-1])


def test_no_data_at_all() -> None:
    client, reply = negotiate(b"\0\0\1\0")
    assert client == Capabilities()
    assert reply == b"\0\0\1\0"
    assert negotiate(b"\0\0\1\0" + b"\0" * 20)[0] == Capabilities()


def test_write_multiple_only_where_the_client_has_it() -> None:
    _, reply = negotiate(request(padding="x" * 200))
    assert b"write_multiple" not in reply


def test_round_trip() -> None:
    mine = Capabilities(7, 65536, 100, 4096 | 1 << 21, write_multiple=True, vector_state="core")
    assert decode_version(encode_version(0, 1, mine)) == (0, 1, mine)
    assert decode_version(encode_version(0, 1, OURS)) == (0, 1, OURS)


def test_fewer_maps() -> None:
    _, reply = negotiate(request(max_dma_maps=10, padding="x" * 200))
    assert json.loads(reply[4:-1])["capabilities"]["max_dma_maps"] == 10


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0\0\0",
        b"\1\0\0\0",  # another major version
        b"\0\0\0\0{}",  # no NUL
        b"\0\0\0\0{\0",
        b"\0\0\0\0[]\0",
        b"\0\0\0\0nonsense\0",
        b"\0\0\0\0\xff\xfe\0",
        b"\0\0\0\0" + b'{"capabilities":[]}\0',
        b"\0\0\0\0" + b'{"a":"' + b"x" * MAX_JSON + b'"}\0',
        b"\0\0\0\0" + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"\0",
        b"\0\0\0\0" + b'{"capabilities":{"max_msg_fds":' + b"9" * 5000 + b"}}\0",
        request(max_msg_fds=0),
        request(max_msg_fds=-1),
        request(max_msg_fds=254),
        request(max_msg_fds=True),
        request(max_msg_fds="16"),
        request(max_data_xfer_size=1.5),
        request(max_data_xfer_size=1 << 64),
        request(pgsizes=1 << 64),
        request(write_multiple=1),
    ],
)
def test_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        negotiate(payload)
