"""The server: one device, one client at a time, one client after another."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Literal, Self

from umdev.bus import Attachment, AttachmentState, ResetKind, api_address
from umdev.errors import InvalidArgument, StateError, TransportError, UmdevError

from . import link as links
from . import sockets
from .link import Link
from .lookout import ACCEPT_PAUSE, Lookout
from .session import Session, ends_process

if TYPE_CHECKING:
    import socket
    from types import TracebackType

    from umdev.device import Device

log = logging.getLogger("umdev.vfio_user")

REPLY_TIMEOUT = 5.0
"""Seconds that DMA by message waits for the client."""

REPLY_TIMEOUT_MAX = 86_400.0

HANDSHAKE_TIMEOUT = 5.0
"""Seconds for a client to say VERSION after it has connected."""

SLICE = 0.1
"""Seconds after which the message loop lets Python run signal handlers, in the main thread."""

WAKE_PAUSE_MS = 1000
"""A signal that comes just before Python waits for a client does not end the wait."""


class Server:
    """Serves a device to vfio-user clients. It does not own the device: close that yourself, after the server.

    `run` blocks in one thread, which serves accesses in C without the GIL; `stop` may be called from any thread and
    from a Python signal handler. In the main thread signal handlers run within about 0.1 s, whatever the client does,
    but for the model's own handlers, which must return.

    When a client is gone everything of it is released: maps, eventfds, descriptors, accesses that a handler left
    pending. While it is there others are turned away at once. A process forked from this one may close its copy, which
    takes nothing from the server here.
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

        Raises: InvalidArgument, SocketPathError, StateError (the device is attached already), ServiceUnavailable,
        TransportError (no descriptors left). Nothing is left behind then, but `descriptor` is closed unless it was
        refused itself.
        """
        if (path is None) == (descriptor is None):
            raise InvalidArgument("a server needs a path or a descriptor, and not both")
        if vector_state not in (None, "client", "core"):
            raise InvalidArgument(f"vector_state is None, 'client' or 'core', not {vector_state!r}")
        if not 0 < reply_timeout <= REPLY_TIMEOUT_MAX:
            raise InvalidArgument(f"a reply timeout of {reply_timeout} s; above 0 and at most {REPLY_TIMEOUT_MAX:.0f}")
        self.device = device
        self.socket_path = None if path is None else os.fsdecode(path)
        self.clients = 0
        """Clients that have been served, the present one included; who connects and does not say VERSION is none."""
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
        self._pid = os.getpid()
        self._runner: int | None = None
        self._held = contextlib.ExitStack()  # what `_release` gives back
        with contextlib.ExitStack() as failed:
            failed.callback(self._release)
            try:
                self._open_socket(descriptor)
                self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._held.callback(os.close, self._wake)
                self._link = Link(api_address(), device.native.address)
                self._held.callback(self._link.close)
            except UmdevError:  # some are errors of the system too, and have a cause of their own
                raise
            except OSError as error:
                raise _as_umdev(error, "a server needs more descriptors") from error
            self._link.set_reply_timeout(reply_timeout)
            if wire_log is not None:
                self._open_log(wire_log)
            self.attachment = Attachment(device, "vfio-user", hypervisor, endpoint=self)
            self._describe_regions()
            self._attach()
            self._held.callback(device.address_space.set_messages, links.NULL)
            failed.pop_all()

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

        What a signal handler raises passes through, and KeyboardInterrupt or SystemExit of the model's own handlers in
        the main thread; elsewhere these are logged as other exceptions are. The server can run again then.

        Raises: StateError (closed, running in another thread, or the device has been closed or attached elsewhere).
        """
        if not self._running.acquire(blocking=False):
            raise StateError("the server runs already")
        try:
            self._runner = threading.get_ident()
            if self._closed:
                raise StateError("the server is closed")
            while (client := self._next_client()) is not None:
                with client:
                    self._serve(client)
        finally:
            self._runner = None
            self._running.release()

    def stop(self) -> None:
        """End `run`, now and for good. Any thread, also a signal handler or a handler of the model; may be called
        twice, and after `close`. It waits for nothing: a handler that runs is not interrupted.
        """
        if os.getpid() != self._pid:
            return
        self._stopping = True
        with self._ends:
            if not self._closed:
                os.eventfd_write(self._wake, 1)
                self._link.stop()

    def close(self) -> None:
        """Stop, wait for `run`, give up the device and remove the socket. May be called twice.

        Raises: StateError in the thread that is inside `run` (handlers of the model and of signals are): call `stop`
        there.
        """
        if self._closed:
            return
        if os.getpid() != self._pid:
            self._close_copy()
            return
        if self._runner == threading.get_ident():
            raise StateError("close() would wait for run(), which called this: call stop() here, close() after run()")
        self.stop()
        with self._running:
            if self._closed:
                return
            try:
                if self.device.attachment is self.attachment:
                    self._detach(self._kind)
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
            self._held.callback(inherited.close)
        elif self.socket_path is not None:
            self._listener = sockets.listen(self.socket_path)
            # Removed while it still listens: later the file may be another server's that found ours dead.
            self._held.callback(self._listener.close)
            self._held.callback(sockets.remove, self.socket_path, os.lstat(self.socket_path).st_ino)
        if self._listener is not None:
            self._listener.setblocking(False)  # another process may accept from it, too

    def _open_log(self, path: str | os.PathLike[str]) -> None:
        try:
            with open(path, "ab") as file:  # noqa: PTH123 - also takes /dev/stderr and the like
                self._link.set_log(file.fileno())
        except OSError as error:
            raise _as_umdev(error, f"the wire log {os.fspath(path)}") from error

    def _describe_regions(self) -> None:
        for index, info in self.attachment.regions.items():
            flags = (links.READABLE if info.readable else 0) | (links.WRITABLE if info.writable else 0)
            self._link.set_region(index, info.size, flags)

    def _attach(self) -> None:
        self.attachment.attach()
        # Only now: before, it may be another attachment's. No map has come yet.
        self.device.address_space.set_messages(self._link.transfer, self._link.context, self._link.cancel)

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
            ready = dict(waiting.poll(WAKE_PAUSE_MS))
            if self._listener.fileno() not in ready or self._stopping:
                continue
            if (accepted := self._accept(self._listener)) is not None:
                return accepted
        return None

    def _accept(self, listener: socket.socket) -> socket.socket | None:
        """The client that knocks; None if it may not come in, or can't."""
        try:
            client, _ = listener.accept()
            client.setblocking(True)
        except BlockingIOError:  # somebody else was faster
            return None
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
        self.client_pid = sockets.peer_pid(client)
        lookout = contextlib.ExitStack()
        try:
            lookout.enter_context(Lookout(self.device, client.fileno(), self.client_pid, self._listener))
        except (OSError, RuntimeError) as error:  # no descriptor or thread left
            log.warning("%s: no connection: %s", self.device, error)
            time.sleep(ACCEPT_PAUSE)
            return
        try:
            self._link.connect(client.detach())
            session = Session(self.attachment, self._link, vector_state=self._vector_state)
            self._link.log(f"CONNECTED client={self.clients + 1}")
            if self._handshake(session):
                self.attachment.run()
                self.clients += 1
                self._loop(session)
        finally:
            lookout.close()  # which looks at the link's descriptor
            self._link.log("DISCONNECTED")
            # First the link, so that nothing of the device waits for this client any more.
            self._link.disconnect()
            if self.attachment.state is not AttachmentState.ATTACHED:  # else it never came to the device
                self._let_go()

    def _let_go(self) -> None:
        if self.attachment.state not in (AttachmentState.DETACHED, AttachmentState.REMOVED):
            self._detach(self._kind)
        elif self.device.attachment is None:
            # Somebody has detached it while it was served, and the client's last messages may have come after that.
            self.attachment.memory.unmap_all()
            self.attachment.interrupts.disconnect_all()
        if not self._stopping and self._listener is not None:
            self._attach()

    def _detach(self, kind: ResetKind | None) -> None:
        """Detaching finishes whatever models and add-ons raise; that is no reason to turn the next client away."""
        try:
            self.attachment.detach(kind)
        except BaseException as error:
            log.exception("%s: a plugin failed while the client was let go", self.device)
            if ends_process(error):
                raise

    def _handshake(self, session: Session) -> bool:
        """Whether the client has said VERSION in time."""
        # Nobody else can come by a connected descriptor: no reason to hurry.
        end = time.monotonic() + HANDSHAKE_TIMEOUT if self._listener is not None else math.inf
        self._link.set_slice(SLICE)
        while session.client is None:
            outcome = self._link.run()
            if not self._answer(session, outcome):
                return False
            if session.client is None and time.monotonic() >= end:
                log.warning("%s: process %s has not said VERSION in time", self.device, self.client_pid)
                return False
        return True

    def _loop(self, session: Session) -> None:
        self._link.set_slice(SLICE if threading.current_thread() is threading.main_thread() else 0)
        while self._answer(session, self._link.run()):
            pass

    def _answer(self, session: Session, outcome: links.Outcome) -> bool:
        """Do what C leaves to Python; whether the client is served on."""
        interrupt = self.attachment.native.take_interrupt()
        if interrupt is not None and ends_process(interrupt):
            if outcome.message is not None:
                session.refuse(outcome.message)
            raise interrupt
        if outcome.event == links.INTERRUPTED:
            return session.welcome  # Python has run the signal's handler by now
        if outcome.message is None:
            if outcome.error == errno.EMFILE:
                log.warning("%s: this process has no room for its client's descriptors", self.device)
            elif outcome.event == links.BROKEN:
                log.warning("%s: the client broke the protocol: %s", self.device, os.strerror(outcome.error))
            return False
        try:
            session.answer(outcome.message)
        except TransportError as error:  # gone, too slow to take an answer, or against the protocol
            log.warning("%s: %s", self.device, error)
            return False
        return session.welcome

    def _release(self) -> None:
        with self._ends:
            self._closed = True
            self._held.close()

    def _close_copy(self) -> None:
        """In a forked process: the connection, the socket's file and what the device does are the other's, and stay."""
        self._closed = True
        self.device.release_attachment(self.attachment)
        os.close(self._wake)
        for end in (self._listener, self._connected):
            if end is not None:
                end.close()


def _as_umdev(error: OSError, what: str) -> UmdevError:
    """An error of the system, which knows its errno alone."""
    failed = TransportError(f"{what}: {error.strerror or error}")
    failed.errno = error.errno or errno.EIO
    return failed
