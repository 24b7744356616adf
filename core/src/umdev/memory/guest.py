"""The loopback guest: memory that a driver in this process uses as if it were a VM's.

Only the guest mapping is ever write-protected, so only C stores go through it: a Python store to a protected page would
wait for a notification while it holds the GIL that the notification needs.
"""

from __future__ import annotations

import fcntl
import os
import threading
from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Any

from umdev._native import ffi, lib
from umdev.addresses import PAGE_MASK, PAGE_SIZE, GuestPhys
from umdev.errors import InvalidArgument, StateError, UmdevError

from .mapping import Backing

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

    from .protect import GuestProtector

_BYTES = ffi.typeof("char[]")


class GuestMemory:
    """`size` bytes of RAM from address 0, with the guest's loads and stores and an allocator for driver buffers.

    Any thread. A store to a protected page returns when the device model has been told; never store while holding the
    device lock. `close` gives everything back; maps that devices have made of `descriptor` live on by themselves.
    """

    def __init__(self, size: int, *, reserve: int = PAGE_SIZE) -> None:
        """`reserve` bytes at the start are never allocated, so that no buffer has address 0.

        Raises: InvalidArgument, UmdevError where the host has no address space for it, OSError.
        """
        if not 0 < size < 1 << 63 or size & PAGE_MASK or not 0 <= reserve <= size or reserve & PAGE_MASK:
            raise InvalidArgument(
                f"guest memory of {size:#x} bytes ({reserve:#x} reserved): it takes whole pages, below 2^63 bytes"
            )
        self.size = size
        self._descriptor = os.memfd_create("umdev-guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._descriptor, size)
            seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, seals)
            self._backing = Backing.of_guest(self._descriptor, size)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._base: Any = self._backing.native.host
        self._closed = False
        self._lock = threading.Lock()
        self._free: list[tuple[int, int]] = [(reserve, size)] if reserve < size else []
        self._taken: dict[int, int] = {}
        self._protector: GuestProtector | None = None

    # The guest's processor.

    def store(self, address: int, data: Buffer) -> None:
        """Store bytes; 1, 2, 4 or 8 aligned ones are one access.

        Raises: InvalidArgument (outside of the memory).
        """
        with ffi.from_buffer(_BYTES, data) as native:
            lib.umdev_guest_store(self._at(address, len(native)), native, len(native))

    def load(self, address: int, length: int) -> bytes:
        """Load bytes. Raises: InvalidArgument."""
        where = self._at(address, length)
        native = ffi.new(_BYTES, length)
        lib.umdev_guest_load(where, native, length)
        return bytes(ffi.buffer(native))

    def fill(self, address: int, length: int, byte: int = 0) -> None:
        """Set every byte. Raises: InvalidArgument."""
        lib.umdev_guest_fill(self._at(address, length), byte & 0xFF, length)

    def add32(self, address: int, value: int) -> int:
        """Atomic add (aligned); the value before."""
        return int(lib.umdev_guest_add32(self._aligned(address, 4), value & 0xFFFF_FFFF))

    def add64(self, address: int, value: int) -> int:
        """Atomic add (aligned); the value before."""
        return int(lib.umdev_guest_add64(self._aligned(address, 8), value & 0xFFFF_FFFF_FFFF_FFFF))

    def exchange64(self, address: int, value: int) -> int:
        """Atomic exchange (aligned); the value before."""
        return int(lib.umdev_guest_exchange64(self._aligned(address, 8), value))

    def compare_exchange64(self, address: int, expected: int, value: int) -> int:
        """Atomic compare-and-exchange (aligned); the value before: equal to `expected` when it was exchanged."""
        return int(lib.umdev_guest_compare_exchange64(self._aligned(address, 8), expected, value))

    # Buffers of the driver.

    def allocate(self, size: int, alignment: int = PAGE_SIZE) -> GuestPhys:
        """The address of `size` free bytes, zeroed, from a multiple of `alignment` (a power of two).

        Raises: InvalidArgument, UmdevError (nothing of that size is left).
        """
        if size <= 0 or alignment <= 0 or alignment & (alignment - 1):
            raise InvalidArgument(f"can't allocate {size} bytes aligned to {alignment}")
        with self._lock:
            for index, (start, end) in enumerate(self._free):
                address = (start + alignment - 1) & -alignment
                if address + size > end:
                    continue
                rest = [part for part in ((start, address), (address + size, end)) if part[0] < part[1]]
                self._free[index : index + 1] = rest
                self._taken[address] = size
                break
            else:
                error = UmdevError(f"no {size:#x} free bytes are left of {self.size:#x} bytes of guest memory")
                raise error
        self.fill(address, size)
        return GuestPhys(address)

    def free(self, address: int) -> None:
        """Give back what `allocate` returned. Raises: InvalidArgument (not allocated)."""
        with self._lock:
            size = self._taken.pop(address, None)
            if size is None:
                raise InvalidArgument(f"{address:#x} was not allocated")
            start, end = address, address + size
            index = bisect_left(self._free, (start, end))
            if index < len(self._free) and self._free[index][0] == end:
                end = self._free.pop(index)[1]
            if index and self._free[index - 1][1] == start:
                start = self._free.pop(index - 1)[0]
            insort(self._free, (start, end))

    # Protection, and the end.

    @property
    def descriptor(self) -> int:
        """The memfd behind it, what a bus maps for the device; borrowed. Raises: StateError (closed)."""
        if self._closed:
            raise StateError("the guest memory is closed")
        return self._descriptor

    @property
    def address(self) -> int:
        """Where the guest mapping begins in this process: for protectors and C guests, never for Python stores."""
        return int(ffi.cast("uintptr_t", self._at(0, 1)))

    def protector(self) -> GuestProtector:
        """The one protector of this guest, which all its devices share; made at the first call."""
        from .protect import GuestProtector

        with self._lock:
            if self._closed:
                raise StateError("the guest memory is closed")
            if self._protector is None:
                self._protector = GuestProtector()
                base = int(ffi.cast("uintptr_t", self._base))
                assert self._backing.inode is not None, "it is a memfd"
                self._protector.add_memory(self._backing.inode, 0, base, self.size)
            return self._protector

    def close(self) -> None:
        """Let blocked stores go on and give the memory back. May be called twice.

        Stores that are under way still have somewhere to go; the address range ends with this object.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._protector is not None:
                self._protector.close()
            self._backing.detach()
            os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _at(self, address: int, length: int) -> Any:
        if address < 0 or length < 0 or address + length > self.size:
            raise InvalidArgument(f"{length} bytes at {address:#x} leave the {self.size:#x} bytes of guest memory")
        if self._closed:
            raise StateError("the guest memory is closed")
        return self._base + address

    def _aligned(self, address: int, width: int) -> Any:
        if address % width:
            raise InvalidArgument(f"an atomic access of {width} bytes at {address:#x} is not aligned")
        return self._at(address, width)
