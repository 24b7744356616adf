"""What QEMU 11.1 sends, message for message, without QEMU: realize, machine reset, guest boot, reboot, power-off."""

from __future__ import annotations

import os
import struct

import pytest

RAM = 256 << 20
VERSION = (
    b"\0\0\0\0"
    b'{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, "max_data_xfer_size": 1048576, '
    b'"migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "write_multiple": true}}\0'
)


@pytest.fixture
def ram():
    fd = os.memfd_create("ram")
    os.ftruncate(fd, RAM)
    yield fd
    os.close(fd)


class Vmm:
    """Sends what QEMU sends; DMA_MAP and DMA_UNMAP are pipelined, everything else waits."""

    def __init__(self, raw, ram: int) -> None:
        self.raw = raw
        self.ram = ram
        self.number = 5000
        self.under_way: list[tuple[int, int, bytes]] = []
        self.intx = -1

    def send(self, command: int, payload: bytes, fds: tuple[int, ...] = (), reply: bytes = b"") -> None:
        self.number += 1
        self.raw.put(command, payload, fds, number=self.number)
        self.under_way.append((self.number, command, reply))

    def settle(self) -> None:
        for expected in self.under_way:
            number, command, _, error, payload, _ = self.raw.get()
            assert (number, command, payload) == expected
            assert error == 0
        self.under_way.clear()

    def map(self, address: int, size: int, offset: int | None, flags: int = 3) -> None:
        payload = struct.pack("<IIQQQ", 32, flags, offset or 0, address, size)
        if offset is None:
            self.send(2, payload)
        else:
            fd = os.dup(self.ram)  # each with a descriptor of its own
            self.send(2, payload, (fd,))
            os.close(fd)

    def unmap(self, address: int, size: int) -> None:
        payload = struct.pack("<IIQQ", 24, 0, address, size)
        self.send(3, payload, reply=payload)

    def arm_intx(self) -> None:
        if self.intx >= 0:
            os.close(self.intx)
        self.intx = os.eventfd(0, os.EFD_NONBLOCK)
        assert self.raw.irqs(0x24, 0, fds=[self.intx]) == 0

    def realize(self) -> None:
        reply = self.raw.negotiate(VERSION)
        assert len(reply) <= len(VERSION)
        assert reply[:4] == b"\0\0\0\0"
        self.map(0, RAM, 0)
        self.map(0xFFFC0000, 0x40000, None, flags=1)
        self.settle()
        assert self.raw.call(4, struct.pack("<IIII", 16, 0, 0, 0))[0] == 0
        for index in (0, 1, 2, 3, 4, 5, 7):
            argsz = 32
            while True:
                error, reply, fds = self.raw.call(5, struct.pack("<IIIIQQ", argsz, 0, index, 0, 0, 0))
                assert error == 0
                assert len(reply) <= argsz
                assert len(fds) <= 1  # QEMU takes one descriptor, and only where it asked for it
                for fd in fds:
                    os.close(fd)
                needed, flags, _, start = struct.unpack_from("<IIII", reply)
                if flags & 8:
                    assert 32 <= start <= needed
                if needed <= argsz:
                    break
                argsz = needed
        assert self.raw.call(7, struct.pack("<IIII", 16, 0, 3, 0))[0] == 0
        assert len(self.raw.read(7, 0, 4096)) == 4096
        self.raw.write32(7, 0x30, 0xFFFFF800)  # sizing of the ROM BAR
        assert self.raw.read32(7, 0x30) == 0
        self.raw.write32(7, 0x30, 0)
        for offset in (0x10, 0x14, 0x18):
            self.raw.read32(7, offset)
        assert self.raw.call(7, struct.pack("<IIII", 16, 0, 2, 0))[0] == 0
        assert self.raw.read(7, 0x3D, 1) == b"\1"
        self.arm_intx()

    def machine_reset(self) -> None:
        assert self.raw.irqs(0x21, 0, 0, 0) == 0
        self.raw.read(7, 4, 2)
        self.raw.write(7, 4, b"\0\0")
        assert self.raw.call(13)[0] == 0
        self.arm_intx()
        for offset in range(0x10, 0x28, 4):
            self.raw.write32(7, offset, 0)

    def firmware(self) -> None:
        """SeaBIOS moves PAM windows: the table is torn down and sent again."""
        self.unmap(0, RAM)
        self.map(0, 0xC0000, 0)
        self.map(0xC0000, 0x20000, None, flags=1)
        self.map(0xE0000, 0x20000, None, flags=1)
        self.map(0x100000, RAM - 0x100000, 0x100000)
        self.settle()
        for _ in range(4):
            self.unmap(0xC0000, 0x20000)
            self.unmap(0xE0000, 0x20000)
            self.map(0xC0000, 0x20000, 0xC0000)
            self.map(0xE0000, 0x20000, 0xE0000)
        self.unmap(0, RAM)
        self.map(0, 0xC3000, 0)
        self.map(0xC3000, 0x25000, 0xC3000, flags=1)
        self.map(0xE8000, 0x8000, 0xE8000)
        self.map(0xF0000, 0x10000, 0xF0000, flags=1)
        self.map(0x100000, RAM - 0x100000, 0x100000)
        self.settle()
        # A BAR that the guest maps is announced without a descriptor whenever memory decoding is turned on.
        for _ in range(8):
            self.map(0xFEBF8000, 0x4000, None)
            self.unmap(0xFEBF8000, 0x4000)
        self.map(0xFEBF8000, 0x4000, None)
        self.settle()
        for bar, address in ((0x10, 0xFEBF0000), (0x18, 0xFEB00000)):
            self.raw.write32(7, bar, 0xFFFFFFFF)
            self.raw.read32(7, bar)
            self.raw.write32(7, bar, address)
        self.raw.write(7, 4, b"\7\0")

    def shutdown(self) -> None:
        self.unmap(0xFEBF8000, 0x4000)
        self.unmap(0, RAM)
        self.map(0, RAM, 0)
        self.settle()


