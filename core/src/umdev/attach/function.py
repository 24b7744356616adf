"""The driver's view of an attachment in this process: what such buses share."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING

from ..driver import DriverDoorbell, Function, RegionInfo
from ..errors import InvalidArgument, StateError
from .attachment import AttachmentState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .attachment import Attachment


class AttachedFunction(Function):
    """Regions, interrupts and doorbells of `attachment`, which a bus of this process has made and runs.

    A bus adds accesses, memory, reset and `close`, which calls `close_doorbells` before it detaches.
    """

    def __init__(self, attachment: Attachment) -> None:
        """The bus attaches and runs it."""
        self.attachment = attachment
        self.device = attachment.device
        self._closing = threading.Lock()
        self._doorbells: dict[int, dict[int, DriverDoorbell]] = {}

    def __str__(self) -> str:
        return f"{self.device} on {self.attachment.bus}"

    @cached_property
    def regions(self) -> Mapping[int, RegionInfo]:
        """Every region of the function."""
        return self.attachment.regions

    def doorbells(self, index: int) -> Mapping[int, DriverDoorbell]:
        """All that the device declares. Raises: InvalidArgument, StateError after `close`."""
        with self._closing:
            self.expect_open()
            if index not in self.regions:
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

    def close_doorbells(self) -> None:
        """Nothing rings any more. May be called twice."""
        for bells in self._doorbells.values():
            for bell in bells.values():
                bell.close()

    def irq_count(self, index: int) -> int:
        """How many vectors the interrupt index has."""
        return self.attachment.interrupts.vectors(index)

    def connect_irq(self, index: int, descriptors: Sequence[int]) -> None:
        """Signal eventfds; vectors beyond them signal nothing any more. Raises: InvalidArgument, StateError."""
        self.expect_open()
        count = self.irq_count(index)
        if len(descriptors) > count:
            raise InvalidArgument(f"{self} has {count} vectors of index {index}, not {len(descriptors)}")
        for vector, descriptor in enumerate([*descriptors, *[-1] * (count - len(descriptors))]):
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

    def expect_open(self) -> None:
        """Raises: StateError once it is closed."""
        if self.attachment.state is AttachmentState.DETACHED:
            raise StateError(f"{self} is closed")
