"""The client's end of a connection: requests and their replies, DMA of the server served in between."""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from umdev.errors import (
    Conflict,
    Disconnected,
    InvalidArgument,
    NotSupported,
    ProtocolError,
    TransportError,
    UmdevError,
)

from . import sockets
from .protocol import Connection, DmaRead, DmaWrite, Event, Reply, Role
from .protocol import structs as layout
from .protocol.constants import MAX_FDS, Command
from .protocol.version import MAJOR, MINOR, OURS, Capabilities, decode_version, encode_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

TIMEOUT = 5.0
"""Seconds to wait for a reply: QEMU's own default."""

TIMEOUT_MAX = 86_400.0

_Reason = TypeVar("_Reason", bound=BaseException)
_CHUNK = 1 << 18
_SEND_FLAGS = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
_NO_ROOM = (errno.ETOOMANYREFS, errno.EMFILE, errno.ENOBUFS, errno.ENOMEM)
_ANCILLARY = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
_REFUSED: dict[int, type[UmdevError]] = {
    errno.EINVAL: InvalidArgument,
    errno.E2BIG: InvalidArgument,
    errno.EEXIST: Conflict,
    errno.EOPNOTSUPP: NotSupported,
    errno.ENOTTY: NotSupported,
}


class Memory(Protocol):
    """What the server's DMA_READ and DMA_WRITE reach. Any thread; raises UmdevError, whose errno is answered."""

    def read(self, address: int, count: int) -> bytes:
        """Bytes as the device reads them."""

    def write(self, address: int, data: bytes) -> None:
        """Bytes as the device writes them."""