def drive(vmm: Vmm, value: int) -> None:
    """A driver: DMA through a high map and an interrupt, with the unmask that QEMU sends at the end of it."""
    raw = vmm.raw
    raw.write(0, 0x10, struct.pack("<Q", 0x200000))
    raw.write32(0, 0x1C, value)
    raw.read32(0, 0)  # a posted write is done before a read returns
    assert os.pread(vmm.ram, 4, 0x200000) == value.to_bytes(4, "little")
    raw.write32(0, 0x24, 0)
    raw.read32(0, 0)
    assert os.eventfd_read(vmm.intx) == 1
    assert raw.read(7, 6, 1)[0] & 8
    raw.write32(0, 0x28, 0)
    assert raw.irqs(0x11, 0) == 0
    with pytest.raises(BlockingIOError):
        os.eventfd_read(vmm.intx)


def test_boot_reboot_power_off_and_again(serve, device, ram: int) -> None:
    served = serve()
    for _ in range(2):
        raw = served.connect(negotiate=False)
        vmm = Vmm(raw, ram)
        vmm.realize()
        vmm.machine_reset()
        vmm.firmware()
        drive(vmm, 0x1111)
        for reboot in range(2):
            vmm.machine_reset()
            vmm.machine_reset()  # QEMU resets twice
            vmm.shutdown()
            vmm.firmware()
            drive(vmm, 0x2222 + reboot)
        raw.close()  # power-off is nothing but the end of the connection
        os.close(vmm.intx)
    assert device.errors == []


def test_virtual_iommu(raw, ram: int) -> None:
    """All of RAM goes, then pages come one by one; about a hundred unmaps hit nothing."""
    vmm = Vmm(raw, ram)
    vmm.map(0, RAM, 0)
    vmm.unmap(0, RAM)
    for address, size in ((0, 0xFEE00000), (0xFEF00000, 0xFFFFFFFF01100000), (0x80000000, 0x40000000)) * 35:
        vmm.unmap(address, size)
    vmm.settle()
    for page in range(64):
        vmm.map(0x40000 + page * 0x1000, 0x1000, 0x400000 + page * 0x2000)
    vmm.settle()
    raw.write(0, 0x10, struct.pack("<Q", 0x40000 + 63 * 0x1000))
    raw.write32(0, 0x1C, 0xABCD)
    assert raw.read32(0, 0x18) == 0xABCD
    assert os.pread(ram, 4, 0x400000 + 63 * 0x2000) == b"\xcd\xab\0\0"
    vmm.unmap(0, 0xFEE00000)
    vmm.settle()
    assert raw.read32(0, 0x18) == 0xFFFFFFFF
