"""The privileged helper's program: populates memory for one domain, on behalf of a process that may no longer.

It is all that stays privileged, so it is little: it imports nothing of umdev's, and is started by its path. It takes
requests on its standard input, 24 bytes each: operation, first frame, pages; it answers each with 4 bytes, 0 or errno.
What it grants: pages in one range of the addresses of its one domain; nothing else is asked of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

REQUEST = struct.Struct("=QQQ")
REPLY = struct.Struct("=i")
POPULATE, RELEASE = 6, 1
"""XENMEM_populate_physmap, XENMEM_decrease_reservation (xen/memory.h)."""
_MEMORY_OP = 12
"""__HYPERVISOR_memory_op (xen/xen.h)."""
_RESERVATION = struct.Struct("=QQIIH6x")
"""struct xen_memory_reservation on x86-64: extents, their number, order, flags, domain."""
_BATCH = 256


class Granter:
    """One domain's frames from `first` on, `count` of them. Raises: OSError (no library, or no Xen)."""

    def __init__(self, domain: int, first: int, count: int) -> None:
        self._domain = domain
        self._frames = range(first, first + count)
        library = ctypes.CDLL("libxencall.so.1", use_errno=True)
        library.xencall_open.restype = library.xencall_alloc_buffer.restype = ctypes.c_void_p
        library.xencall_alloc_buffer.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        library.xencall2.argtypes = (ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint64, ctypes.c_uint64)
        self._library = library
        self._call = library.xencall_open(None, 0)
        if self._call is None:
            raise OSError(ctypes.get_errno(), "xencall_open")
        self._buffer = library.xencall_alloc_buffer(self._call, _RESERVATION.size + 8 * _BATCH)
        if self._buffer is None:
            raise OSError(ctypes.get_errno(), "xencall_alloc_buffer")

    def serve(self, operation: int, first: int, pages: int) -> int:
        """0 or an errno; after one of POPULATE the domain has none of the pages."""
        wanted = range(first, first + pages)
        inside = wanted and wanted[0] in self._frames and wanted[-1] in self._frames
        if operation not in (POPULATE, RELEASE) or not inside:
            return errno.EPERM
        done = 0
        while done < pages:
            batch = wanted[done : done + _BATCH]
            count = self._reserve(operation, batch)
            done += max(0, count)
            if count != len(batch):
                if operation == POPULATE:
                    for start in range(0, done, _BATCH):
                        self._reserve(RELEASE, wanted[start : min(start + _BATCH, done)])
                return errno.ENOMEM if count >= 0 else -count
        return 0

    def _reserve(self, operation: int, frames: Sequence[int]) -> int:
        """How many pages; a negative errno."""
        head = _RESERVATION.pack(self._buffer + _RESERVATION.size, len(frames), 0, 0, self._domain)
        content = head + struct.pack(f"={len(frames)}Q", *frames)
        ctypes.memmove(self._buffer, content, len(content))
        count = int(self._library.xencall2(self._call, _MEMORY_OP, operation, self._buffer))
        return count if count >= 0 else -ctypes.get_errno()


def main() -> int:
    """The process: domain, first frame and frames as arguments, a socket as standard input. Ends with it."""
    granter = Granter(*map(int, sys.argv[1:4]))
    with socket.socket(fileno=os.dup(0)) as link:
        while len(request := link.recv(REQUEST.size, socket.MSG_WAITALL)) == REQUEST.size:
            try:
                link.sendall(REPLY.pack(granter.serve(*REQUEST.unpack(request))))
            except BrokenPipeError:
                break
    return 0


if __name__ == "__main__":
    sys.exit(main())
