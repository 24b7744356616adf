"""What is said between a protector and its peers: VMMs with the preload library, and devices' processes.

One stream socket per peer. A request is an operation and a length (4 bytes each), then that much; a reply is a status
(a negative errno, or 0 and up) and a length, then that much: numbers of 8 bytes, or a text for a failure. All numbers
are the CPU's own: both ends run on one machine.
"""

from __future__ import annotations

import array
import enum
import os
import socket
import struct
from typing import TYPE_CHECKING

from umdev.errors import Disconnected, InvalidArgument, ProtocolError
from umdev.runtime import runtime_directory

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SOCKET_NAME = "protector"
HEADER = struct.Struct("=Ii")
"""Of a request: length, operation. Of a reply: length, status."""
LEND = struct.Struct("=IiI")
"""Version, errno, way of opening."""
CLIENT = struct.Struct("=iI")
"""Process id of the VMM, mode."""
FILE = struct.Struct("=QQ")
"""Device and inode."""
AREA = struct.Struct("=QQQ")
"""Offset in the file, address in the VMM, length."""
CREDENTIALS = struct.Struct("3i")
PAGES_MAX = 1 << 25
"""Pages that one request arms, or one reply reports: 128 GiB. A device arms all or none of them."""
LENGTH_MAX = 8 * PAGES_MAX
"""Bytes of a request, or of a reply."""
PART = 1 << 20
"""Bytes that are received at a time."""
VERSION = 1
PATIENCE = 5.0
"""Seconds that a device may take over one notification; then its connection ends and the store lands."""
PATIENCE_VARIABLE = "UMDEV_PROTECTOR_PATIENCE"
"""Names other seconds to the process that starts the protector; for who stops at breakpoints in a notification."""
PATIENCE_MAX = 1 << 20


class Operation(enum.IntEnum):
    """What a peer asks for. The preload library knows LEND by its number."""

    LEND = 1
    """From a VMM: two userfaultfds, or why there are none."""
    STAY = 2
    """Live as long as this connection, and answer when a VMM has been prepared for."""
    CLIENT = 3
    """Become a device of a VMM, in one mode; comes with the socket for notifications."""
    AREAS = 4
    """Where the VMM has mapped a file."""
    ARM = 5
    DISARM = 6
    COLLECT = 7
    PAGES = 8
    CLOSE = 9


def socket_path() -> Path:
    """Where the user's protector listens."""
    return runtime_directory() / SOCKET_NAME


def patience() -> float:
    """`PATIENCE`, or what the environment says. Raises: InvalidArgument."""
    text = os.environ.get(PATIENCE_VARIABLE)
    try:
        seconds = PATIENCE if text is None else float(text)
    except ValueError:
        seconds = -1
    if not 0 < seconds <= PATIENCE_MAX:
        raise InvalidArgument(f"{PATIENCE_VARIABLE}={text}: seconds from 0 to {PATIENCE_MAX} are meant")
    return seconds


def receive(link: socket.socket, descriptors: list[int]) -> tuple[int, bytes] | None:
    """One message and the descriptors that come with it; None when the peer has gone between messages.

    Raises: Disconnected (in the middle), ProtocolError, OSError.
    """
    head, found, _, _ = socket.recv_fds(link, HEADER.size, 2, socket.MSG_CMSG_CLOEXEC)
    descriptors.extend(found)
    if not head:
        return None
    length, number = HEADER.unpack(head + _exactly(link, HEADER.size - len(head)))
    if length > LENGTH_MAX:
        raise ProtocolError(f"a message of {length} bytes")
    return number, _exactly(link, length)


def send(link: socket.socket, number: int, body: bytes = b"", descriptors: Iterable[int] = ()) -> None:
    """One message. Raises: OSError."""
    message = HEADER.pack(len(body), number) + body
    sent = socket.send_fds(link, [message], list(descriptors), socket.MSG_NOSIGNAL)
    if sent < len(message):  # even a send of nothing fails when the peer has what it wanted and is gone
        link.sendall(memoryview(message)[sent:], socket.MSG_NOSIGNAL)


def numbers(body: bytes) -> array.array[int]:
    """The numbers of a body. Raises: ProtocolError."""
    if len(body) % 8:
        raise ProtocolError(f"{len(body)} bytes are no numbers of 8 bytes")
    found = array.array("Q")
    found.frombytes(body)
    return found


def body(values: Iterable[int]) -> bytes:
    """Numbers as a body."""
    return array.array("Q", values).tobytes()


def peer(link: socket.socket) -> tuple[int, int]:
    """Process id and user id of who connected."""
    credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    pid, uid, _ = CREDENTIALS.unpack(credentials)
    return pid, uid


def _exactly(link: socket.socket, length: int) -> bytes:
    """The memory grows with what comes, whatever length a header claims."""
    data = bytearray()
    while len(data) < length:
        part = link.recv(min(length - len(data), PART))
        if not part:
            raise Disconnected("the peer went away in the middle of a message")
        data += part
    return bytes(data)
