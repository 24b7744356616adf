"""The driver's view of a device in a machine: the host makes the accesses that a processor would make.

They go through the machine's own table, so that only what decodes answers, at the address where the BAR was put; the
machine's memory is the driver's memory; areas are mapped as a memory slot shows them. What does not happen here is an
exit: the processors never run, and interrupts come to eventfds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.bus import AttachedFunction, RegionIndex, ResetKind
from umdev.errors import InvalidArgument
from umdev.hypervisor import GuestBuffer

from . import layout
from .machine import Machine

if TYPE_CHECKING:
    from umdev.device import Device
    from umdev.driver import DmaBuffer

_STEP = 8


class KvmFunction(AttachedFunction):
    """`device` in slot 1 of a machine of its own. Closing leaves the device open."""

    def __init__(self, device: Device, memory: int) -> None:
        """Raises: NotSupported, StateError, InvalidArgument, HypervisorError."""
        self.machine = Machine(memory=memory)
        try:
            super().__init__(self.machine.attach(device, 1, (), interrupts=False, endpoint=self).attachment)
            self.attachment.resume()
            self.machine.firmware.place(self.attachment)
            self.keep_bars()
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
            self.after_config_write(offset)
            self.machine.bridge.synchronise(1)

    def allocate(self, size: int) -> DmaBuffer:
        """A buffer in the machine's memory. Raises: InvalidArgument, UmdevError when it is used up."""
        self.expect_open()
        return GuestBuffer(self.machine.ram.main, size)

    def reset(self) -> None:
        """A bus reset. Raises: StateError after `close`."""
        self.expect_open()
        self.attachment.reset(ResetKind.BUS)
        self.put_back_bars()
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
