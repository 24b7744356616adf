"""The server: one device, one client at a time, one client after another."""

from __future__ import annotations

import json
import logging
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Literal, Self

from umdev.bus import Attachment, ResetKind, api_address
from umdev.errors import InvalidArgument, StateError, TransportError

from . import link as links
from . import sockets
from .link import Link
from .session import Session

if TYPE_CHECKING:
    import socket
    from types import TracebackType

    from umdev.device import Device

log = logging.getLogger("umdev.vfio_user")

REPLY_TIMEOUT = 5.0
"""Seconds that DMA by message waits for the client."""

ACCEPT_PAUSE = 0.1
"""Seconds before another try when a connection can't be accepted."""


class Server:
    """Serves a device to vfio-user clients. It does not own the device: close that yourself, after the server.

    `run` blocks in one thread, which serves accesses in C without the GIL; `stop` may be called from any thread and
    from a Python signal handler. When a client is gone everything of it is released: maps, eventfds, descriptors.
    """

    def __init__(
        self,
        device: Device,
        *,
        path: str | None = None,
        descriptor: int | None = None,
        wire_log: str | os.PathLike[str] | None = None,
        keep_state: bool = False,
        vector_state: Literal["client", "core"] | None = None,
        reply_timeout: float = REPLY_TIMEOUT,
        hypervisor: str | None = None,
    ) -> None:
        """Listen at `path`, or serve the socket `descriptor`, which is the server's from now on: a connected one, whose
        client is the only one, or a listening one.

        `wire_log`: a file that gets one line per message. `keep_state`: a lost client does not reset the device.
        `vector_state`: who owns MSI-X masks and pending bits; None lets the client say. `hypervisor`: the plugin that
        has services for the client's memory which no message of the client can give (it finds the client's process by
        `client_pid`).

        Raises: InvalidArgument, SocketPathError, StateError (the device is attached already), ServiceUnavailable.
        """
        if (path is None) == (descriptor is None):
            raise InvalidArgument("a server needs a path or a descriptor, and not both")
        self.device = device
        self.socket_path = None if path is None else os.fspath(path)
        self.clients = 0
        """Clients that have been served, the present one included."""
        self.client_pid: int | None = None
        """The process of the client that is connected now, or was last."""
        self._vector_state = vector_state
        self._kind = None if keep_state else ResetKind.CLIENT_LOST
        self._listener: socket.socket | None = None
        self._connected: socket.socket | None = None
        self._stopping = False
        self._running = threading.Lock()
        self._closed = False
        self._ends = threading.RLock()  # what `stop` uses is not closed meanwhile; a signal may come while it is held
        self._inode = -1
        self._open_socket(descriptor)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._link = Link(api_address(), device.native.address)
        try:
            self._link.set_reply_timeout(reply_timeout)
            if wire_log is not None:
                with open(wire_log, "ab") as file:  # noqa: PTH123 - also takes /dev/stderr and the like
                    self._link.set_log(file.fileno())
            self.attachment = Attachment(device, "vfio-user", hypervisor, endpoint=self)
            self._describe_regions()
            self._attach()
        except BaseException:
            self._release()
            raise

    @property
    def device_argument(self) -> str:
        """What follows `-device` on QEMU's command line (QEMU 10.1 or newer).

        Raises: StateError for a server without a path.
        """
        if self.socket_path is None:
            raise StateError("this server has no path that QEMU could connect to")
        address = {"path": os.path.abspath(self.socket_path), "type": "unix"}  # noqa: PTH100 - no symlink is resolved
        return json.dumps({"driver": "vfio-user-pci", "socket": address}, separators=(",", ":"))

    def run(self) -> None:
        """Serve clients until `stop`; with a connected descriptor, until its client is gone.

        Raises: StateError (closed, or running in another thread).
        """
        if not self._running.acquire(blocking=False):
            raise StateError("the server runs already")
        try:
            if self._closed:
                raise StateError("the server is closed")
            while (client := self._next_client()) is not None:
                with client:
                    self._serve(client)
        finally:
            self._running.release()

    def stop(self) -> None:
        """End `run`, now and for good. Any thread, also a signal handler; may be called twice, and after `close`."""
        self._stopping = True
        with self._ends:
            if not self._closed:
                os.eventfd_write(self._wake, 1)
                self._link.stop()

    def close(self) -> None:
        """Stop, wait for `run`, give up the device and remove the socket. May be called twice."""
        if self._closed:
            return
        self.stop()
        with self._running:
            if self._closed:
                return
            try:
                if self.device.attachment is self.attachment:
                    self._detach()
            finally:
                self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _open_socket(self, descriptor: int | None) -> None:
        if descriptor is not None:
            inherited, listening = sockets.inherit(descriptor)
            if listening:
                self._listener = inherited
            else:
                self._connected = inherited
        elif self.socket_path is not None:
            self._listener = sockets.listen(self.socket_path)
            self._inode = os.lstat(self.socket_path).st_ino

    def _describe_regions(self) -> None:
        for index, info in self.attachment.regions.items():
            flags = (links.READABLE if info.readable else 0) | (links.WRITABLE if info.writable else 0)
            self._link.set_region(index, info.size, flags)

    def _attach(self) -> None:
        self.attachment.memory.set_messages(self._link.transfer, self._link.context, self._link.cancel)
        self.attachment.attach()

    def _next_client(self) -> socket.socket | None:
        if self._connected is not None:
            client, self._connected = self._connected, None
            return client
        if self._listener is None:
            return None
        waiting = select.poll()
        waiting.register(self._listener, select.POLLIN)
        waiting.register(self._wake, select.POLLIN)
        while not self._stopping:
            ready = dict(waiting.poll())
            if self._listener.fileno() not in ready or self._stopping:
                continue
            if (accepted := self._accept(self._listener)) is not None:
                return accepted
        return None

    def _accept(self, listener: socket.socket) -> socket.socket | None:
        """The client that knocks; None if it may not come in, or can't."""
        try:
            client, _ = listener.accept()
        except OSError as error:  # no descriptor left, most likely: it can wait
            log.warning("%s: no connection: %s", self.device, error)
            time.sleep(ACCEPT_PAUSE)
            return None
        try:
            sockets.check_peer(client)
        except TransportError as error:
            log.warning("%s: %s", self.device, error)
            client.close()
            return None
        return client

    def _serve(self, client: socket.socket) -> None:
        self.clients += 1
        self.client_pid = sockets.peer_pid(client)
        self._link.connect(client.detach())
        session = Session(self.attachment, self._link, vector_state=self._vector_state)
        self._link.log(f"CONNECTED client={self.clients}")
        try:
            self.attachment.run()
            self._loop(session)
        finally:
            self._link.log("DISCONNECTED")
            # First the link, so that nothing of the device waits for this client any more.
            self._link.disconnect()
            self._detach()
            if not self._stopping and self._listener is not None:
                self._attach()

    def _detach(self) -> None:
        """Detaching finishes whatever models and add-ons raise; that is no reason to turn the next client away."""
        try:
            self.attachment.detach(self._kind)
        except Exception:
            log.exception("%s: a plugin failed while the client was let go", self.device)

    def _loop(self, session: Session) -> None:
        while True:
            outcome = self._link.run()
            if outcome.event == links.INTERRUPTED:
                continue  # Python has run the signal's handler by now
            if outcome.message is None:
                if outcome.event == links.BROKEN:
                    log.warning("%s: the client broke the protocol: %s", self.device, os.strerror(outcome.error))
                return
            try:
                session.answer(outcome.message)
            except TransportError as error:  # gone, too slow to take an answer, or against the protocol
                log.warning("%s: %s", self.device, error)
                return

    def _release(self) -> None:
        with self._ends:
            self._closed = True
            self.device.address_space.set_messages(links.NULL)
            self._link.close()
            os.close(self._wake)
        for end in (self._listener, self._connected):
            if end is not None:
                end.close()
        if self.socket_path is not None:
            sockets.remove(self.socket_path, self._inode)
