"""Where umdev keeps what lives as long as its processes (sockets, claims, logs) and what outlives them (definitions).

The runtime directory is private: mode 0700, owned by the user, never reached through a symbolic link at its last step.
Everything in it may be deleted when no process runs; nothing in it is needed to start again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["config_directory", "exists", "locked", "prune", "runtime_directory"]

_FOLDERS = ("hosts", "instances")
_LOCK_SECONDS = 10.0
_LOCK_POLL = 0.005


def runtime_directory() -> Path:
    """The path, which need not exist: `$UMDEV_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/umdev` if that is the user's own,
    else `/run/umdev` for root, else `/tmp/umdev-UID`.
    """
    if explicit := os.environ.get("UMDEV_RUNTIME_DIR"):
        return Path(explicit).absolute()
    if (session := os.environ.get("XDG_RUNTIME_DIR")) and _is_ours(Path(session)):
        return Path(session).absolute() / "umdev"
    return Path("/run/umdev") if os.geteuid() == 0 else Path(f"/tmp/umdev-{os.geteuid()}")  # noqa: S108 - owner and mode are verified before use


def config_directory() -> Path:
    """The path, which need not exist: `$UMDEV_CONFIG_DIR`, else `/etc/umdev.d` for root, else
    `$XDG_CONFIG_HOME/umdev` or `~/.config/umdev`.
    """
    if explicit := os.environ.get("UMDEV_CONFIG_DIR"):
        return Path(explicit).absolute()
    if os.geteuid() == 0:
        return Path("/etc/umdev.d")
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home).absolute() if home else Path.home() / ".config") / "umdev"


def exists(directory: Path) -> bool:
    """Whether the directory is there. Raises: StateError where that can't be known: a folder above it is closed."""
    try:
        directory.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _no_use(directory, error) from error
    return True


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[Path]:
    """Hold the directory alone among all processes and threads; it is made if need be and verified to be private.

    The lock is a flock of the directory itself, so no lock file stays behind, and it ends with its process. Not
    re-entrant: a thread that holds it and asks again gets StateError after ten seconds, like anyone who waits too long.

    Raises: StateError when the directory is someone else's, can be written by others, can't be made, or stays locked.
    """
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        descriptor = _open_private(directory)
        try:
            _flock(descriptor, directory, deadline)
            # Whoever held it before may have removed it: then the lock is on a directory that nobody can reach.
            if _same_file(directory, descriptor):
                yield directory
                return
        finally:
            os.close(descriptor)


def prune(directory: Path) -> None:
    """Remove umdev's own empty folders in the directory, and the directory unless `$UMDEV_RUNTIME_DIR` names it.

    Hold the lock. What others have put there stays, and so does the directory then.
    """
    for name in _FOLDERS:
        _remove_if_empty(directory / name)
    if "UMDEV_RUNTIME_DIR" not in os.environ:
        _remove_if_empty(directory)


def _open_private(directory: Path) -> int:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EEXIST):
            raise StateError(f"{directory} must be a directory of its own, not a link or a file") from error
        raise _no_use(directory, error) from error
    status = os.fstat(descriptor)
    problem = None
    if status.st_uid != os.geteuid():
        problem = f"belongs to user {status.st_uid}, not to {os.geteuid()}"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        problem = "can be written by others"
    if problem is not None:
        os.close(descriptor)
        raise StateError(f"{directory} {problem}; remove it or choose another with UMDEV_RUNTIME_DIR")
    if status.st_mode & 0o077:
        os.fchmod(descriptor, 0o700)
    return descriptor


def _no_use(directory: Path, error: OSError) -> StateError:
    return StateError(f"{directory}: {error.strerror}; choose another with UMDEV_RUNTIME_DIR")


def _flock(descriptor: int, directory: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StateError(f"{directory} has been locked by another process for {_LOCK_SECONDS:.0f} s") from None
            time.sleep(_LOCK_POLL)
        else:
            return


def _same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _is_ours(directory: Path) -> bool:
    try:
        return directory.stat().st_uid == os.geteuid()
    except OSError:
        return False


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError as error:
        # EACCES, EBUSY: a folder that the administrator made, or a mount; ENOTDIR: somebody's link or file. It stays.
        expected = (errno.ENOTEMPTY, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EBUSY, errno.EROFS, errno.ENOTDIR)
        if error.errno not in expected:
            raise
