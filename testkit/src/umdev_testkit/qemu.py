"""A QEMU that has vfio-user (10.1 or newer): the user's, the system's, or Debian's from trixie-backports in the cache.

Debian's QEMU is built for fixed paths. The private copy is started through its own dynamic loader with its own
libraries, is told where its firmware lies, and has the built-in module folder renamed, so that it never loads modules
of a QEMU that is installed on the machine. `python -m umdev_testkit.qemu ARGUMENT...` starts the one found.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn

from umdev_testkit import cache
from umdev_testkit.debian import Bundle, bundle
from umdev_testkit.errors import GuestError, QemuNotFound, QemuTooOld, QemuUnusable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["MINIMUM", "Qemu", "fetched", "find", "for_xen", "main", "private"]

MINIMUM = (10, 1)
_BUNDLE = Bundle("qemu-trixie", ("qemu-system-x86",), ("trixie", "trixie-backports"), target="trixie-backports")
_XEN_BUNDLE = Bundle("qemu-bookworm", ("qemu-system-x86",), ("bookworm",))
_NAME = "qemu-system-x86_64"
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
_MODULES = b"/usr/lib/x86_64-linux-gnu/qemu"
_PROBE_TIME = 30.0  # seconds
_ADVICE = (
    "vfio-user came with QEMU 10.1: unset $UMDEV_QEMU and the test kit fetches one by itself, or install "
    "qemu-system-x86 from Debian's trixie-backports"
)


@dataclass(frozen=True)
class Qemu:
    """How to start QEMU: the command's first words, additions to the environment, and its version."""

    command: tuple[str, ...]
    version: tuple[int, int, int]
    environment: Mapping[str, str] = field(default_factory=dict)


def find() -> Qemu:
    """Return the QEMU that `$UMDEV_QEMU` names, else the system's if it will do, else the private one.

    Raises:
        QemuNotFound: `$UMDEV_QEMU` names nothing that runs as QEMU.
        QemuTooOld: `$UMDEV_QEMU` names one without vfio-user.
        FetchError: the private one cannot be fetched.
    """
    if named := os.environ.get("UMDEV_QEMU"):
        path = shutil.which(named)
        if path is None:
            raise QemuNotFound(f"$UMDEV_QEMU names {named!r}, which is no program: {_ADVICE}")
        return _checked(path)
    if system := shutil.which(_NAME):
        try:
            return _checked(system)
        except QemuUnusable:  # the machine's own need not be fit for us
            pass
    return private()


def private() -> Qemu:
    """Return Debian's QEMU from the cache, fetched first if need be.

    Raises:
        FetchError: it cannot be fetched.
    """
    return _launcher(bundle(_BUNDLE, finish=_finish))


def fetched() -> Qemu | None:
    """Return the private one if the cache has it; nothing is fetched.

    Raises:
        QemuUnusable: it does not run here.
    """
    folder = cache.cache_folder() / _BUNDLE.name
    return _launcher(folder) if cache.intact(folder) else None


def for_xen() -> Qemu:
    """Return QEMU 7.2, bookworm's, from the cache, fetched first if need be.

    It runs what Xen does with AMD's virtualization extensions. QEMU 11.1 was tried and halts a 64-bit domain at its
    first instructions, while 32-bit domains run.

    Raises:
        FetchError: it cannot be fetched.
    """
    command, environment = _words(bundle(_XEN_BUNDLE, finish=_seclude))
    return Qemu(command, _version(command, tuple(environment.items())), environment)


def _finish(prefix: Path) -> None:
    """Make the unpacked QEMU independent of the machine's, and see that it runs."""
    _seclude(prefix)
    _launcher(prefix)


def _seclude(prefix: Path) -> None:
    binary = prefix / "usr/bin" / _NAME
    content = binary.read_bytes()
    binary.write_bytes(content.replace(_MODULES, _MODULES[:-1] + b"X"))


def _launcher(prefix: Path) -> Qemu:
    command, environment = _words(prefix)
    return Qemu(command, _probe(command, tuple(environment.items())), environment)


def _words(prefix: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """The first words of the unpacked QEMU's command, and what it needs in its environment."""
    libraries = [prefix / path for path in _LIBRARIES]
    loader = next(path for folder in libraries if (path := folder / "ld-linux-x86-64.so.2").exists())
    share = prefix / "usr/share"
    command = (
        str(loader), "--inhibit-cache", "--library-path", ":".join(map(str, libraries)),
        str(prefix / "usr/bin" / _NAME),
        "-L", str(share / "qemu"), "-L", str(share / "seabios"), "-L", str(prefix / "usr/lib/ipxe/qemu"),
    )  # fmt: skip
    return command, {"QEMU_MODULE_DIR": str(libraries[0] / "qemu")}


def _checked(path: str) -> Qemu:
    return Qemu((path,), _probe((path,)))


@lru_cache(maxsize=16)
def _probe(command: tuple[str, ...], environment: tuple[tuple[str, str], ...] = ()) -> tuple[int, int, int]:
    """Return the version of a QEMU that has vfio-user; ask the program itself."""
    version = _version(command, environment)
    if version < MINIMUM:
        raise QemuTooOld(f"{command[0]} is QEMU {'.'.join(map(str, version))}, which has no vfio-user: {_ADVICE}")
    if '"vfio-user-pci"' not in _ask(command, environment, "-machine", "none", "-device", "help"):
        raise QemuTooOld(f"{command[0]} is QEMU {'.'.join(map(str, version))}, built without vfio-user: {_ADVICE}")
    return version


@lru_cache(maxsize=16)
def _version(command: tuple[str, ...], environment: tuple[tuple[str, str], ...] = ()) -> tuple[int, int, int]:
    shown = _ask(command, environment, "--version")
    found = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", shown)
    if found is None:
        raise QemuNotFound(f"{command[0]} does not say QEMU's version but {shown.strip()[:120]!r}: {_ADVICE}")
    return int(found[1]), int(found[2]), int(found[3] or 0)


def _ask(command: tuple[str, ...], environment: tuple[tuple[str, str], ...], *arguments: str) -> str:
    try:
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=_PROBE_TIME, check=False,
            stdin=subprocess.DEVNULL, env=os.environ | dict(environment), errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QemuNotFound(f"{command[0]} does not run: {error}: {_ADVICE}") from error
    return done.stdout or done.stderr


def main() -> NoReturn:
    """Become QEMU with the arguments of this process; ends with 1 where there is none, and says why."""
    try:
        found = find()
    except GuestError as error:
        sys.exit(f"umdev: {error}")
    os.execvpe(found.command[0], [*found.command, *sys.argv[1:]], os.environ | dict(found.environment))  # noqa: S606


if __name__ == "__main__":
    main()
