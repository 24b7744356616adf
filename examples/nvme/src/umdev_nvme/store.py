"""Where the blocks are kept: sparse memory, or a file of the host."""

from __future__ import annotations

import fcntl
import os
import stat

from umdev.device import InvalidArgument

ZEROS = bytes(1 << 16)


class Store:
    """`size` bytes behind a descriptor. Offsets and lengths are in bytes, and the caller has checked them.

    `where` is "memory" or "file:PATH". A write has reached a file's disk when `write` returns: so there is no cache to
    flush, which could take any time.
    """

    def __init__(self, where: str, size: int) -> None:
        """Raises: InvalidArgument for another place, or a file that won't do; OSError where the host refuses."""
        self.size = size
        if where == "memory":
            self._descriptor = os.memfd_create("umdev-nvme")
            os.ftruncate(self._descriptor, size)
            self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        elif where.startswith("file:") and where != "file:":
            self.path = os.path.abspath(where.removeprefix("file:"))  # noqa: PTH100  # resolve() would follow links
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_DSYNC, 0o600)
            try:
                self._claim_file()
            except BaseException:
                os.close(self._descriptor)
                raise
        else:
            raise InvalidArgument(f"the blocks are kept in 'memory' or 'file:PATH', not in {where!r}")

    def read(self, offset: int, length: int) -> bytes:
        """Raises: OSError, also when somebody made the file shorter."""
        data = os.pread(self._descriptor, length, offset)
        if len(data) != length:
            raise OSError(f"{self.path} has lost its bytes from {offset + len(data):#x} on")
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Raises: OSError; some of the bytes may have been written."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written

    def zero(self, offset: int, length: int) -> None:
        """Raises: as `write`."""
        while length:
            part = min(length, len(ZEROS))
            self.write(offset, ZEROS[:part])
            offset, length = offset + part, length - part

    def close(self) -> None:
        """Give the descriptor back; call it once. What is in memory is gone."""
        os.close(self._descriptor)

    def _claim_file(self) -> None:
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise InvalidArgument(f"{self.path} is no regular file: the blocks are kept in a file")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidArgument(f"{self.path} is in use: stop the other device first") from None
        if found.st_size not in (0, self.size):  # never cut, nor stretched: it may hold somebody's data
            raise InvalidArgument(f"{self.path} has {found.st_size} bytes, this type needs {self.size}, or a new file")
        os.ftruncate(self._descriptor, self.size)
