"""Host processes in the runtime directory: who lives, what the dead left.

    RUNTIME/UUID.sock             where the bus of a device listens
    RUNTIME/instances/UUID        the claim of a device (umdev.instances)
    RUNTIME/hosts/NAME/pid        locked (flock) by the host process as long as it lives
    RUNTIME/hosts/NAME/log        what it says
    RUNTIME/hosts/NAME/control    its control socket

NAME is the device's UUID, or the parent's name where devices of a parent share one process. Everything is made, looked
at and removed under the lock of the runtime directory.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from typing import TYPE_CHECKING

import msgspec
from umdev import runtime
from umdev.errors import InvalidArgument
from umdev.instances import Claimed, InstanceClaims
from umdev.sockets import is_dead_socket

from .identity import is_uuid

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["HostFolder", "claim_folder", "find", "release_folder", "running", "socket_path", "tidy"]

_FOLDER = "hosts"
_SOCKET_SUFFIX = ".sock"


class HostFolder(msgspec.Struct, frozen=True):
    """The folder of a living host process."""

    name: str
    path: Path
    pid: int

    @property
    def log(self) -> Path:
        """What the process says."""
        return self.path / "log"


def socket_path(directory: Path, uuid: str) -> Path:
    """Where a device's bus listens unless told otherwise."""
    return directory / f"{uuid}{_SOCKET_SUFFIX}"


def tidy(directory: Path | None = None) -> list[HostFolder]:
    """Remove what dead processes left and return the living hosts.

    Of sockets, only those that a host names (UUID.sock) and nobody listens at; other files in the directory stay.

    Raises: StateError as `umdev.runtime.locked`.
    """
    directory = directory or runtime.runtime_directory()
    if not runtime.exists(directory):
        return []
    claims = InstanceClaims(directory).used()
    with runtime.locked(directory):
        living = [host for folder in _folders(directory) if (host := _living(folder)) is not None]
        # A device's claim is taken before its socket is made and given back after, but `claims` is a moment old.
        for path in directory.glob(f"*{_SOCKET_SUFFIX}"):
            uuid = path.name.removesuffix(_SOCKET_SUFFIX)
            if (
                is_uuid(uuid)
                and uuid not in claims
                and not (directory / "instances" / uuid).exists()
                and is_dead_socket(path)
            ):
                path.unlink(missing_ok=True)
        runtime.prune(directory)
    return living


def running(directory: Path | None = None) -> dict[str, Claimed]:
    """UUID -> claim of every device that lives; what the dead left is removed."""
    directory = directory or runtime.runtime_directory()
    tidy(directory)
    return InstanceClaims(directory).used()


def find(uuid: str, claimed: Claimed, directory: Path | None = None) -> HostFolder | None:
    """The host process of a running device; None when some other kind of process has it."""
    hosts = {host.name: host for host in tidy(directory)}
    host = hosts.get(uuid) or hosts.get(claimed.parent)
    return host if host is not None and host.pid == claimed.pid else None


def claim_folder(directory: Path, name: str) -> tuple[Path, int] | None:
    """Make the folder of a host and lock it; returns folder and lock, a descriptor that the host must keep open.

    None when a living process has it. Raises: InvalidArgument (name), StateError as `umdev.runtime.locked`.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise InvalidArgument(f"{name!r} can't name a host process")
    folder = directory / _FOLDER / name
    with runtime.locked(directory):
        if folder.exists() and _living(folder) is not None:
            return None
        for made in (folder.parent, folder):
            made.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder / "pid", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return folder, descriptor


def write_pid(descriptor: int) -> None:
    """Record the calling process in the file that it locks."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def release_folder(directory: Path, folder: Path, descriptor: int) -> None:
    """Remove a host's folder and give up its lock."""
    try:
        if directory.exists():
            with runtime.locked(directory):
                if folder.exists() and os.path.samestat((folder / "pid").stat(), os.fstat(descriptor)):
                    shutil.rmtree(folder)
                runtime.prune(directory)
    finally:
        os.close(descriptor)


def _folders(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in (directory / _FOLDER).iterdir() if path.is_dir())
    except FileNotFoundError:
        return []


def _living(folder: Path) -> HostFolder | None:
    """The host of a folder; a dead one's folder is removed."""
    try:
        descriptor = os.open(folder / "pid", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        shutil.rmtree(folder)
        return None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return HostFolder(folder.name, folder, int(os.read(descriptor, 32) or b"0"))
        shutil.rmtree(folder)
        return None
    finally:
        os.close(descriptor)
