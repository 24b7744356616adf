"""From the C side's error numbers to the named errors of `umdev.errors`."""

from __future__ import annotations

import errno
import os

from umdev._native import lib
from umdev.errors import (
    BusMasterDisabled,
    DmaAborted,
    DmaError,
    DmaWouldDeadlock,
    InvalidArgument,
    MapLimit,
    MappingPoisoned,
    NotMapped,
    NotPermitted,
    StateError,
    UmdevError,
)

POISONED: int = lib.UMDEV_MEMORY_POISONED


def dma_error(code: int, iova: int, length: int, failed: int, space: int, *, write: bool) -> DmaError:
    """The error for `umdev_memory_transfer` having answered `-code` at `failed`."""
    verb = "write" if write else "read"
    what = f"DMA {verb} of {length} bytes at {iova:#x}" + (f" in space {space}" if space else "")
    left = iova + length - failed
    if code == errno.EFAULT:
        return NotMapped(f"{what}: no map covers {failed:#x}", failed, left)
    if code == errno.EACCES:
        return NotPermitted(f"{what}: the map at {failed:#x} forbids it", failed, left)
    if code == errno.EPERM:
        text = f"{what}: the driver has not enabled bus mastering (Command register bit 2)"
        return BusMasterDisabled(text, failed, left)
    if code == errno.EDEADLK:
        text = (
            f"{what}: memory at {failed:#x} is reachable by message only, and the client may be waiting for this "
            "very handler; do the transfer in deferred work (self.after(0, ...))"
        )
        return DmaWouldDeadlock(text, failed, left)
    if code == errno.ECANCELED:
        return DmaAborted(f"{what}: the device's work ended while it waited for the client (a reset)", failed, left)
    if code == POISONED:
        text = f"{what}: the file behind the map at {failed:#x} shrank; the map holds zeros from now on"
        return MappingPoisoned(text, failed, left)
    if code == errno.ENOTCONN:
        text = f"{what}: memory at {failed:#x} is reachable by message only and no client is connected"
    else:
        text = f"{what}: failed at {failed:#x}: {os.strerror(code)}"
    error = DmaError(text, failed, left)
    error.errno = code
    return error


def check_table(result: int) -> None:
    """Raise what a change of the table has answered. Raises: MapLimit, StateError, MemoryError."""
    if result >= 0:
        return
    if result == -errno.ENOSPC:
        raise MapLimit(f"an address space takes {lib.UMDEV_MEMORY_MAPS_MAX} maps at most")
    if result == -errno.EDEADLK:
        raise StateError("maps can't change inside a reader section of the same thread")
    raise MemoryError


def backing_error(code: int, descriptor: int, offset: int, length: int) -> UmdevError:
    """The error for `umdev_memory_backing_open` having answered `-code`."""
    what = f"can't map {length:#x} bytes at offset {offset:#x} of descriptor {descriptor}"
    if code == errno.EMEDIUMTYPE:
        return InvalidArgument(f"{what}: not a file on tmpfs or hugetlbfs (share guest memory from a memfd)")
    if code == errno.EFBIG:
        return InvalidArgument(f"{what}: the file ends before it")
    if code in (errno.EACCES, errno.EPERM):
        return InvalidArgument(f"{what}: the descriptor was not opened for the protection asked for")
    if code == errno.EBADF:
        return InvalidArgument(f"{what}: not an open descriptor")
    if code == errno.EDQUOT:
        return MapLimit(
            f"{what}: all clients of this process together have {lib.umdev_memory_backings_max()} maps of files, "
            "half of vm.max_map_count: raise that (sysctl), or serve the devices from more processes"
        )
    if code in (errno.ENOMEM, errno.ENOSPC):
        error = UmdevError(f"{what}: {os.strerror(code)} (address space, huge pages, or vm.max_map_count)")
        error.errno = errno.ENOMEM
        return error
    return InvalidArgument(f"{what}: {os.strerror(code)}")
