"""A bus in memory: the abstract methods of `Function`, and nothing more, over a real configuration space and port."""

import mmap
import os

import pytest
from umdev._native import ffi, lib
from umdev.addresses import Iova, RegionOffset
from umdev.driver import DmaBuffer, Function, RegionInfo
from umdev.errors import InvalidArgument
from umdev.pci import BarInfo, ConfigSpace, InterruptPort, Interrupts, PciExpress, PciId, PowerManagement, ResetKind
from umdev.services import Area

PAGE = 4096
BARS = (
    BarInfo(0, 1 << 16, "memory32"),
    BarInfo(1, 32, "io"),
    BarInfo(2, 1 << 33, "memory64", prefetchable=True),
    BarInfo(6, 1 << 12, "rom"),
)
CAPABILITIES = (PowerManagement(), PciExpress())
EVERYTHING = Interrupts(msi=4, msix=3, msix_bar=0, intx=True, msi_masking=True)


class Buffer(DmaBuffer):
    def __init__(self, address, size):
        super().__init__(address, size)
        self.memory = bytearray(size)
        self.released = 0

    def _load_bytes(self, offset, length):
        return bytes(self.memory[offset : offset + length])

    def _store_bytes(self, offset, data):
        self.memory[offset : offset + len(data)] = data

    def _release(self):
        self.released += 1


class MemoryFunction(Function):
    """BAR 0 is plain bytes with the MSI-X structures above; the first page of BAR 2 can be mapped."""

    def __init__(self, interrupts=EVERYTHING, capabilities=CAPABILITIES, bars=BARS):
        self.port = InterruptPort(interrupts)
        self.space = ConfigSpace(
            PciId(0x1234, 0x11E8, 0x00FF00, 0x10), bars, (*self.port.capabilities, *capabilities), self.port.pin, self
        )
        self.gates = {}
        self.moves = []
        self.file = os.memfd_create("bar2")
        os.ftruncate(self.file, 2 * PAGE)
        self.bytes = bytearray(1 << 16)
        self.accesses = []
        self.closed = False
        self._regions = {7: RegionInfo(7, self.space.size)}
        for bar in bars:
            areas = (Area(2, RegionOffset(0), PAGE),) if bar.index == 2 else ()
            descriptor = self.file if areas else None
            self._regions[bar.index] = RegionInfo(
                bar.index, bar.size, writable=bar.index != 6, areas=areas, descriptor=descriptor, descriptor_offset=PAGE
            )
        self.space.reset(ResetKind.POWER_ON)

    # What configuration space tells.

    def memory_enable(self, enabled):
        self.gates["memory"] = enabled

    def io_enable(self, enabled):
        self.gates["io"] = enabled

    def rom_enable(self, enabled):
        self.gates["rom"] = enabled

    def bus_master(self, enabled):
        self.gates["bus_master"] = enabled

    def bar_moved(self, index, address):
        self.gates[index] = address
        self.moves.append((index, address))

    def interrupt_state(self, flags):
        self.port.set_state(flags)

    def msi_state(self, allocated, mask):
        self.port.set_msi(allocated, mask)

    def msi_pending(self):
        return self.port.msi_pending

    def interrupt_level(self):
        return self.port.level

    def function_reset(self):
        self.port.reset()
        self.space.reset(ResetKind.FLR)

    def power_state(self, state):
        if state == 0:
            self.space.reset(ResetKind.D3HOT)

    # What a bus implements.

    @property
    def regions(self):
        return self._regions

    def region_read(self, index, offset, length):
        self.accesses.append((index, offset, length))
        if index == 7:
            return self.space.read(offset, length)
        if index == 0 and self.gates["memory"]:
            handler = self._structure(offset)
            if handler is None:
                return bytes(self.bytes[offset : offset + length])
            data = ffi.new("uint8_t[]", length)
            handler[0](self.port.pointer, offset - handler[1], data, length, 0)
            return bytes(data)
        return b"\xff" * length

    def region_write(self, index, offset, data):
        self.accesses.append((index, offset, data))
        if index == 7:
            self.space.write(offset, data)
        elif index == 0 and self.gates["memory"]:
            handler = self._structure(offset)
            if handler is None:
                self.bytes[offset : offset + len(data)] = data
            else:
                handler[0](self.port.pointer, offset - handler[1], data, len(data), lib.UMDEV_WRITE)

    def _structure(self, offset):
        if 0xF000 <= offset < 0xF030:
            return lib.umdev_irq_msix_table, 0xF000
        if 0xF030 <= offset < 0xF038:
            return lib.umdev_irq_msix_pba, 0xF030
        return None

    def allocate(self, size):
        if size < 1:
            raise InvalidArgument(f"{size} bytes")
        return Buffer(Iova(0x1000), -(-size // PAGE) * PAGE)

    def irq_count(self, index):
        return self.port.vectors(index)

    def connect_irq(self, index, descriptors):
        for vector, descriptor in enumerate(descriptors):
            self.port.connect(index, vector, descriptor)

    def disable_irq(self, index):
        self.port.disable(index)

    def mask_irq(self, index, vector=0):
        self.port.mask(index, vector)

    def unmask_irq(self, index, vector=0):
        self.port.unmask(index, vector)

    def reset(self):
        self.port.reset()
        self.space.reset(ResetKind.BUS)

    def close(self):
        if not self.closed:
            self.closed = True
            self.port.close()
            os.close(self.file)

    def peek(self, offset, length):
        """What BAR 2's file has, past what precedes the region."""
        with mmap.mmap(self.file, 2 * PAGE, prot=mmap.PROT_READ) as memory:
            return memory[PAGE + offset : PAGE + offset + length]


@pytest.fixture(scope="session")
def make_function():
    return MemoryFunction


@pytest.fixture
def function():
    with MemoryFunction() as made:
        yield made
