"""The driver's view of a device that is attached to nothing but this process's own memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..addresses import PAGE_SIZE
from ..attach import AttachedFunction, Attachment, AttachmentState
from ..errors import InvalidArgument
from ..memory.guest import GuestMemory
from ..memory.guest_buffer import GuestBuffer
from ..memory.protect import UserfaultProtector
from ..pci import ResetKind

if TYPE_CHECKING:
    from ..device import Device
    from ..driver import DmaBuffer
    from ..services import PageProtector, ProtectMode

DEFAULT_MEMORY = 16 << 20
"""Bytes of guest memory. Pages that nobody touches cost nothing."""


class LoopbackFunction(AttachedFunction):
    """`device`, attached to `memory` bytes of guest memory of its own, and running. Closing leaves the device open."""

    def __init__(self, device: Device, memory: int = DEFAULT_MEMORY) -> None:
        """Raises: InvalidArgument for a size that is no multiple of a page, StateError if the device is attached."""
        super().__init__(Attachment(device, "loopback", endpoint=self))
        self._pid = os.getpid()
        self.guest = GuestMemory(memory)
        try:
            self.attachment.attach()
            # Page 0 stays unmapped, so that a null DMA address is an error.
            usable = memory - PAGE_SIZE
            self.attachment.memory.map(PAGE_SIZE, usable, descriptor=self.guest.descriptor, offset=PAGE_SIZE)
            self.attachment.run()
        except BaseException:
            self.close()
            raise

    def region_read(self, index: int, offset: int, length: int) -> bytes:
        """One read, straight into the dispatcher.

        Raises: StateError after `close`; InvalidArgument for numbers that are no region, offset or length.
        """
        self.expect_open()
        return self.attachment.native.read(_region(index), offset, length)

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        """One write, done when it returns. Raises: as `region_read`."""
        self.expect_open()
        self.attachment.native.write(_region(index), offset, data)

    def allocate(self, size: int) -> DmaBuffer:
        """A buffer in guest memory. Raises: InvalidArgument, UmdevError when guest memory is used up."""
        self.expect_open()
        return GuestBuffer(self.guest, size)

    def reset(self) -> None:
        """A bus reset. Raises: StateError after `close`."""
        self.expect_open()
        self.attachment.reset(ResetKind.BUS)

    def close(self) -> None:
        """Detach the device, with a reset as for a lost client. Buffers that were not freed end here.

        In a process that was forked since, nothing is told to the device: its windows are the memory of both, and what
        its parent's threads held stays locked there.
        """
        if os.getpid() != self._pid:
            self.device.release_attachment(self.attachment)
            self.guest.close()
            return
        with self._closing:
            self.close_doorbells()
            try:
                if self.attachment.state is not AttachmentState.DETACHED:
                    self.attachment.detach(ResetKind.CLIENT_LOST)
            finally:
                self.guest.close()

    def protector(self, mode: ProtectMode) -> PageProtector:
        """For the bus's hook: reports stores through this function's mapping of guest memory. Raises: ProtectError."""
        return UserfaultProtector(self.guest.protector(), self.attachment.memory, mode, self.device.native)


def _region(index: int) -> int:
    """Numbers without a region are all ones on the bus; these are none that a driver can send (32 bits)."""
    if not 0 <= index < 1 << 32:
        raise InvalidArgument(f"{index} is no number of a region")
    return index
