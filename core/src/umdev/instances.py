"""Instances in use, counted across processes: one locked file in the runtime directory for each.

The lock (flock) ends with the process that holds it, however it ends; whoever looks next removes the file. So a count
never includes the dead, and nothing needs a daemon. A child that a device's process forks without exec shares the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from . import runtime
from .errors import Conflict, InvalidArgument, NoInstanceLeft

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Claim", "Claimed", "InstanceClaims"]

_FOLDER = "instances"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Claimed:
    """An instance in use: of which parent and type, how many of the parent's units it takes, by which process."""

    parent: str
    type: str
    units: int
    pid: int


class Claim:
    """Holds an instance until `close()` or the end of the process that took it. Any thread.

    A child that this process forks has no claim of its own: `close()` there closes its copy of the descriptor.
    """

    def __init__(self, directory: Path, path: Path, descriptor: int) -> None:
        self._directory = directory
        self._path = path
        self._descriptor = descriptor
        self._owner = os.getpid()

    def close(self) -> None:
        """Give the instance back. May be called twice.

        Raises: StateError when the runtime directory stays locked or is no longer private.
        """
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor == -1:
            return
        try:
            if os.getpid() != self._owner or not self._directory.exists():
                return
            with runtime.locked(self._directory):
                # The file may have been deleted and claimed anew by someone else.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.lstat(self._path), os.fstat(descriptor)):
                        self._path.unlink()
                runtime.prune(self._directory)
        finally:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class InstanceClaims:
    """The claims of one user's processes. Holds nothing itself; any thread."""

    def __init__(self, runtime_dir: Path | None = None) -> None:
        """`runtime_dir` stands in for the user's runtime directory."""
        self._directory = runtime_dir or runtime.runtime_directory()

    def claim(self, parent: str, type_id: str, uuid: str, units: int, capacity: int) -> Claim:
        """Take `units` of the `capacity` of a parent under a UUID (canonical form, lower case).

        After a failure nothing is taken.

        Raises: Conflict when the UUID is in use, with any parent; NoInstanceLeft, which names what is in use;
        InvalidArgument; StateError as `runtime.locked`.
        """
        if not _UUID.fullmatch(uuid):
            raise InvalidArgument(f"{uuid!r} is not a UUID in canonical form")
        if units < 1:
            raise InvalidArgument(f"an instance of {type_id} takes at least one unit, not {units}")
        with runtime.locked(self._directory):
            try:
                return self._claim(Claimed(parent, type_id, units, os.getpid()), uuid, capacity)
            finally:
                runtime.prune(self._directory)

    def used(self, parent: str | None = None) -> dict[str, Claimed]:
        """UUID -> claim, of one parent or of all, in order of UUID. Files that the dead left are removed.

        Raises: StateError as `runtime.locked`.
        """
        if not runtime.exists(self._directory):
            return {}
        with runtime.locked(self._directory):
            found = self._living()
            runtime.prune(self._directory)
        return {uuid: claimed for uuid, claimed in found.items() if parent in (None, claimed.parent)}

    def _claim(self, wanted: Claimed, uuid: str, capacity: int) -> Claim:
        living = self._living()
        if (other := living.get(uuid)) is not None:
            raise Conflict(f"{uuid} is in use: {other.type} of {other.parent} in process {other.pid}")
        siblings = {uuid: claimed for uuid, claimed in living.items() if claimed.parent == wanted.parent}
        used = sum(claimed.units for claimed in siblings.values())
        if used + wanted.units > capacity:
            who = "".join(f"\n  {uuid} {other.type} in process {other.pid}" for uuid, other in siblings.items())
            raise NoInstanceLeft(
                f"{wanted.parent} has no instance of {wanted.type} left: it takes {wanted.units} of {capacity} units, "
                f"{used} are in use{':' if who else ''}{who}"
            )
        path = self._directory / _FOLDER / uuid
        path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fields = {name: getattr(wanted, name) for name in Claimed.__slots__}
            os.write(descriptor, json.dumps(fields).encode())
        except BaseException:
            path.unlink()
            os.close(descriptor)
            raise
        return Claim(self._directory, path, descriptor)

    def _living(self) -> dict[str, Claimed]:
        return {path.name: claimed for path in self._files() if (claimed := _read_living(path)) is not None}

    def _files(self) -> Iterator[Path]:
        with contextlib.suppress(FileNotFoundError):
            yield from sorted((self._directory / _FOLDER).iterdir())


def _read_living(path: Path) -> Claimed | None:
    """What the file says if its process lives; else the file is removed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Claimed(**json.loads(os.read(descriptor, 65536)))
        path.unlink()
        return None
    finally:
        os.close(descriptor)
