"""Windows that the guest reaches with no exit: pages of the domain's own, placed under the BAR.

Pages that belong to dom0 can't be put into another domain (gmfn_foreign there is EPERM). So pages are populated for the
domain, where it does not look; this process maps them in place of the window's memory; and they are moved under the BAR
(`xendevicemodel_relocate_memory`) when it decodes, and back when it does not. Populating is beyond what a restricted
process may do: a helper process does it.
"""

from __future__ import annotations

import logging
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from umdev.addresses import PAGE_SIZE
from umdev.errors import HypervisorError

from ._fast import lib
from .helper import SHELF, SHELF_SIZE
from .libraries import DEVICE_MODEL, FOREIGN_MEMORY, failure, ffi

if TYPE_CHECKING:
    from umdev.bus import Area, Attachment

    from .handles import Handles
    from .helper import Helper

__all__ = ["PassedWindow", "PassedWindows", "Shelf"]

_log = logging.getLogger("umdev.xen")

_FIXED = mmap.MAP_SHARED | 0x10
"""MAP_FIXED of Linux on x86."""


class Shelf:
    """Gives out places on the shelf of one domain; the caller holds a lock."""

    def __init__(self) -> None:
        self._next = SHELF // PAGE_SIZE

    def take(self, pages: int) -> int:
        """The first frame of so many. Raises: HypervisorError when all were given out."""
        first = self._next
        if (first + pages) * PAGE_SIZE > SHELF + SHELF_SIZE:
            raise HypervisorError(f"the domain has had {SHELF_SIZE >> 30} GiB of windows: no place is left for another")
        self._next += pages
        return first


@dataclass
class PassedWindow:
    """One area whose pages are the domain's. A `Passthrough`; `close` gives the device its own memory back."""

    handles: Handles
    helper: Helper
    attachment: Attachment
    area: Area
    shelf: int
    """The first frame of its place on the shelf."""
    placed: int | None = None
    """The first frame under the BAR, while it is there."""
    closed: bool = False

    @property
    def mechanism(self) -> str:
        """One line for people."""
        return f"{self.area.length >> 10} KiB of the domain's own pages, relocated with the BAR"

    @property
    def pages(self) -> int:
        """How many."""
        return self.area.length // PAGE_SIZE

    def open(self) -> None:
        """Populate, and take the place of the device's memory, content included. Raises: HypervisorError."""
        self.helper.populate(self.shelf, self.pages)
        view = self._view()
        content = bytes(view)
        try:
            self._map_over(int(ffi.cast("uintptr_t", ffi.from_buffer(view))))
        except BaseException:
            self._restore()
            view[:] = content
            self.helper.release(self.shelf, self.pages)
            raise
        view[:] = content

    def place(self, address: int) -> None:
        """Under the BAR at `address`. Raises: HypervisorError."""
        self.withdraw()
        target = (address + self.area.offset) // PAGE_SIZE
        self._move(self.shelf, target)
        self.placed = target

    def withdraw(self) -> None:
        """Back to the shelf. Raises: HypervisorError."""
        if self.placed is not None:
            source, self.placed = self.placed, None
            self._move(source, self.shelf)

    def close(self) -> None:
        """The device's own memory again, with what the driver left in it. May be called twice; never raises."""
        if self.closed:
            return
        self.closed = True
        try:
            self.withdraw()
        except HypervisorError as error:  # the domain has gone, and its pages with it once they are unmapped
            _log.debug("%s: %s", self.area, error)
        view = self._view()
        content = bytes(view)
        self._restore()
        view[:] = content
        try:
            self.helper.release(self.shelf, self.pages)
        except HypervisorError as error:
            _log.debug("%s: %s", self.area, error)

    def _view(self) -> memoryview:
        return self.attachment.device.regions[self.area.region].window_view(self.area.offset, self.area.length)

    def _move(self, source: int, target: int) -> None:
        DEVICE_MODEL.call(
            "xendevicemodel_relocate_memory", self.handles.device_model, self.handles.domain, self.pages, source, target
        )

    def _map_over(self, address: int) -> None:
        frames = ffi.new("unsigned long[]", list(range(self.shelf, self.shelf + self.pages)))
        errors = ffi.new("int[]", self.pages)
        pointer = FOREIGN_MEMORY.open(
            "xenforeignmemory_map2", self.handles.foreign_memory, self.handles.domain, ffi.cast("void *", address),
            mmap.PROT_READ | mmap.PROT_WRITE, _FIXED, self.pages, frames, errors,
        )  # fmt: skip
        bad = [error for error in errors if error]
        if bad or int(ffi.cast("uintptr_t", pointer)) != address:
            raise failure("xenforeignmemory_map2", -bad[0] if bad else 0)

    def _restore(self) -> None:
        """The region's memfd at the window's address."""
        region = self.attachment.device.regions[self.area.region]
        address = int(ffi.cast("uintptr_t", ffi.from_buffer(self._view())))
        code = lib.umdev_xen_map_file(address, self.area.length, region.descriptor, self.area.offset)
        if code:
            raise failure("mmap", -code)


class PassedWindows:
    """The windows of one function, moved together. The bridge's lock is held."""

    def __init__(self, windows: list[PassedWindow]) -> None:
        self._windows = windows

    def place(self, region: int, address: int) -> None:
        """A BAR decodes at `address`. Raises: HypervisorError."""
        for window in self._windows:
            if window.area.region == region:
                window.place(address)

    def withdraw(self, region: int) -> None:
        """It does so no more. Raises: HypervisorError."""
        for window in self._windows:
            if window.area.region == region:
                window.withdraw()
