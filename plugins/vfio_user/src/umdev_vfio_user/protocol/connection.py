"""One end of a connection: framing, descriptors, identifiers, requests under way."""

from __future__ import annotations

import enum
import os
from typing import TYPE_CHECKING

from umdev.errors import ProtocolError, StateError

from .constants import MAX_FDS, MAX_MESSAGE, TYPE_MASK, Command, HeaderFlag
from .events import Event, Message, Reply
from .requests import FROM_CLIENT, FROM_SERVER, Refused, decode_request
from .structs import HEADER

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

MAX_UNDER_WAY = 1024
"""Requests that may wait for their replies."""


class Role(enum.Enum):
    """Which end this is: it decides which requests are served."""

    SERVER = "server"
    CLIENT = "client"


class Connection:
    """Bytes and descriptors in, events out; replies and requests as bytes. Does no input or output itself.

    Not safe for concurrent calls. After a ProtocolError the connection is of no use; `close` it.
    Descriptors belong to the message that holds the last byte they came with: one `recvmsg` on a stream socket may
    join earlier messages without descriptors in front, and stops behind the piece that carries some (unix(7)).
    """

    def __init__(self, role: Role) -> None:
        self.role = role
        self._decoders = FROM_CLIENT if role is Role.SERVER else FROM_SERVER
        self._buffer = bytearray()
        self._descriptors: list[tuple[int, int]] = []  # position in the buffer of the last byte, descriptor
        self._under_way: dict[int, Command] = {}
        self._next_id = 0

    def receive(self, data: bytes, descriptors: Sequence[int] = ()) -> list[Event | Reply]:
        """What has become whole by these bytes. The descriptors are the connection's, then the events' takers'.

        Raises: ProtocolError; every descriptor not yet handed out is closed.
        """
        self._buffer += data
        self._descriptors += [(len(self._buffer) - 1, descriptor) for descriptor in descriptors]
        messages: list[Message] = []
        try:
            self._split(messages)
            return [self._event(message) for message in messages]
        except ProtocolError:
            for message in messages:
                for descriptor in message.descriptors:
                    os.close(descriptor)
            self.close()
            raise

    def _split(self, found: list[Message]) -> None:
        """Take whole messages off the buffer."""
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            number, command, size, flags, error = HEADER.unpack_from(self._buffer, start)
            if not HEADER.size <= size <= MAX_MESSAGE or flags & TYPE_MASK > HeaderFlag.REPLY:
                raise ProtocolError(f"a message of {size} bytes with flags {flags:#x}")
            end = start + size
            if len(self._buffer) < end:
                break
            mine = tuple(fd for at, fd in self._descriptors if at < end)
            if len(mine) > MAX_FDS:
                raise ProtocolError(f"{len(mine)} descriptors with one message")
            self._descriptors = [(at, fd) for at, fd in self._descriptors if at >= end]
            payload = bytes(self._buffer[start + HEADER.size : end])
            found.append(Message(number, command, flags, error, payload, mine))
            start = end
        if len(self._descriptors) > MAX_FDS:
            raise ProtocolError(f"{len(self._descriptors)} descriptors with one message")
        del self._buffer[:start]
        self._descriptors = [(at - start, fd) for at, fd in self._descriptors]

    def _event(self, message: Message) -> Event | Reply:
        if message.flags & TYPE_MASK == HeaderFlag.REPLY:
            return self._reply(message)
        try:
            return Event(message, decode_request(message, self._decoders))
        except Refused as refused:
            return Event(message, None, refused.errno or 0)

    def _reply(self, message: Message) -> Reply:
        command = self._under_way.pop(message.id, None)
        if command is None or command != message.command:
            raise ProtocolError(f"a reply to nothing: id {message.id}, command {message.command}")
        failed = message.flags & HeaderFlag.ERROR
        code = message.error if 0 < message.error < 4096 else 5
        return Reply(message.id, command, code if failed else 0, message.payload, message.descriptors)

    def request(
        self, command: Command, payload: bytes = b"", *, reply: bool = True, taken: Container[int] = ()
    ) -> tuple[int, bytes]:
        """A command's identifier, none of `taken`, and bytes. With `reply` False the peer must not answer.

        Raises: StateError when MAX_UNDER_WAY requests wait for replies already.
        """
        if reply and len(self._under_way) >= MAX_UNDER_WAY:
            raise StateError(f"{MAX_UNDER_WAY} requests wait for their replies")
        number = self._next_id
        while number in self._under_way or number in taken:
            number = (number + 1) & 0xFFFF
        self._next_id = (number + 1) & 0xFFFF
        if reply:
            self._under_way[number] = command
        flags = 0 if reply else HeaderFlag.NO_REPLY
        return number, HEADER.pack(number, command, HEADER.size + len(payload), flags, 0) + payload

    def cancel(self, number: int) -> None:
        """The request was not sent, so there is no reply to it."""
        self._under_way.pop(number, None)

    @staticmethod
    def reply(message: Message, payload: bytes = b"", error: int = 0) -> bytes:
        """The bytes of an answer; an error's answer is a header alone. Empty when the peer wants none."""
        if not message.wants_reply:
            return b""
        if error:
            payload = b""
        flags = HeaderFlag.REPLY | (HeaderFlag.ERROR if error else 0)
        return HEADER.pack(message.id, message.command, HEADER.size + len(payload), flags, error) + payload

    @property
    def buffered(self) -> int:
        """Bytes of a message that is not whole yet: at most MAX_MESSAGE and what the last call brought."""
        return len(self._buffer)

    def close(self) -> None:
        """Close the descriptors that no event has handed out. May be called twice."""
        for _, descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        self._buffer.clear()
        self._under_way.clear()
