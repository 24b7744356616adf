"""The C message loop as an object: the server's end of the connection with one client after another."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from umdev.errors import Disconnected, NotSupported, StateError, TransportError

from ._fast import ffi, lib
from .protocol import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

MESSAGE: int = lib.UMDEV_LINK_MESSAGE
STOPPED: int = lib.UMDEV_LINK_STOPPED
CLOSED: int = lib.UMDEV_LINK_CLOSED
BROKEN: int = lib.UMDEV_LINK_BROKEN
INTERRUPTED: int = lib.UMDEV_LINK_INTERRUPTED

READABLE: int = lib.UMDEV_LINK_READABLE
WRITABLE: int = lib.UMDEV_LINK_WRITABLE

NULL: Any = ffi.NULL


@dataclass(frozen=True, slots=True)
class Outcome:
    """Why the loop came back. `message` is there for MESSAGE, `error` (errno) for BROKEN."""

    event: int
    message: Message | None = None
    error: int = 0


class Link:
    """`connect`, `run`, `send` and `disconnect` belong to one thread; everything else may be called from any."""

    def __init__(self, api: int, device: int) -> None:
        """Addresses of the process's `umdev_api` and of the `umdev_device`.

        Raises: NotSupported if the core speaks another ABI; TransportError.
        """
        table = ffi.cast("umdev_api *", api)
        if table.header.major != 1 or table.header.size < ffi.sizeof("umdev_api"):
            has = f"{table.header.major}.{table.header.minor}"
            raise NotSupported(f"umdev-vfio-user was built for ABI 1 of the core, which has {has}: install both anew")
        pointer = lib.umdev_link_new(table, ffi.cast("umdev_device *", device))
        if pointer == ffi.NULL:
            raise TransportError("a message loop: no memory or no descriptor left")
        self._pointer = pointer
        self._message = ffi.new("umdev_link_message *")
        self.logging = False
        """Whether `log` goes anywhere."""

    @property
    def transfer(self) -> Any:
        """The `umdev_message_transfer` that reaches this client's memory."""
        return ffi.cast("umdev_message_transfer", lib.umdev_link_transfer_address())

    @property
    def cancel(self) -> Any:
        """The `umdev_message_cancel` that ends it."""
        return ffi.cast("umdev_message_cancel", lib.umdev_link_cancel_address())

    @property
    def context(self) -> Any:
        """What goes with them, valid until `close`."""
        return ffi.cast("void *", self._open())

    def set_region(self, index: int, size: int, flags: int) -> None:
        """Before the first client: what C lets through to the device."""
        lib.umdev_link_set_region(self._open(), index, size, flags)

    def set_log(self, descriptor: int) -> None:
        """Log every message to the descriptor, which stays the caller's. -1 ends it. Raises: OSError."""
        _check(lib.umdev_link_set_log(self._open(), descriptor))
        self.logging = descriptor >= 0

    def log(self, text: str) -> None:
        """One line of the log, in the order of the messages."""
        lib.umdev_link_log(self._open(), text.encode())

    def connect(self, descriptor: int) -> None:
        """Serve a connected stream socket; the descriptor is the link's from now on."""
        _check(lib.umdev_link_connect(self._open(), descriptor))

    def disconnect(self) -> None:
        """End DMA under way, close the socket and the descriptors that nobody has taken. May be called twice."""
        lib.umdev_link_disconnect(self._open())

    def set_ready(self, max_transfer: int) -> None:
        """Negotiation is over: accesses are served in C."""
        lib.umdev_link_set_ready(self._open(), min(max_transfer, lib.UMDEV_LINK_MAX_TRANSFER))

    def set_slice(self, seconds: float) -> None:
        """For this client: `run` comes back with INTERRUPTED at least so often, for signal handlers; 0: it need not.

        What one read of the socket brought is served first.
        """
        lib.umdev_link_set_slice(self._open(), round(seconds * 1000))

    def set_reply_timeout(self, seconds: float) -> None:
        """How long DMA by message waits for the client."""
        lib.umdev_link_set_reply_timeout(self._open(), max(1, round(seconds * 1000)))

    def run(self) -> Outcome:
        """Serve accesses until something happens that C leaves to Python. Runs without the GIL."""
        message = self._message
        event = lib.umdev_link_run(self._open(), message)
        if event == MESSAGE:
            payload = bytes(ffi.buffer(message.payload, message.length))
            descriptors = tuple(message.fds[0 : message.fd_count])
            return Outcome(event, Message(message.id, message.command, message.flags, 0, payload, descriptors))
        return Outcome(event, None, message.error)

    def stop(self) -> None:
        """End `run` for good; harmless after `close`."""
        if self._pointer is not None:
            lib.umdev_link_stop(self._pointer)

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a whole message. Raises: Disconnected, TransportError."""
        if not data:
            return
        result = lib.umdev_link_send(self._open(), data, len(data), list(descriptors), len(descriptors))
        _check(result)

    def close(self) -> None:
        """End the link. No thread may be inside DMA by message any more. May be called twice."""
        if self._pointer is not None:
            lib.umdev_link_free(self._pointer)
            self._pointer = None

    def _open(self) -> Any:
        if self._pointer is None:
            raise StateError("the link is closed")
        return self._pointer


def _check(result: int) -> None:
    if result >= 0:
        return
    text = f"vfio-user client: {os.strerror(-result)}"
    error = Disconnected(text) if -result == Disconnected.errno else TransportError(text)
    error.errno = -result
    raise error
