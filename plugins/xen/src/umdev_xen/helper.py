"""The privileged helper: a small process that populates memory for one domain, on behalf of a restricted one.

It takes requests on its standard input, 24 bytes each: operation, first frame, pages; it answers each with 4 bytes, 0
or an errno. What it grants: pages on the shelf of its one domain, a bounded number; nothing else is asked of it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from umdev.addresses import PAGE_SIZE
from umdev.errors import HypervisorError

from .libraries import CALL, failure, ffi

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Helper", "main"]

_REQUEST = struct.Struct("=QQQ")
_REPLY = struct.Struct("=i")
_POPULATE, _RELEASE = 6, 1
"""XENMEM_populate_physmap, XENMEM_decrease_reservation (xen/memory.h)."""
_MEMORY_OP = 12
"""__HYPERVISOR_memory_op (xen/xen.h)."""
_RESERVATION = struct.Struct("=QQIIH6x")
"""struct xen_memory_reservation on x86-64: extents, their number, order, flags, domain."""
_BATCH = 256
_MAIN = "from umdev_xen.helper import main; raise SystemExit(main())"
PATIENCE = 60.0
"""Seconds that a request may take."""


class Helper:
    """Requests to a helper process, which is started at the first. Any thread. Closing it ends the process."""

    def __init__(self, domain: int) -> None:
        self._domain = domain
        self._lock = threading.Lock()
        self._link: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def populate(self, first: int, pages: int) -> None:
        """Give the domain pages. Raises: HypervisorError (its maximum is reached, mostly); then it got none."""
        self._ask(_POPULATE, first, pages)

    def release(self, first: int, pages: int) -> None:
        """Take them away. Raises: HypervisorError."""
        self._ask(_RELEASE, first, pages)

    def close(self) -> None:
        """May be called twice."""
        with self._lock:
            link, process = self._link, self._process
            self._link = self._process = None
        if link is not None:
            link.close()
        if process is not None:
            process.wait()

    def _ask(self, operation: int, first: int, pages: int) -> None:
        call = {_POPULATE: "XENMEM_populate_physmap", _RELEASE: "XENMEM_decrease_reservation"}[operation]
        with self._lock:
            link = self._link or self._start()
            try:
                link.sendall(_REQUEST.pack(operation, first, pages))
                reply = link.recv(_REPLY.size, socket.MSG_WAITALL)
            except OSError as error:
                raise failure(call, error.errno or errno.EIO) from error
        if len(reply) != _REPLY.size:
            raise HypervisorError(f"{call}: the privileged helper of domain {self._domain} has ended")
        (code,) = _REPLY.unpack(reply)
        if code:
            raise failure(call, code)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _MAIN, str(self._domain)], stdin=theirs.fileno()
            )
        self._link = ours
        return ours


class _Granter:
    """The process's side."""

    def __init__(self, domain: int) -> None:
        self._domain = domain
        self._call: Any = CALL.open("xencall_open", ffi.NULL, 0)
        size = _RESERVATION.size + 8 * _BATCH
        self._buffer: Any = CALL.open("xencall_alloc_buffer", self._call, size)

    def serve(self, operation: int, first: int, pages: int) -> int:
        """0 or an errno."""
        from .passthrough import SHELF, SHELF_SIZE

        start, end = SHELF // PAGE_SIZE, (SHELF + SHELF_SIZE) // PAGE_SIZE
        if operation not in (_POPULATE, _RELEASE) or not start <= first < first + pages <= end:
            return errno.EPERM
        done = 0
        while done < pages:
            batch = range(first + done, min(first + done + _BATCH, first + pages))
            count = self._reserve(operation, batch)
            done += max(0, count)
            if count != len(batch):
                if operation == _POPULATE:
                    for undone in range(0, done, _BATCH):
                        self._reserve(_RELEASE, range(first + undone, first + min(undone + _BATCH, done)))
                return errno.ENOMEM if count >= 0 else -count
        return 0

    def _reserve(self, operation: int, frames: Sequence[int]) -> int:
        """How many pages; a negative errno."""
        extents = int(ffi.cast("uintptr_t", self._buffer)) + _RESERVATION.size
        content = _RESERVATION.pack(extents, len(frames), 0, 0, self._domain) + struct.pack(f"={len(frames)}Q", *frames)
        ffi.memmove(self._buffer, content, len(content))
        ffi.errno = 0
        address = int(ffi.cast("uintptr_t", self._buffer))
        count = int(CALL.function("xencall2")(self._call, _MEMORY_OP, operation, address))
        return count if count >= 0 else -ffi.errno


def main() -> int:
    """The process: the domain as its argument, a socket as its standard input. Ends with it."""
    granter = _Granter(int(sys.argv[1]))
    with socket.socket(fileno=os.dup(0)) as link:
        while len(request := link.recv(_REQUEST.size, socket.MSG_WAITALL)) == _REQUEST.size:
            link.sendall(_REPLY.pack(granter.serve(*_REQUEST.unpack(request))))
    return 0
