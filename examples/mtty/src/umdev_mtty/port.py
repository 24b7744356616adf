"""The host's end of a serial port: a pseudo-terminal, or a unix socket that one peer connects to."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import selectors
import socket
import threading
import time
import tty
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from umdev.device import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

OUTGOING_LIMIT = 4096
"""Bytes of the guest that wait for a slow host; then the transmitter reports itself busy."""

ACCEPT_PAUSE = 0.1
"""Seconds before another try when a connection can't be accepted."""

_log = logging.getLogger("umdev.mtty")


class Receiver(Protocol):
    """The UART as its host port sees it. All calls are made with the device lock held."""

    @property
    def room(self) -> int:
        """How many bytes fit."""

    def receive(self, data: bytes) -> None:
        """Take them."""

    def transmitter_ready(self) -> None:
        """Room to send again."""

    def carrier(self, connected: bool) -> None:
        """The peer came or went."""


def check_place(where: str) -> None:
    """Raises: InvalidArgument for what is neither "pty" nor "unix:PATH"."""
    kind, _, path = where.partition(":")
    if where != "pty" and not (kind == "unix" and path):
        raise InvalidArgument(f"a serial port goes to 'pty' or 'unix:PATH', not to {where!r}")


class HostPort:
    """Moves bytes between a descriptor and a UART, in a thread of its own.

    `where` is "pty" or "unix:PATH". `path` is what a person opens: the terminal's name, or the socket.
    What the guest can't take yet stays in the host's buffers; the other way round the transmitter stays busy. A driver
    that writes to a busy transmitter loses the byte, as on hardware; `lost` counts them.
    """

    def __init__(self, where: str, uart: Receiver, lock: Callable[[], AbstractContextManager[object]]) -> None:
        """Take all that it needs of the host, or nothing.

        Raises: InvalidArgument for another kind of place; OSError where the host refuses it, RuntimeError a thread.
        """
        check_place(where)
        self._uart = uart
        self._lock = lock
        self._outgoing = bytearray()
        self.lost = 0
        self._listener: socket.socket | None = None
        self._peer: socket.socket | None = None
        self._terminal: int | None = None
        self._go = threading.Event()
        self._closing = False
        with ExitStack() as taken:
            if where == "pty":
                self.path = self._open_terminal(taken)
            else:
                self.path = where.removeprefix("unix:")
                self._listener = self._listen(taken)
            self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            taken.callback(os.close, self._wake_read)
            taken.callback(os.close, self._wake_write)
            self._thread = threading.Thread(target=self._serve, name=f"mtty-{self.path}", daemon=True)
            self._thread.start()  # here, where it may be refused, though it waits for `start`
            self._taken = taken.pop_all()

    def _open_terminal(self, taken: ExitStack) -> str:
        self._terminal, follower = os.openpty()  # both held open, so that a reader may come and go
        taken.callback(os.close, self._terminal)
        taken.callback(os.close, follower)
        tty.setraw(follower)
        os.set_blocking(self._terminal, False)
        return os.ttyname(follower)

    def _listen(self, taken: ExitStack) -> socket.socket:
        listener = taken.enter_context(socket.socket(socket.AF_UNIX))
        try:
            listener.bind(self.path)
        except OSError as error:  # a path that is too long has no number
            number = error.errno or errno.ENAMETOOLONG
            raise OSError(number, error.strerror or str(error), self.path) from error
        taken.callback(Path(self.path).unlink, missing_ok=True)
        Path(self.path).chmod(0o600)
        listener.listen(1)
        listener.setblocking(False)
        return listener

    def start(self) -> None:
        """Begin to move bytes. Never fails."""
        self._go.set()

    @property
    def connected(self) -> bool:
        """Whether somebody can be at the other end."""
        return self._terminal is not None or self._peer is not None

    def send(self, byte: int) -> bool:
        """Queue a byte of the guest; False when the queue is full now. Device lock held; never blocks."""
        if len(self._outgoing) == OUTGOING_LIMIT:
            self.lost += 1
            return False
        self._outgoing.append(byte)
        if len(self._outgoing) == 1:  # else the thread has been told, and takes all that is there
            self.wake()
        return len(self._outgoing) < OUTGOING_LIMIT

    def wake(self) -> None:
        """Look again: there may be room, or something to send."""
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._wake_write, b"\0")

    def close(self) -> None:
        """Stop, and remove the socket. Once; after `start` without the device lock, which the thread may wait for."""
        self._closing = True
        self._go.set()
        self.wake()
        self._thread.join()
        self._drop_peer()
        self._taken.close()

    def _serve(self) -> None:
        self._go.wait()
        while not self._closing:
            try:
                self._turn()
            except OSError:
                with self._lock():
                    self._drop_peer()
                    self._uart.carrier(connected=False)

    def _turn(self) -> None:
        """Wait for something to do and do it once."""
        wire = self._terminal if self._peer is None else self._peer.fileno()
        with self._lock():
            room, sending = self._uart.room, bool(self._outgoing)
        with selectors.PollSelector() as selector:  # takes no descriptor, which may be the very thing that is missing
            selector.register(self._wake_read, selectors.EVENT_READ)
            if wire is not None:
                events = (selectors.EVENT_READ if room else 0) | (selectors.EVENT_WRITE if sending else 0)
                if events:
                    selector.register(wire, events)
            elif self._listener is not None:
                selector.register(self._listener, selectors.EVENT_READ)
            ready = {key.fd: mask for key, mask in selector.select()}
        if self._wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        if self._listener is not None and self._listener.fileno() in ready:
            self._accept(self._listener)
        if wire is not None:
            if ready.get(wire, 0) & selectors.EVENT_WRITE:
                self._flush(wire)
            if ready.get(wire, 0) & selectors.EVENT_READ:
                self._fill(wire)

    def _accept(self, listener: socket.socket) -> None:
        try:
            self._peer, _ = listener.accept()
        except OSError as error:  # no descriptor left, most likely: it can wait
            _log.warning("%s: no connection: %s", self.path, error)
            time.sleep(ACCEPT_PAUSE)
            return
        self._peer.setblocking(False)
        with self._lock():
            self._uart.carrier(connected=True)

    def _flush(self, wire: int) -> None:
        with self._lock():
            waiting = bytes(self._outgoing)
        sent = os.write(wire, waiting)
        with self._lock():
            was_full = len(self._outgoing) >= OUTGOING_LIMIT
            del self._outgoing[:sent]
            if was_full and len(self._outgoing) < OUTGOING_LIMIT:
                self._uart.transmitter_ready()

    def _fill(self, wire: int) -> None:
        with self._lock():  # the driver may have withdrawn its request to send since the descriptor was looked at
            room = self._uart.room
            if not room:
                return
            data = os.read(wire, room)
            if not data:
                raise ConnectionResetError
            self._uart.receive(data)

    def _drop_peer(self) -> None:
        if self._peer is not None:
            self._peer.close()
            self._peer = None
