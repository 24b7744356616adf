"""What the guest part of the test kit raises; all of it derives from `umdev.errors.UmdevError`.

The tree:

    GuestError
    +-- FetchError                 Debian's packages cannot be had; the text says what to do
    |   +-- NoNetwork              the mirror cannot be reached
    |   +-- NoApt                  this machine has no apt-get, apt-config or dpkg-deb, or is no x86-64 machine
    |   +-- PackageMissing         the mirror has no such package
    |   +-- ArchiveNotTrusted      the mirror's signature cannot be verified
    |   +-- DiskFull               the cache folder has no room left
    |   +-- CacheUnusable          the cache folder cannot be written
    |   +-- CacheLocked            another process has been filling the cache for too long
    +-- QemuUnusable               no usable QEMU
    |   +-- QemuNotFound           $UMDEV_QEMU names nothing that runs
    |   +-- QemuTooOld             it has no vfio-user-pci device
    +-- ModuleMissing              the kernel has no such module; names near ones
    +-- CompileFailed              gcc is missing or refused a program
    +-- SanitizerMissing           the compiler or the kernel can't do a sanitizer, or there is no compiler
    +-- GuestFailed                something went wrong in or with a guest; the text ends with the console's tail
        +-- GuestTimedOut          a time limit passed; the guest has been killed
        +-- GuestDied              QEMU ended although nobody asked
        +-- ScriptFailed           a script or command ended with another status than 0; carries `status`, `output`
"""

from __future__ import annotations

import errno as _errno

from umdev.errors import UmdevError

__all__ = [
    "ArchiveNotTrusted",
    "CacheLocked",
    "CacheUnusable",
    "CompileFailed",
    "DiskFull",
    "FetchError",
    "GuestDied",
    "GuestError",
    "GuestFailed",
    "GuestTimedOut",
    "ModuleMissing",
    "NoApt",
    "NoNetwork",
    "PackageMissing",
    "QemuNotFound",
    "QemuTooOld",
    "QemuUnusable",
    "SanitizerMissing",
    "ScriptFailed",
]


class GuestError(UmdevError):
    """Base of all that goes wrong with real guests."""


class FetchError(GuestError):
    """Debian's packages cannot be had."""


class NoNetwork(FetchError):
    """The mirror cannot be reached."""

    errno = _errno.ENETUNREACH


class NoApt(FetchError):
    """This machine lacks apt's tools or a Debian mirror in its sources, or its processor is no x86-64."""

    errno = _errno.ENOSYS


class PackageMissing(FetchError):
    """The mirror has no such package, or no such suite."""

    errno = _errno.ENOENT


class ArchiveNotTrusted(FetchError):
    """The mirror's signature cannot be verified with the keys at hand."""

    errno = _errno.EACCES


class DiskFull(FetchError):
    """The cache folder has no room left."""

    errno = _errno.ENOSPC


class CacheUnusable(FetchError):
    """The cache folder cannot be written."""

    errno = _errno.EACCES


class CacheLocked(FetchError):
    """Another process has been filling the cache for too long."""

    errno = _errno.EBUSY


class QemuUnusable(GuestError):
    """No usable QEMU."""

    errno = _errno.ENOENT


class QemuNotFound(QemuUnusable):
    """$UMDEV_QEMU names nothing that runs."""


class QemuTooOld(QemuUnusable):
    """This QEMU has no vfio-user-pci device."""

    errno = _errno.ENOSYS


class ModuleMissing(GuestError, LookupError):
    """The kernel has no such module."""

    errno = _errno.ENOENT


class CompileFailed(GuestError):
    """A program for the guest, or a test in C, could not be compiled."""

    errno = _errno.EINVAL


class SanitizerMissing(GuestError):
    """The C compiler or the kernel can't do a sanitizer, or there is no compiler."""

    errno = _errno.ENOSYS


class GuestFailed(GuestError):
    """Something went wrong in or with a guest."""


class GuestTimedOut(GuestFailed):
    """A time limit passed; the guest has been killed."""

    errno = _errno.ETIMEDOUT


class GuestDied(GuestFailed):
    """QEMU ended although nobody asked for it."""

    errno = _errno.ESHUTDOWN


class ScriptFailed(GuestFailed):
    """A script or command in the guest ended with another status than 0.

    `status` is its exit status, `output` what it printed (stdout and stderr).
    """

    def __init__(self, text: str, status: int, output: str) -> None:
        super().__init__(text)
        self.status = status
        self.output = output
