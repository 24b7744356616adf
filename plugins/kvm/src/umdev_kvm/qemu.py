"""VMMs that somebody else starts: how QEMU lends its memory, and the protector process that takes it."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import socket
import sys
import threading
from typing import TYPE_CHECKING

from umdev import runtime
from umdev.bus import Row
from umdev.errors import NotFound, NotSupported, ProtectError, StateError, UmdevError
from umdev.hypervisor import ProtectMode, UserfaultProtector, open_userfault

from . import vm_protector_wire as wire
from .preload import ADDRESS_VARIABLE, DEVICE_VARIABLE, preload_path
from .vm_protector_client import START_SECONDS, Connection, RemoteGuest
from .vm_protector_wire import Operation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from umdev.hypervisor import Attachment, Decline, PageProtector

__all__ = ["BUS", "ClientSetup", "doctor", "prepare_client", "protect_pages"]

_log = logging.getLogger("umdev.kvm")
BUS = "vfio-user"
"""The bus whose clients are VMMs of other processes."""
LOG_VARIABLE = "UMDEV_PROTECTOR_LOG"
"""Names a file for what the protector logs; for tests and for people in trouble."""


class ClientSetup:
    """A protector that waits for VMMs, and what they need in their environment. Keep it while devices are served."""

    def __init__(self, connection: Connection, environment: Mapping[str, str]) -> None:
        self._connection = connection
        self.environment = environment
        """Variables for the VMM's process."""

    @property
    def command_prefix(self) -> str:
        """The same for a shell: what stands before the VMM's command."""
        return " ".join(f"{name}={shlex.quote(value)}" for name, value in self.environment.items())

    def close(self) -> None:
        """Let the protector end when nobody else needs it. May be called twice."""
        self._connection.leave()


def prepare_client(bus: str) -> ClientSetup | None:
    """Have a protector ready before a VMM starts that a bus will serve; None for a bus whose clients need none.

    The protector is one process for each user and runtime directory; it is started if there is none.

    Raises: NotFound (no preload library), StateError (the runtime directory), InvalidArgument (a variable of
    the environment), OSError.
    """
    if bus != BUS:
        return None
    library = preload_path()
    path = wire.socket_path()
    with runtime.locked(path.parent):
        try:
            connection = Connection(path, START_SECONDS)
        except (FileNotFoundError, ConnectionRefusedError):  # anything else says nothing about who listens there
            path.unlink(missing_ok=True)  # left by one that was killed
            _start(path)
            connection = Connection(path, START_SECONDS)
    try:
        connection.ask(Operation.STAY)
    except BaseException:
        connection.close()
        raise
    return ClientSetup(connection, {"LD_PRELOAD": str(library), ADDRESS_VARIABLE: str(path)})


def protect_pages(attachment: Attachment, mode: ProtectMode, decline: Decline) -> PageProtector | None:
    """Service 6 for a device that a VMM of another process uses."""
    reason = None
    pid = getattr(attachment.endpoint, "client_pid", None)
    if mode is ProtectMode.EMULATE:
        reason = "emulate: a userfaultfd shows no value of a store; use TRAP, or umdev's own machine"
    elif pid is None:
        reason = "the bus does not know the VMM's process"
    else:
        guest = RemoteGuest(wire.socket_path(), pid)
        # Maps go before the VMM gives the memory up: what is known of its addresses is forgotten then.
        guest.on_close = cancel = attachment.memory.on_unmap(lambda _: guest.forget(), late=True)
        try:
            return UserfaultProtector(guest, attachment.memory, mode, attachment.native)
        except (ProtectError, NotSupported) as error:
            cancel()
            reason = f"{error}; {_remedy()}"
    if mode is ProtectMode.TRACK:
        _log.warning("%s: stores are found by comparing pages only: %s", attachment.device, reason)
    decline(reason)
    return None


def doctor() -> Iterator[Row]:
    """What stands between a stock QEMU and protected pages. See `umdev.plugins.Row`."""
    try:
        library = preload_path()
    except NotFound as error:
        yield Row("protect", "QEMU preload", None, str(error), "pip install --force-reinstall umdev-kvm")
        return
    try:
        userfault = open_userfault()
    except (NotSupported, ProtectError) as error:
        yield Row(
            "protect", "QEMU preload", None, f"QEMU of this user can lend no memory: {error}",
            f"let QEMU inherit an open /dev/userfaultfd and name it by {DEVICE_VARIABLE}; {_remedy()}",
        )  # fmt: skip
        return
    os.close(userfault.descriptor)
    yield Row("protect", "QEMU preload", ok=True, text=f"TRAP and TRACK on a stock QEMU by LD_PRELOAD={library}")
    try:
        Connection(wire.socket_path()).leave()
    except (FileNotFoundError, ConnectionRefusedError):
        yield Row("protect", "QEMU protector", ok=True, text="none runs; umdev serve and umdev start start one")
    except OSError as error:
        text = f"{wire.socket_path()} takes no connection: {error.strerror}"
        yield Row("protect", "QEMU protector", None, text, "try again when this machine has less to do")
    else:
        yield Row("protect", "QEMU protector", ok=True, text=f"listens at {wire.socket_path()}")


def _remedy() -> str:
    try:
        library = preload_path()
    except UmdevError as error:
        return str(error)
    return f"start QEMU with LD_PRELOAD={library} {ADDRESS_VARIABLE}={wire.socket_path()}"


def _start(path: Path) -> None:
    """A protector of its own session; it has the listening socket before it runs, so nobody waits for it."""
    if len(os.fsencode(path)) > 107:  # unix(7)
        raise StateError(f"{path} is too long for a socket; choose another with UMDEV_RUNTIME_DIR")
    wire.patience()  # said here, where somebody reads it
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(os.fspath(path))
        listener.listen(64)
        log = os.open(os.environ.get(LOG_VARIABLE, os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-P", "-m", "umdev_kvm.vm_protector", os.fspath(path)],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, listener.fileno(), 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                ],
                setsid=True,
            )
        finally:
            os.close(log)
    threading.Thread(target=_reap, args=(pid,), name="umdev protector", daemon=True).start()


def _reap(pid: int) -> None:
    """A protector may end long after this process has let go of it, and should not stay as a zombie."""
    with contextlib.suppress(ChildProcessError):  # the program ignores SIGCHLD: then the kernel does it
        os.waitpid(pid, 0)
