"""The driver's view of an attachment in this process: what such buses share."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING

from ..driver import DriverDoorbell, Function, RegionInfo
from ..errors import InvalidArgument, StateError
from ..pci.indexes import RegionIndex
from .attachment import AttachmentState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .attachment import Attachment

_BARS, _ROM = range(0x10, 0x28), 0x30
"""Bytes of the six BARs, and of the expansion ROM's register (PCI Local Bus 3.0, 6.1, type 00h)."""


class AttachedFunction(Function):
    """Regions, interrupts and doorbells of `attachment`, which a bus of this process has made and runs.

    A bus adds accesses, memory, reset and `close`, which calls `close_doorbells` before it detaches. One with a host
    bridge puts BAR addresses back after a reset, as a kernel does for its drivers: `keep_bars`, `put_back_bars`.
    """

    def __init__(self, attachment: Attachment) -> None:
        """The bus attaches and runs it."""
        self.attachment = attachment
        self.device = attachment.device
        self._closing = threading.Lock()
        self._doorbells: dict[int, dict[int, DriverDoorbell]] = {}
        self._bars: dict[int, int] = {}  # offset in configuration space -> value

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

    def keep_bars(self) -> None:
        """The BARs and the ROM's are where the driver wants them."""
        self._bars = self._bar_registers()

    def put_back_bars(self) -> None:
        """Write what a reset has cleared of it; nothing before `keep_bars`. The bus's bridge has to follow."""
        now = self._bar_registers()
        for offset, value in self._bars.items():
            if now[offset] != value:
                self.attachment.native.write(RegionIndex.CONFIG, offset, value.to_bytes(4, "little"))

    def after_config_write(self, offset: int) -> None:
        """The driver has written there: to BARs, which are kept, or elsewhere, which may have been a reset."""
        if offset in _BARS or offset in range(_ROM, _ROM + 4):
            self.keep_bars()
        else:
            self.put_back_bars()

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

    def _bar_registers(self) -> dict[int, int]:
        native = self.attachment.native
        return {
            offset: int.from_bytes(native.read(RegionIndex.CONFIG, offset, 4), "little")
            for offset in (*_BARS[::4], _ROM)
        }
