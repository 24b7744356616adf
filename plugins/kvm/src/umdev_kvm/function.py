"""The driver's view of a device in a machine: the host makes the accesses that a processor would make.

They go through the machine's own table, so that only what decodes answers, at the address where the BAR was put; the
machine's memory is the driver's memory; areas are mapped as a memory slot shows them. What does not happen here is an
exit: the processors never run, and interrupts come to eventfds.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from umdev.addresses import PAGE_MASK, Iova
from umdev.bus import AttachmentState, RegionIndex, ResetKind
from umdev.driver import DmaBuffer, Function, RegionInfo
from umdev.errors import InvalidArgument, StateError

from . import layout
from .machine import Machine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from umdev.device import Device

    from .ram import Ram

_BAR_REGISTERS = range(0x10, 0x34)
_STEP = 8


class MachineBuffer(DmaBuffer):
    """A part of the machine's memory."""

    def __init__(self, ram: Ram, size: int) -> None:
        super().__init__(Iova(ram.main.allocate(size)), size)  # no IOMMU: bus addresses are guest-physical
        self._ram = ram

    def _load_bytes(self, offset: int, length: int) -> bytes:
        return self._ram.main.load(self.address + offset, length)

    def _store_bytes(self, offset: int, data: bytes) -> None:
        self._ram.main.store(self.address + offset, data)

    def _release(self) -> None:
        self._ram.main.free(self.address)


class KvmFunction(Function):
    """`device` in slot 1 of a machine of its own. Closing leaves the device open.

    As the kernel does for its drivers, the view puts BAR addresses back after a reset.
    """

    def __init__(self, device: Device, memory: int) -> None:
        """Raises: NotSupported, StateError, InvalidArgument, HypervisorError."""
        self.device = device
        self.machine = Machine(memory=memory)
        self._closing = threading.Lock()
        try:
            plugged = self.machine.attach(device, 1, (), interrupts=False, endpoint=self)
            self.attachment = plugged.attachment
            self.attachment.resume()
            self._regions = self.attachment.regions
            self.machine.firmware.place(self.attachment)
            self._bars = self._read_bars()
            self.machine.bridge.synchronise(1)
        except BaseException:
            self.machine.close()
            raise

    def __str__(self) -> str:
        return f"{self.device} in a KVM machine"

    @property
    def regions(self) -> Mapping[int, RegionInfo]:
        """Every region of the function."""
        return self._regions

    def region_read(self, index: int, offset: int, length: int) -> bytes:
        """One read by the host; longer ones come in pieces of 8 bytes, as a processor's do. Raises: StateError."""
        data = bytearray(length)
        self._access(index, offset, data, write=False)
        return bytes(data)

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        """One write by the host, done when it returns. Raises: StateError."""
        self._access(index, offset, bytearray(data), write=True)
        if index == RegionIndex.CONFIG:
            if offset in _BAR_REGISTERS:
                self._bars = self._read_bars()
            else:
                self._restore_bars()
            self.machine.bridge.synchronise(1)

    def allocate(self, size: int) -> DmaBuffer:
        """A buffer in the machine's memory. Raises: InvalidArgument, UmdevError when it is used up."""
        self._expect_open()
        if size < 1:
            raise InvalidArgument(f"a DMA buffer of {size} bytes")
        return MachineBuffer(self.machine.ram, (size + PAGE_MASK) & ~PAGE_MASK)

    def irq_count(self, index: int) -> int:
        """How many vectors the interrupt index has."""
        return self.attachment.interrupts.vectors(index)

    def connect_irq(self, index: int, descriptors: Sequence[int]) -> None:
        """Signal eventfds. Raises: InvalidArgument."""
        self._expect_open()
        if len(descriptors) > self.irq_count(index):
            raise InvalidArgument(
                f"{self} has {self.irq_count(index)} vectors of index {index}, not {len(descriptors)}"
            )
        for vector, descriptor in enumerate(descriptors):
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
        self._restore_bars()
        self.machine.bridge.synchronise(1)

    def close(self) -> None:
        """Detach the device, with a reset as for a lost client, and end the machine."""
        with self._closing:
            self.machine.close()

    def _access(self, index: int, offset: int, data: bytearray, *, write: bool) -> None:
        self._expect_open()
        if index == RegionIndex.CONFIG:
            self._config(offset, data, write=write)
            return
        bar = self.device.config.bars.get(index)
        if bar is None:
            raise InvalidArgument(f"{self} has no region {index}")
        address = self.device.config.bar_address(index) + offset
        io = bar.kind == "io"
        for start in range(0, len(data), _STEP):
            part = data[start : start + _STEP]
            self.machine.vm.access(address + start, part, io=io, write=write)
            data[start : start + _STEP] = part

    def _config(self, offset: int, data: bytearray, *, write: bool) -> None:
        """Through ECAM; doublewords are the largest that PCI knows. Past the end nothing answers."""
        base = layout.ECAM_BASE + (1 << 15)
        done = 0
        while done < len(data):
            step = min(4 - (offset + done) % 4, len(data) - done)
            part = data[done : done + step]
            if offset + done < self._regions[RegionIndex.CONFIG].size:
                self.machine.vm.access(base + offset + done, part, io=False, write=write)
            else:
                part[:] = b"\xff" * step
            data[done : done + step] = part
            done += step

    def _read_bars(self) -> dict[int, int]:
        """Register offset -> what stands there."""
        native = self.attachment.native
        return {
            offset: int.from_bytes(native.read(RegionIndex.CONFIG, offset, 4), "little")
            for offset in (*range(0x10, 0x28, 4), 0x30)
        }

    def _restore_bars(self) -> None:
        now = self._read_bars()
        for offset, value in self._bars.items():
            if now[offset] != value:
                self.attachment.native.write(RegionIndex.CONFIG, offset, value.to_bytes(4, "little"))

    def _expect_open(self) -> None:
        if self.attachment.state is AttachmentState.DETACHED:
            raise StateError(f"{self} is closed")
