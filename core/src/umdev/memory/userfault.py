"""How to get a userfaultfd, and what to tell a user who can't."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from umdev._native import lib
from umdev.errors import NotSupported, ProtectError

DEVICE = Path("/dev/userfaultfd")
REMEDY = (
    "give the user access to /dev/userfaultfd (Linux 6.1 or later), or set vm.unprivileged_userfaultfd=1, "
    "or run with CAP_SYS_PTRACE"
)


@dataclass(frozen=True, slots=True)
class Userfault:
    """An enabled userfaultfd of this process; its taker closes it."""

    descriptor: int
    asynchronous: bool
    """The kernel resolves faults by itself and remembers them."""
    user_only: bool
    """Stores by the kernel (a read(2) into the memory) fail with EFAULT instead of being trapped."""
    how: str
    """Where it came from, for people."""


def open_userfault(*, asynchronous: bool = False, user_only: bool = False) -> Userfault:
    """Open and enable one: the device node, else the system call; `user_only`: else one for user code alone.

    Raises: NotSupported (with what would help).
    """
    reasons: list[str] = []
    for how, flag in (("/dev/userfaultfd", False), ("userfaultfd(2)", False), ("userfaultfd(2), user code only", True)):
        if flag and not user_only:
            continue
        descriptor = _open(how, user_only=flag)
        if descriptor < 0:
            reasons.append(f"{how}: {os.strerror(-descriptor)}")
            continue
        return adopt_userfault(descriptor, how, asynchronous=asynchronous, user_only=flag)
    raise NotSupported(f"no userfaultfd ({'; '.join(reasons)}): {REMEDY}")


def adopt_userfault(descriptor: int, how: str, *, asynchronous: bool, user_only: bool = False) -> Userfault:
    """Enable a userfaultfd that has just been made, here or in another process; `how` says where it came from.

    Takes the descriptor, also when it fails.

    Raises: NotSupported.
    """
    code = -lib.umdev_userfault_enable(descriptor, asynchronous)
    if code:
        os.close(descriptor)
        kind = "asynchronous write-protection (Linux 6.7)" if asynchronous else "write-protection (Linux 5.19)"
        raise NotSupported(f"this kernel's userfaultfd has no {kind} for shared memory: {os.strerror(code)}")
    return Userfault(descriptor, asynchronous, user_only, how)


def _open(how: str, *, user_only: bool) -> int:
    """A descriptor, or a negative errno."""
    if how != str(DEVICE):
        return int(lib.umdev_userfault_open(-1, user_only))
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return -(error.errno or errno.EIO)
    try:
        return int(lib.umdev_userfault_open(device, user_only))
    finally:
        os.close(device)


def unavailable() -> str | None:
    """Why this process can't protect its own memory; None when it can. For `doctor` and for skipping tests."""
    try:
        os.close(open_userfault(user_only=True).descriptor)
    except (NotSupported, ProtectError) as error:
        return str(error)
    return None
