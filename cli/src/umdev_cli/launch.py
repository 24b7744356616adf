"""Starting host processes: detached, with a log, and with a word when they are ready or why they are not."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from umdev import runtime
from umdev.errors import Disconnected, StateError, UmdevError

from . import control, hosts
from .failures import Exit, RemoteError
from .host import Spec, argument

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["HostFailed", "start"]

READY_SECONDS = 60.0
_END_SECONDS = 3.0
_TAIL_LINES = 30
_LOCK, _READY = 3, 4


class HostFailed(UmdevError):
    """A host process ended before it was ready; the text has its exit code, a note the end of its log."""


def start(parent: str, bus: str, request: control.Add, *, shared: bool) -> dict[str, Any]:
    """Start a device in a host process and return what `Show` says of it; `shared`: in the parent's one process.

    After a failure neither device nor process is left.

    Raises: RemoteError with what the host says; HostFailed; StateError when it takes longer than a minute.
    """
    directory = runtime.runtime_directory()
    name = parent if shared else request.uuid
    deadline = time.monotonic() + READY_SECONDS
    hosts.tidy(directory)
    while True:
        claimed = hosts.claim_folder(directory, name)
        if claimed is not None:
            return _spawn(directory, *claimed, parent, bus, request, deadline)
        # A living process has the folder. It may be about to listen, or about to end: then the folder comes free.
        try:
            described: dict[str, Any] = control.call(directory / "hosts" / name, request, READY_SECONDS)
        except (Disconnected, RemoteError) as error:
            ending = isinstance(error, Disconnected) or error.name == StateError.__name__
            if not ending or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return described


def _spawn(
    directory: Path, folder: Path, lock: int, parent: str, bus: str, request: control.Add, deadline: float
) -> dict[str, Any]:
    log = os.open(folder / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    read, write = os.pipe2(os.O_CLOEXEC)
    spec = Spec(str(directory), folder.name, parent, bus, request, _LOCK, _READY)
    # Above 4 first, so that no dup2 overwrites a source of a later one.
    sources = [_above(descriptor) for descriptor in (lock, write, log)]
    try:
        pid = os.posix_spawn(
            sys.executable,
            # -P: a host does not import from the folder that the command happened to be started in.
            [sys.executable, "-P", "-m", "umdev_cli.host", argument(spec)],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, sources[2], 1),
                (os.POSIX_SPAWN_DUP2, sources[2], 2),
                (os.POSIX_SPAWN_DUP2, sources[0], _LOCK),
                (os.POSIX_SPAWN_DUP2, sources[1], _READY),
            ],
            setsid=True,
        )
    finally:
        for descriptor in (*sources, write):
            os.close(descriptor)
    try:
        reply = _until_closed(read, deadline)
        if reply:
            described: dict[str, Any] = control.unwrap(reply)
            return described
        _end(pid)
        raise HostFailed(f"the host process {_ended(pid)} before it was ready")
    except BaseException as error:
        _end(pid)
        if isinstance(error, HostFailed) or getattr(error, "code", None) == Exit.FAILED:
            error.add_note(_tail(log))
        # The lock is still held here, through our copy of its descriptor.
        hosts.release_folder(directory, folder, os.dup(lock))
        hosts.tidy(directory)
        raise
    finally:
        for descriptor in (read, lock, log):
            os.close(descriptor)


def _above(descriptor: int) -> int:
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)


def _until_closed(descriptor: int, deadline: float) -> bytes:
    """What is written until the other end closes. Raises: StateError at the deadline."""
    parts = bytearray()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while True:
        if not poll.poll(max(0, deadline - time.monotonic()) * 1000):
            raise StateError(f"the host process was not ready after {READY_SECONDS:.0f} s")
        part = os.read(descriptor, 1 << 16)
        if not part:
            return bytes(parts)
        parts += part


def _end(pid: int) -> None:
    """See a process end that is of no use: by itself, politely, or not."""
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + _END_SECONDS
        if number is not None and _waited(pid) is None:
            os.kill(pid, number)
        while time.monotonic() < until:
            if _waited(pid) is not None:
                return
            time.sleep(0.02)


_statuses: dict[int, int] = {}


def _waited(pid: int) -> int | None:
    """The exit code of a child of ours (negative: signal), None while it runs."""
    if pid not in _statuses:
        waited, status = os.waitpid(pid, os.WNOHANG)
        if waited == 0:
            return None
        _statuses[pid] = os.waitstatus_to_exitcode(status)
    return _statuses[pid]


def _ended(pid: int) -> str:
    code = _waited(pid)
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _tail(log: int) -> str:
    """The end of the log, read from its descriptor: the host may have removed the file."""
    said = os.pread(log, 1 << 20, max(0, os.fstat(log).st_size - (1 << 20))).decode(errors="replace")
    return "\n".join(said.splitlines()[-_TAIL_LINES:]) or "(its log is empty)"
