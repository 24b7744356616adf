"""The driver's view of a device in a machine: the host makes the accesses that a processor would make.

They go through the machine's own table, so that only what decodes answers, at the address where the BAR was put; the
machine's memory is the driver's memory; areas are mapped as a memory slot shows them. What does not happen here is an
exit: the processors never run, and interrupts come to eventfds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.addresses import PAGE_MASK, Iova
from umdev.bus import AttachedFunction, RegionIndex, ResetKind
from umdev.driver import DmaBuffer
from umdev.errors import InvalidArgument

from . import layout
from .machine import Machine

if TYPE_CHECKING:
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


class KvmFunction(AttachedFunction):
    """`device` in slot 1 of a machine of its own. Closing leaves the device open.

    As the kernel does for its drivers, the view puts BAR addresses back after a reset.
    """

    def __init__(self, device: Device, memory: int) -> None:
        """Raises: NotSupported, StateError, InvalidArgument, HypervisorError."""
        self.machine = Machine(memory=memory)
        try:
            super().__init__(self.machine.attach(device, 1, (), interrupts=False, endpoint=self).attachment)
            self.attachment.resume()
            self.machine.firmware.place(self.attachment)
            self._bars = self._read_bars()
            self.machine.bridge.synchronise(1)
        except BaseException:
            self.machine.close()
            raise

    def __str__(self) -> str:
        return f"{self.device} in a KVM machine"

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
        self.expect_open()
        if size < 1:
            raise InvalidArgument(f"a DMA buffer of {size} bytes")
        return MachineBuffer(self.machine.ram, (size + PAGE_MASK) & ~PAGE_MASK)

    def reset(self) -> None:
        """A bus reset. Raises: StateError after `close`."""
        self.expect_open()
        self.attachment.reset(ResetKind.BUS)
        self._restore_bars()
        self.machine.bridge.synchronise(1)

    def close(self) -> None:
        """Detach the device, with a reset as for a lost client, and end the machine."""
        with self._closing:
            self.close_doorbells()
            self.machine.close()

    def _access(self, index: int, offset: int, data: bytearray, *, write: bool) -> None:
        self.expect_open()
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
            if offset + done < self.regions[RegionIndex.CONFIG].size:
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
