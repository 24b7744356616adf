"""Unix sockets of servers: where they may lie, who may connect."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

from umdev.errors import InvalidArgument, SocketPathError, TransportError, UmdevError
from umdev.sockets import is_dead_socket

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PATH = 107
"""Bytes in the path of a unix socket (unix(7): 108 with the NUL)."""

BACKLOG = 8

LOCK_TRIES = 500
LOCK_PAUSE = 0.01
"""Seconds between them. Who takes a path holds the lock for microseconds."""

_TIME = struct.Struct("ll")
_CREDENTIALS = struct.Struct("iII")


def listen(path: str) -> socket.socket:
    """A listening stream socket at `path`, mode 0600. A socket that a dead process left there is replaced.

    Raises: SocketPathError when the path exists, is too long, or its folder is missing or not ours to trust; OSError
    when no descriptor is left.
    """
    _check_path(path)
    folder = Path(path).absolute().parent
    _check_folder(folder)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(server.fileno(), 0o600)  # bind gives the file this mode: it is never open to others
        try:
            server.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            with _alone_in(folder):
                _remove_stale(path)
                server.bind(path)
        server.listen(BACKLOG)
    except UmdevError:
        server.close()
        raise
    except OSError as error:
        server.close()
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        raise _failed(path, error) from error
    return server


def connect(path: str, timeout: float) -> socket.socket:
    """A stream socket that is connected to who listens at `path`; `timeout`: seconds for a place in its queue.

    Raises: SocketPathError.
    """
    _check_path(path)
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A full queue is EAGAIN for a socket that does not block, and nothing tells when there is room: unix(7).
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIME.pack(int(timeout), int(timeout % 1 * 1e6) or 1))
        end.connect(path)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIME.pack(0, 0))
    except OSError as error:
        end.close()
        if error.errno == errno.EAGAIN:
            busy = SocketPathError(f"{path}: whoever listens there has taken nobody in for {timeout} s")
            busy.errno = errno.ETIMEDOUT
            raise busy from error
        raise _failed(path, error) from error
    return end


def _failed(path: str, error: OSError) -> SocketPathError:
    failed = SocketPathError(f"{path}: {error.strerror or error}")
    failed.errno = error.errno or errno.EIO
    return failed


def _check_path(path: str) -> None:
    if not path or "\0" in path:
        raise SocketPathError(f"{path!r} is no path of a socket")
    if len(os.fsencode(path)) > MAX_PATH:
        raise SocketPathError(f"{path} has {len(os.fsencode(path))} bytes; a unix socket's path has {MAX_PATH} at most")


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Of two servers that find the same dead socket, the second must see the first one's new one."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(LOCK_PAUSE)
        else:
            raise SocketPathError(f"{folder} is locked (flock) by another process for {LOCK_TRIES * LOCK_PAUSE:.0f} s")
        yield
    finally:
        os.close(lock)


def _check_folder(folder: Path) -> None:
    try:
        mode = folder.stat().st_mode
    except OSError as error:
        raise SocketPathError(f"{folder}: {error.strerror}") from error
    if mode & 0o022 and not mode & stat.S_ISVTX:
        raise SocketPathError(f"others can write to {folder}, so they could replace the socket: use a private folder")


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketPathError(f"{path} exists and is no socket")
    if not is_dead_socket(Path(path)):
        raise SocketPathError(f"{path} exists and another process listens there")
    os.unlink(path)  # noqa: PTH108 - beside lstat, by the same name


def remove(path: str, inode: int) -> None:
    """Remove our socket's file, unless it has been replaced since. Never raises."""
    try:
        if os.lstat(path).st_ino == inode:
            os.unlink(path)  # noqa: PTH108 - as above
    except OSError:
        return


def inherit(descriptor: int) -> tuple[socket.socket, bool]:
    """A stream socket from an inherited descriptor, which it takes over; True if it listens.

    Raises: InvalidArgument for anything else.
    """
    if descriptor < 0:
        raise InvalidArgument(f"{descriptor} is no descriptor")
    try:
        inherited = socket.socket(fileno=descriptor)
    except OSError as error:
        raise InvalidArgument(f"descriptor {descriptor} is no socket: {error.strerror}") from error
    if inherited.family != socket.AF_UNIX or inherited.type != socket.SOCK_STREAM:
        inherited.detach()
        raise InvalidArgument(f"descriptor {descriptor} is no unix stream socket")
    inherited.setblocking(True)
    return inherited, bool(inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def check_peer(client: socket.socket) -> None:
    """Let in the user that this process runs as, and root.

    Raises: TransportError.
    """
    pid, uid = _credentials(client)
    if uid not in (0, os.getuid()):
        error = TransportError(f"process {pid} of user {uid} may not connect")
        error.errno = errno.EACCES
        raise error


def peer_pid(client: socket.socket) -> int:
    """The process that connected, or made the pair of connected sockets."""
    return _credentials(client)[0]


def _credentials(client: socket.socket) -> tuple[int, int]:
    pid, uid, _ = _CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid
