"""The driver's view of a device that is attached to nothing but this process's own memory."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ..addresses import PAGE_MASK, PAGE_SIZE, Iova
from ..attach import Attachment, AttachmentState
from ..driver import DmaBuffer, DriverDoorbell, Function, RegionInfo
from ..errors import InvalidArgument, StateError
from ..memory.guest import GuestMemory
from ..memory.protect import UserfaultProtector
from ..pci import ResetKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..device import Device
    from ..services import PageProtector, ProtectMode

DEFAULT_MEMORY = 16 << 20
"""Bytes of guest memory. Pages that nobody touches cost nothing."""


class LoopbackBuffer(DmaBuffer):
    """A part of guest memory. The driver's loads and stores run in C, without the interpreter's lock."""

    def __init__(self, memory: GuestMemory, size: int) -> None:
        super().__init__(Iova(memory.allocate(size)), size)  # no IOMMU: bus addresses are guest-physical
        self._memory = memory

    def _load_bytes(self, offset: int, length: int) -> bytes:
        return self._memory.load(self.address + offset, length)

    def _store_bytes(self, offset: int, data: bytes) -> None:
        self._memory.store(self.address + offset, data)

    def _release(self) -> None:
        self._memory.free(self.address)


class LoopbackFunction(Function):
    """`device`, attached to `memory` bytes of guest memory of its own, and running. Closing leaves the device open."""

    def __init__(self, device: Device, memory: int = DEFAULT_MEMORY) -> None:
        """Raises: InvalidArgument for a size that is no multiple of a page, StateError if the device is attached."""
        self.guest = GuestMemory(memory)
        self.device = device
        self.attachment = Attachment(device, "loopback", endpoint=self)
        self._closing = threading.Lock()
        self._doorbells: dict[int, dict[int, DriverDoorbell]] = {}
        try:
            self.attachment.attach()
            self._regions = self.attachment.regions
            # Page 0 stays unmapped, so that a null DMA address is an error.
            usable = memory - PAGE_SIZE
            self.attachment.memory.map(PAGE_SIZE, usable, descriptor=self.guest.descriptor, offset=PAGE_SIZE)
            self.attachment.run()
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        return f"{self.device} on loopback"

    @property
    def regions(self) -> Mapping[int, RegionInfo]:
        """Every region of the function."""
        return self._regions

    def region_read(self, index: int, offset: int, length: int) -> bytes:
        """One read, straight into the dispatcher. Raises: StateError after `close`."""
        self._expect_open()
        return self.attachment.native.read(index, offset, length)

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        """One write, done when it returns. Raises: StateError after `close`."""
        self._expect_open()
        self.attachment.native.write(index, offset, data)

    def allocate(self, size: int) -> DmaBuffer:
        """A buffer in guest memory. Raises: InvalidArgument, UmdevError when guest memory is used up."""
        self._expect_open()
        if size < 1:
            raise InvalidArgument(f"a DMA buffer of {size} bytes")
        return LoopbackBuffer(self.guest, (size + PAGE_MASK) & ~PAGE_MASK)

    def doorbells(self, index: int) -> Mapping[int, DriverDoorbell]:
        """All that the device declares. Raises: InvalidArgument, StateError after `close`."""
        with self._closing:
            self._expect_open()
            if index not in self._regions:
                raise InvalidArgument(f"{self} has no region {index}")
            if index not in self._doorbells:
                self._doorbells[index] = {
                    bell.offset: DriverDoorbell(
                        self.attachment.connect_doorbell(bell), bell.offset, bell.width, bell.value
                    )
                    for bell in self.attachment.doorbells
                    if bell.region == index
                }
            return self._doorbells[index]

    def irq_count(self, index: int) -> int:
        """How many vectors the interrupt index has."""
        return self.attachment.interrupts.vectors(index)

    def connect_irq(self, index: int, descriptors: Sequence[int]) -> None:
        """Signal eventfds; vectors beyond them signal nothing any more. Raises: InvalidArgument."""
        self._expect_open()
        if len(descriptors) > self.irq_count(index):
            raise InvalidArgument(
                f"{self} has {self.irq_count(index)} vectors of index {index}, not {len(descriptors)}"
            )
        disconnected = [-1] * (self.irq_count(index) - len(descriptors))
        for vector, descriptor in enumerate([*descriptors, *disconnected]):
            self.attachment.interrupts.connect(index, vector, descriptor)

    def disable_irq(self, index: int) -> None:
        """Signal nothing any more."""
        self.attachment.interrupts.disable(index)

    def mask_irq(self, index: int, vector: int = 0) -> None:
        """Hold a vector back."""
        self.attachment.interrupts.mask(index, vector)

    def unmask_irq(self, index: int, vector: int = 0) -> None:
        """Let it through again."""
        self.attachment.interrupts.unmask(index, vector)

    def reset(self) -> None:
        """A bus reset. Raises: StateError after `close`."""
        self._expect_open()
        self.attachment.reset(ResetKind.BUS)

    def close(self) -> None:
        """Detach the device, with a reset as for a lost client. Buffers that were not freed end here."""
        with self._closing:
            for bells in self._doorbells.values():
                for bell in bells.values():
                    bell.close()
            try:
                if self.attachment.state is not AttachmentState.DETACHED:
                    self.attachment.detach()
            finally:
                self.guest.close()

    def protector(self, mode: ProtectMode) -> PageProtector:
        """For the bus's hook: reports stores through this function's mapping of guest memory. Raises: ProtectError."""
        return UserfaultProtector(self.guest.protector(), self.attachment.memory, mode, self.device.native)

    def _expect_open(self) -> None:
        if self.attachment.state is AttachmentState.DETACHED:
            raise StateError(f"{self} is closed")
