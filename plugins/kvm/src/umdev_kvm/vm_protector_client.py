"""A device's end of the VMM's protector: what `UserfaultProtector` needs of a guest that is another process."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

from umdev.errors import Disconnected, NotSupported, ProtectError, ProtectorBusy, UmdevError
from umdev.hypervisor import ProtectMode

from . import vm_protector_wire as wire
from .vm_protector_areas import Area
from .vm_protector_wire import Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from umdev.hypervisor import LockOwner, Notified

_log = logging.getLogger("umdev.kvm")
_REPLY_SECONDS = 2 * wire.PATIENCE
_RETRY_SECONDS = 0.01
START_SECONDS = 120.0
"""How long a protector may take to start: an interpreter and its imports, on a machine that has much else to do."""
_NUMBERS = {ProtectMode.TRAP: 1, ProtectMode.TRACK: 2}


class Connection:
    """Requests and replies, one at a time. Any thread of the process that has made it; a child that this one forks can
    only close it, which the protector does not notice.
    """

    def __init__(self, path: Path, seconds: float = _REPLY_SECONDS) -> None:
        """The protector may take `seconds` to accept it, and as long for each reply.

        Raises: FileNotFoundError or ConnectionRefusedError (nobody listens there), other OSError.
        """
        self._link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self.lost: str | None = None
        """Why nothing can be asked any more."""
        try:
            self._link.settimeout(seconds)
            self._connect(os.fspath(path), time.monotonic() + seconds)
        except BaseException:
            self._link.close()
            raise

    @property
    def own(self) -> bool:
        """Whether this process has made it, not one that has forked this one."""
        return self._pid == os.getpid()

    def _connect(self, path: str, deadline: float) -> None:
        while True:
            try:
                return self._link.connect(path)
            except BlockingIOError:  # as many wait to be accepted as may: unix(7) lets only a blocking socket wait
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_SECONDS)

    def ask(self, operation: Operation, body: bytes = b"", descriptors: Sequence[int] = ()) -> bytes:
        """One request; the reply's body. Raises: ProtectError, ProtectorBusy, NotSupported."""
        if not self.own:
            raise _failure(errno.ECHILD, "the VM's protector knows the process that forked this one, and not this one")
        with self._lock:
            if self.lost is None:
                try:
                    wire.send(self._link, operation, body, descriptors)
                    reply = wire.receive(self._link, [])
                except (BrokenPipeError, ConnectionResetError, Disconnected):
                    reply = None
                except OSError as error:
                    self.lost = f"the VM's protector does not answer: {error}"
                    raise _failure(error.errno or errno.EIO, self.lost) from error
                if reply is not None:
                    status, text = reply
                    if status < 0:
                        raise _failure(-status, text.decode(errors="replace"))
                    return text
                self.lost = (
                    "the VM's protector has ended this device's connection: it is gone, or a notification was not "
                    f"answered within {wire.PATIENCE:g} s (or {wire.PATIENCE_VARIABLE})"
                )
            raise _failure(errno.ECONNRESET, self.lost)

    def close(self) -> None:
        """End it. May be called twice."""
        self.lost = self.lost or "the connection is closed"
        self._link.close()

    def leave(self) -> None:
        """End it, and wait until the protector has noticed. May be called twice."""
        if self.own:  # else the process that forked this one still needs it
            with contextlib.suppress(OSError):
                self._link.shutdown(socket.SHUT_WR)
                while self._link.recv(64):
                    pass
        self.close()


