"""The cache folder: entries that are complete or absent, shared by any number of processes.

An entry is a folder that was filled under another name and renamed, so a half-done one is never seen. Its manifest
lists every file with its size; an entry that no longer agrees with its manifest is filled anew.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from umdev_testkit.errors import CacheLocked, CacheUnusable, DiskFull

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["cache_folder", "entry", "intact", "locked"]

MANIFEST = "umdev-manifest.json"
LOCK_WAIT = 1800.0  # seconds: longer than a fetch over a slow line takes
_POLL = 0.1  # seconds between two looks at a lock that another process holds
_TEMPORARY = "filling-"


def cache_folder() -> Path:
    """Return the cache folder: `$UMDEV_CACHE`, else `$XDG_CACHE_HOME/umdev`, else `~/.cache/umdev`.

    The folder need not exist. A relative `XDG_CACHE_HOME` is ignored, as the XDG base directory specification asks.
    """
    if named := os.environ.get("UMDEV_CACHE"):
        return Path(named).absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(xdg) if xdg.startswith("/") else Path.home() / ".cache") / "umdev"


@contextmanager
def locked(folder: Path, *, wait: float = LOCK_WAIT) -> Iterator[None]:
    """Hold the folder's lock against all other processes and threads; a killed holder loses it at once.

    Raises:
        CacheLocked: another process held it for `wait` seconds; its process id is in the text.
        CacheUnusable: the folder cannot be made or written.
    """
    path = folder / "lock"
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+")
    with handle:
        deadline = time.monotonic() + wait
        told = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = path.read_text().strip() or "unknown"
                if time.monotonic() >= deadline:
                    raise CacheLocked(
                        f"process {holder} has been filling the cache folder {folder} for more than {wait:.0f} s: "
                        f"wait for it or end it, or name another folder in $UMDEV_CACHE"
                    ) from None
                if not told:
                    sys.stderr.write(f"umdev: waiting for process {holder}, which fills {folder}\n")
                    told = True
                time.sleep(_POLL)
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        yield


def intact(folder: Path) -> bool:
    """Tell whether every file of an entry is there with the size that its manifest says."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return all((folder / name).lstat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def entry(name: str, fill: Callable[[Path], None], *, folder: Path | None = None, wait: float = LOCK_WAIT) -> Path:
    """Return the folder of the named entry; `fill` is called with an empty folder when there is none, or a damaged one.

    Safe against other threads and processes. When `fill` raises, nothing of its work stays. An intact entry is used
    without taking the lock or writing anything, so a read-only cache folder will do.

    Raises:
        CacheLocked: another process held the lock for `wait` seconds.
        CacheUnusable: the cache folder cannot be written.
        DiskFull: it is full.
    """
    folder = folder or cache_folder()
    final = folder / name
    if intact(final):
        return final
    with locked(folder, wait=wait):
        if intact(final):  # the process that we waited for has just made it
            return final
        with _explained(folder):
            for stale in folder.glob(f"{_TEMPORARY}*"):  # of a killed process: we hold the lock, so nobody uses it
                shutil.rmtree(stale, ignore_errors=True)
            if final.exists():
                sys.stderr.write(f"umdev: {final} is damaged; fetching it again\n")
                shutil.rmtree(final)
            temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
            try:
                temporary.chmod(0o755)
                fill(temporary)
                _write_manifest(temporary)
                temporary.rename(final)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return final


def _write_manifest(folder: Path) -> None:
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=0))


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn what the operating system says about the cache folder into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no room left in {folder}: free some, or name another folder in $UMDEV_CACHE") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise CacheUnusable(
                f"cannot write the cache folder {folder} ({error.strerror}): name another one in $UMDEV_CACHE"
            ) from error
        raise
