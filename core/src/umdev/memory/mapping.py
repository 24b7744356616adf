"""One DMA map, and the memory behind it."""

from __future__ import annotations

import functools
import os
from typing import Any

from umdev._native import ffi, lib
from umdev.addresses import HostVirt, Iova
from umdev.services import Protection

from .failures import backing_error


class Backing:
    """A client's file in this process's address space, or what a bus has mapped there by its own means.

    The address range lives as long as anything that was made from `buffer`: a view that somebody kept reads zeros after
    `detach`, and the range is given back when the last one is gone.
    """

    __slots__ = ("_detached", "buffer", "guard", "host", "inode", "native", "offset", "views")

    def __init__(self, descriptor: int, offset: int, length: int, protection: Protection) -> None:
        native = ffi.new("umdev_backing *")
        code = -lib.umdev_memory_backing_open(descriptor, offset, length, protection.value, native)
        if code:
            raise backing_error(code, descriptor, offset, length)
        status = os.fstat(descriptor)
        self._fill(native, length, protection, (status.st_dev, status.st_ino), offset)

    def _fill(
        self, native: Any, length: int, protection: Protection, inode: tuple[int, int] | None, offset: int
    ) -> None:
        self.native = native
        self.guard: int = native.guard
        self.host = HostVirt(int(ffi.cast("uintptr_t", native.host)))
        self.inode = inode
        self.offset = offset
        self.views = 0
        """Open views, for the address space that counts them."""
        self._detached = False
        # The memoryview keeps the cdata, and the cdata's end closes the range.
        bytes_ = ffi.gc(native.host, functools.partial(_close, native))
        view = memoryview(ffi.buffer(bytes_, length))
        self.buffer = view if Protection.WRITE in protection else view.toreadonly()

    @classmethod
    def of_guest(cls, descriptor: int, length: int) -> Backing:
        """A guest's own mapping of all its memory."""
        return cls(descriptor, 0, length, Protection.READ | Protection.WRITE)

    @classmethod
    def adopt(cls, address: HostVirt, length: int, protection: Protection) -> Backing:
        """Memory that is mapped already, whole pages; after an error it stays the caller's."""
        native = ffi.new("umdev_backing *")
        code = -lib.umdev_memory_backing_adopt(ffi.cast("void *", address), length, protection.value, native)
        if code:
            raise backing_error(code, -1, address, length)
        backing = cls.__new__(cls)
        backing._fill(native, length, protection, None, 0)  # noqa: SLF001  # a new one of this very class
        return backing

    def give_back(self) -> None:
        """Undo `adopt`: the memory is the caller's again, and nothing here points to it."""
        lib.umdev_guard_remove(self.guard)
        self.native.base = ffi.NULL

    def detach(self) -> None:
        """Put anonymous zeros in place of the file. Pointers and views stay valid."""
        if not self._detached:
            self._detached = True
            lib.umdev_memory_backing_detach(self.native)


def _close(native: Any, _bytes: Any) -> None:
    lib.umdev_memory_backing_close(native)


class Mapping:
    """One DMA map: `length` bytes at `iova` in `space`. Immutable; after its unmap it only names what was."""

    __slots__ = ("_backing", "iova", "length", "protection", "space")

    def __init__(self, iova: Iova, length: int, protection: Protection, space: int, backing: Backing | None) -> None:
        self.iova = iova
        self.length = length
        self.protection = protection
        self.space = space
        self._backing = backing

    @property
    def end(self) -> int:
        """One past the last address."""
        return self.iova + self.length

    @property
    def host(self) -> HostVirt | None:
        """Where the device's mapping begins in this process; None when it is reachable by message only, or unmapped."""
        return self._backing.host if self._backing else None

    @property
    def file(self) -> tuple[int, int] | None:
        """Device and inode number of the file behind it, if there is one: how a protector finds the VMM's mapping."""
        return self._backing.inode if self._backing else None

    @property
    def file_offset(self) -> int:
        """Where the map begins in the file, in bytes."""
        return self._backing.offset if self._backing else 0

    @property
    def poisoned(self) -> bool:
        """Whether the client's file shrank under the map."""
        return self._backing is not None and lib.umdev_guard_poisoned(self._backing.guard) == 1

    @property
    def backing(self) -> Backing | None:
        """The file behind it, for the address space that it belongs to."""
        return self._backing

    def forget(self) -> None:
        """Leave the memory to the views that somebody kept. The address space calls it; may be called twice."""
        if self._backing:
            self._backing.detach()
            self._backing = None

    def __repr__(self) -> str:
        where = "message" if self._backing is None else f"host {self._backing.host:#x}"
        space = f" space {self.space}" if self.space else ""
        return f"<Mapping {self.iova:#x}+{self.length:#x}{space} {self.protection.name} {where}>"