class RemoteGuest:
    """The guest of a VMM that has lent its memory to the user's protector."""

    def __init__(self, path: Path, pid: int) -> None:
        """`pid`: the VMM's process. Nothing is asked yet."""
        self._path = path
        self._pid = pid
        self._areas: dict[tuple[int, int], list[Area]] = {}
        self._connection: Connection | None = None
        self.mechanism = "the VMM's userfaultfd"
        self.on_close: Callable[[], None] | None = None
        """Called when the client closes."""

    def client(self, mode: ProtectMode, device: LockOwner | None, listener: Notified) -> RemoteClient:
        """The client, in one mode; once only.

        Raises: ProtectError (no protector, or the VMM has lent nothing to it), NotSupported, ProtectorBusy.
        """
        try:
            connection = Connection(self._path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise _failure(error.errno or errno.ENOENT, f"no protector listens at {self._path}") from error
        except OSError as error:
            text = f"the protector at {self._path} takes no connection: {error.strerror}"
            raise _failure(error.errno or errno.EIO, text) from error
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                said = connection.ask(Operation.CLIENT, wire.CLIENT.pack(self._pid, _NUMBERS[mode]), [theirs.fileno()])
        except BaseException:
            ours.close()
            connection.close()
            raise
        self.mechanism = said.decode(errors="replace")
        self._connection = connection
        return RemoteClient(self, connection, ours, device, listener)

    def locate(self, file: tuple[int, int], offset: int) -> int | None:
        """Where the VMM has mapped the page at `offset` of `file`. Raises: as `Connection.ask`."""
        found = _find(self._areas.get(file, ()), offset)
        if found is None and self._connection is not None:
            body = self._connection.ask(Operation.AREAS, wire.FILE.pack(*file))
            self._areas[file] = [Area(*area) for area in wire.AREA.iter_unpack(body)]
            found = _find(self._areas[file], offset)
        return found

    def forget(self) -> None:
        """The VMM may have moved its memory: look again."""
        self._areas.clear()


class RemoteClient:
    """A `PageClient` in the VMM's protector. A thread hears of stores and tells the listener, the device lock held."""

    def __init__(
        self,
        guest: RemoteGuest,
        connection: Connection,
        events: socket.socket,
        device: LockOwner | None,
        listener: Notified,
    ) -> None:
        """Takes the connection and `events`."""
        self._guest = guest
        self._connection = connection
        self._events = events
        self._device = device
        self._listener = listener
        self._closed = False
        self._serving = -1
        self._telling = threading.RLock()  # where there is no device; else its lock does the same
        self._thread = threading.Thread(target=self._hear, name="umdev page writes", daemon=True)
        self._thread.start()

    @property
    def pages(self) -> int:
        """Pages armed (TRAP) or watched (TRACK) now."""
        return wire.numbers(self._connection.ask(Operation.PAGES))[0]

    def arm(self, addresses: Sequence[int]) -> tuple[int, int]:
        """See `PageClient`. Raises: ProtectError."""
        if self._serving in addresses and threading.current_thread() is self._thread:
            return errno.EBUSY, self._serving  # the store could never land
        if len(addresses) > wire.PAGES_MAX:
            raise _failure(errno.E2BIG, f"{len(addresses)} pages to arm: the VM's protector takes {wire.PAGES_MAX}")
        # All in one request: only the protector knows which of them are new, if one of them fails.
        code, failed = wire.numbers(self._connection.ask(Operation.ARM, wire.body(addresses)))
        return code, failed

    def disarm(self, addresses: Sequence[int]) -> None:
        """See `PageClient`. Where the protector has gone, nothing is armed any more."""
        with contextlib.suppress(ProtectError):
            for start in range(0, len(addresses), wire.PAGES_MAX):
                self._connection.ask(Operation.DISARM, wire.body(addresses[start : start + wire.PAGES_MAX]))

    def collect(self) -> list[int]:
        """See `PageClient`. Raises: ProtectError."""
        return wire.numbers(self._connection.ask(Operation.COLLECT)).tolist()

    def close(self) -> None:
        """See `PageClient`."""
        # In a forked child the lock may be a thread's that is not there.
        with self._locked() if self._connection.own else contextlib.nullcontext():
            self._closed = True
        if self._guest.on_close is not None:
            self._guest.on_close()
        with contextlib.suppress(ProtectError):
            self._connection.ask(Operation.CLOSE)
        if self._connection.own:
            with contextlib.suppress(OSError):
                self._events.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closes it
        else:
            self._events.close()
        self._connection.close()

    def _locked(self) -> AbstractContextManager[object]:
        if self._device is None:
            return self._telling
        return contextlib.nullcontext() if self._device.held else self._device.locked()

    def _hear(self) -> None:
        with self._events, contextlib.suppress(OSError):
            while len(message := self._events.recv(8)) == 8:
                self._tell(int.from_bytes(message, sys.byteorder))
                self._events.send(message)
        if not self._closed:
            _log.error("the VM's protector has gone, or has given this device up: its pages are no longer watched")

    def _tell(self, address: int) -> None:
        with self._locked():
            if self._closed:
                return
            self._serving = address
            try:
                self._listener.notified(address)
            except Exception:  # noqa: BLE001 - the store lands whatever a model does
                _log.exception("the notification of a page write failed")
            finally:
                self._serving = -1


def _find(areas: Sequence[Area], offset: int) -> int | None:
    for area in areas:
        if area.offset <= offset < area.offset + area.length:
            return area.address + offset - area.offset
    return None


def _failure(code: int, text: str) -> UmdevError:
    kinds: dict[int, type[UmdevError]] = {errno.EBUSY: ProtectorBusy, errno.EOPNOTSUPP: NotSupported}
    error = kinds.get(code, ProtectError)(text)
    error.errno = code
    return error