class Client:
    """Any thread may make requests; replies are matched by identifier, so requests of many threads overlap.

    Whoever waits for a reply receives for everybody. The server's own requests are answered by whoever receives, so
    a client whose memory is reached by message also needs `serve_memory`, which receives while nobody waits.
    After Disconnected, ProtocolError or a reply that did not come in time the client is of no use; close it.
    A request that KeyboardInterrupt ends is forgotten, and so is its reply; where it may have stopped in the middle of
    a message the client is of no use, either.
    """

    def __init__(
        self,
        end: socket.socket,
        *,
        memory: Memory | None = None,
        timeout: float = TIMEOUT,
        capabilities: Capabilities = OURS,
    ) -> None:
        """Take over a connected stream socket and negotiate. `timeout` is in seconds, for every message and its reply.

        Raises: InvalidArgument (and the socket stays the caller's), ProtocolError, Disconnected, TransportError.
        """
        _check_timeout(timeout)
        self._socket = end
        self._socket.setblocking(True)
        self._connection = Connection(Role.CLIENT)
        self._memory = memory
        self._timeout = timeout
        self._changed = threading.Condition()  # guards what follows and the connection
        self._replies: dict[int, Reply] = {}
        self._forgotten: set[int] = set()
        self._abandoned: BaseException | None = None
        self._receiving = False
        self._sending = threading.Lock()
        self._closed = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._service: threading.Thread | None = None
        self._pid = os.getpid()
        try:
            self.server = self._negotiate(capabilities)
            """What the server can do."""
        except BaseException:
            self.close()
            raise

    @classmethod
    def connect(
        cls, path: str, *, memory: Memory | None = None, timeout: float = TIMEOUT, capabilities: Capabilities = OURS
    ) -> Client:
        """A client of the server that listens at `path`. Raises: SocketPathError, and as the constructor."""
        _check_timeout(timeout)
        end = sockets.connect(path, timeout)
        return cls(end, memory=memory, timeout=timeout, capabilities=capabilities)

    def _negotiate(self, capabilities: Capabilities) -> Capabilities:
        try:
            reply, _ = self.request(Command.VERSION, encode_version(MAJOR, MINOR, capabilities))
        except Disconnected as error:
            why = "another client may be connected, see the server's log"
            raise Disconnected(f"the server ended the connection before it began: {why} ({error})") from error
        major, minor, server = decode_version(reply)
        if major != MAJOR or minor > MINOR:
            raise ProtocolError(f"the server speaks vfio-user {major}.{minor}, this end {MAJOR}.{MINOR}")
        return server

    def request(
        self, command: Command, payload: bytes = b"", descriptors: Sequence[int] = ()
    ) -> tuple[bytes, tuple[int, ...]]:
        """Payload and descriptors of the reply; the descriptors are the caller's.

        Raises: InvalidArgument, Conflict, NotSupported or TransportError with the server's errno; InvalidArgument for
        a bad descriptor; Disconnected; TransportError with ETIMEDOUT.
        """
        self._expect_own()
        with self._changed:
            self._check()
            number, data = self._connection.request(command, payload, taken=self._replies)
        try:
            self._send(data, descriptors)
        except BaseException:
            with self._changed:
                self._connection.cancel(number)
            raise
        try:
            reply = self._wait(number, command)
        except BaseException:
            self._forget(number)
            raise
        if reply.error:
            _close(reply.descriptors)
            refused = _REFUSED.get(reply.error, TransportError)(f"{command.name}: {os.strerror(reply.error)}")
            refused.errno = reply.error
            raise refused
        return reply.payload, reply.descriptors

    def post(self, command: Command, payload: bytes = b"") -> None:
        """A request that the server never answers. Raises: Disconnected."""
        self._expect_own()
        with self._changed:
            self._check()
            _, data = self._connection.request(command, payload, reply=False)
        self._send(data)

    def serve_memory(self) -> None:
        """Answer the server's DMA at any time from now on, in a thread that ends with `close`.

        Raises: TransportError when the process can't have the thread.
        """
        service = threading.Thread(target=self._serve, name="vfio-user client", daemon=True)
        try:
            service.start()
        except RuntimeError as error:
            raise TransportError(f"no thread is left to serve the server's DMA: {error}") from error
        self._service = service

    def close(self) -> None:
        """End the connection; requests under way raise Disconnected. May be called twice.

        In a process that was forked since, the connection stays its parent's.
        """
        if os.getpid() != self._pid:
            self._close_copy()
            return
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._abandon(Disconnected("this client is closed"))
        os.eventfd_write(self._wake, 1)
        self._shutdown()
        if self._service is not None and self._service is not threading.current_thread():
            self._service.join()
        with self._changed:
            while self._receiving:
                self._changed.wait()
            self._connection.close()
            for reply in self._replies.values():
                _close(reply.descriptors)
            self._replies.clear()
        self._socket.close()
        os.close(self._wake)

    def _close_copy(self) -> None:
        """Neither threads nor what they hold live on in a child, so it waits for nothing."""
        if not self._closed:
            self._closed = True
            self._abandoned = Disconnected("this client is closed")
            self._socket.close()
            os.close(self._wake)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # Inside. `_changed` is held where a docstring says so.

    def _expect_own(self) -> None:
        """Before any lock: in a forked process, a thread that is not there may hold it."""
        if os.getpid() != self._pid:
            raise Disconnected("no connection: it belongs to the process that forked this one")

    def _check(self) -> None:
        if self._abandoned is not None:
            raise Disconnected(f"no connection: {str(self._abandoned) or type(self._abandoned).__name__}")

    def _abandon(self, reason: BaseException) -> None:
        """`_changed` is held."""
        if self._abandoned is None:
            self._abandoned = reason
        self._changed.notify_all()

    def _shutdown(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the peer was faster

    def _send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """A whole message, or none of it: else the connection is abandoned.

        Raises: InvalidArgument for a bad descriptor, TransportError, Disconnected.
        """
        end = time.monotonic() + self._timeout
        if not self._sending.acquire(timeout=self._timeout):
            raise self._abandoned_by(_late("the server takes no messages", self._timeout))
        rest, begun = memoryview(data), False
        try:
            while rest:
                begun = len(rest) < len(data)
                try:
                    sent = self._send_some(rest, () if begun else descriptors)
                except BlockingIOError:
                    self._wait_for_room(end)
                else:
                    rest = rest[sent:]
        except BaseException as error:
            if isinstance(error, OSError) and not isinstance(error, UmdevError):
                self._check()  # another thread may have closed the socket
                if not begun and error.errno == errno.EBADF:
                    raise InvalidArgument(f"one of the descriptors {list(descriptors)} is not open") from error
                if not begun and error.errno in _NO_ROOM:
                    failed = TransportError(f"descriptors cannot be sent: {error.strerror}")
                    failed.errno = error.errno
                    raise failed from error
                raise self._abandoned_by(Disconnected(f"the server is gone: {error.strerror or error}")) from error
            if isinstance(error, OverflowError):  # array's, before anything is sent
                raise InvalidArgument(f"one of the descriptors {list(descriptors)} is no descriptor") from error
            # An interrupt tells nothing of what has been sent; other exceptions come before the first byte.
            if begun or not isinstance(error, Exception):
                self._abandoned_by(error)
            raise
        finally:
            self._sending.release()

    def _send_some(self, data: memoryview, descriptors: Sequence[int]) -> int:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        # Not socket.send_fds: it drops the flags.
        return self._socket.sendmsg([data], rights, _SEND_FLAGS)

    def _wait_for_room(self, end: float) -> None:
        ready = select.poll()
        ready.register(self._socket, select.POLLOUT)
        left = end - time.monotonic()
        if left <= 0 or not ready.poll(max(1, round(left * 1000))):
            raise self._abandoned_by(_late("the server takes no messages", self._timeout))

    def _abandoned_by(self, reason: _Reason) -> _Reason:
        with self._changed:
            self._abandon(reason)
        return reason

    def _forget(self, number: int) -> None:
        """Nobody waits for this reply any more; its number stays taken until it comes."""
        with self._changed:
            reply = self._replies.pop(number, None)
            if reply is None:
                self._forgotten.add(number)
            else:
                _close(reply.descriptors)

    def _wait(self, number: int, command: Command) -> Reply:
        deadline = time.monotonic() + self._timeout
        with self._changed:
            while number not in self._replies:
                self._check()
                left = deadline - time.monotonic()
                if left <= 0:
                    late = _late(f"{command.name}: no reply", self._timeout)
                    self._abandon(late)
                    raise late
                self._receive(left)
            return self._replies.pop(number)

    def _serve(self) -> None:
        with self._changed:
            while self._abandoned is None:
                self._receive(None)

    def _receive(self, timeout: float | None) -> None:
        """Receive once, or wait until who does has done so. `_changed` is held."""
        if self._receiving:
            self._changed.wait(timeout)
            return
        self._receiving = True
        requests: list[Event] = []
        try:
            self._changed.release()
            try:
                ready = self._wait_for_bytes(timeout)
            finally:
                self._changed.acquire()
            if ready:
                requests = self._take_bytes()
        finally:
            self._receiving = False
            self._changed.notify_all()
        if requests:
            self._changed.release()
            try:
                for event in requests:
                    self._answer(event)
            except BaseException as error:  # the server would wait for its answer
                self._abandoned_by(error)
                raise
            finally:
                self._changed.acquire()

    def _take_bytes(self) -> list[Event]:
        """Requests of the server among what has come; replies are stored. `_changed` is held.

        What is not taken whole can't be told from what follows: any exception ends the connection.
        """
        try:
            received = self._receive_bytes()
            events = self._connection.receive(*received) if received is not None else []
            for event in events:
                if not isinstance(event, Reply):
                    continue
                if event.id in self._forgotten:
                    self._forgotten.remove(event.id)
                    _close(event.descriptors)
                else:
                    self._replies[event.id] = event
            return [event for event in events if isinstance(event, Event)]
        except (OSError, ProtocolError) as error:
            self._abandon(error)
            return []
        except BaseException as error:
            self._abandon(error)
            raise

    def _wait_for_bytes(self, timeout: float | None) -> bool:
        ready = select.poll()
        ready.register(self._socket, select.POLLIN)
        ready.register(self._wake, select.POLLIN)
        return bool(ready.poll(None if timeout is None else max(1, round(timeout * 1000))))

    def _receive_bytes(self) -> tuple[bytes, list[int]] | None:
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                _CHUNK, _ANCILLARY, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        descriptors = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
        if not data or flags & socket.MSG_CTRUNC:
            _close(descriptors)
            raise Disconnected("the server is gone" if not data else "the server sent too many descriptors")
        return data, list(descriptors)

    def _answer(self, event: Event) -> None:
        message, request = event.message, event.request
        _close(message.descriptors)
        payload, code = b"", event.refused
        try:
            if self._memory is None or request is None:
                code = code or errno.EFAULT
            elif isinstance(request, DmaRead):
                data = self._memory.read(request.address, request.count)
                payload = layout.DMA_ACCESS.pack(request.address, request.count) + data
            elif isinstance(request, DmaWrite):
                self._memory.write(request.address, request.data)
                payload = layout.DMA_ACCESS.pack(request.address, len(request.data))
        except UmdevError as error:
            code = error.errno or errno.EIO
        answer = Connection.reply(message, payload, code)
        if answer:
            try:
                self._send(answer)
            except TransportError:
                return  # whoever waits learns it from the connection's state


def _check_timeout(timeout: float) -> None:
    if not 0 < timeout <= TIMEOUT_MAX:
        raise InvalidArgument(f"a timeout of {timeout} s; above 0 and at most {TIMEOUT_MAX:.0f}")


def _late(what: str, timeout: float) -> TransportError:
    late = TransportError(f"{what} within {timeout} s")
    late.errno = errno.ETIMEDOUT
    return late


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
