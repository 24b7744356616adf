"""Each message against a running server: what is answered, and what is refused."""

from __future__ import annotations

import errno
import json
import mmap
import os
import struct
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from umdev.bus import FILE_MAPS_MAX
from umdev_vfio_user.session import OFFERED

INTX, MSI, MSIX, ERR, REQ = range(5)


def region_info(raw, index: int, argsz: int = 32) -> tuple[tuple[int, ...], bytes, list[int]]:
    error, reply, fds = raw.call(5, struct.pack("<IIIIQQ", argsz, 0, index, 0, 0, 0))
    assert error == 0
    return struct.unpack_from("<IIIIQQ", reply), reply[32:], fds


def eventually(check: Callable[[], object]) -> None:
    for _ in range(1000):
        if check():
            return
        time.sleep(0.005)
    raise AssertionError("it did not happen")


def signals(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


@pytest.fixture
def irq():
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def test_device_info(raw) -> None:
    assert raw.call(4, struct.pack("<IIII", 16, 0, 0, 0)) == (0, struct.pack("<IIII", 16, 3, 9, 5), [])


def test_irq_info(raw) -> None:
    for index, flags, count in ((INTX, 7, 1), (MSI, 11, 4), (MSIX, 11, 20), (ERR, 9, 1), (REQ, 9, 1)):
        error, reply, _ = raw.call(7, struct.pack("<IIII", 16, 0, index, 0))
        assert (error, struct.unpack("<IIII", reply)) == (0, (16, flags, index, count))
    assert raw.call(7, struct.pack("<IIII", 16, 0, 5, 0))[0] == errno.EINVAL


def test_trapped_region(raw) -> None:
    fixed, rest, fds = region_info(raw, 0)
    assert fixed == (32, 3, 0, 0, 4096, 0)
    assert (rest, fds) == (b"", [])


def test_absent_regions(raw) -> None:
    for index in (1, 6, 8):
        fixed, rest, fds = region_info(raw, index)
        assert fixed == (32, 0, index, 0, 0, 0)
        assert (rest, fds) == (b"", [])


def test_whole_region_mapped(raw, device) -> None:
    fixed, rest, (fd,) = region_info(raw, 2)
    assert fixed == (32, 7, 2, 0, 0x10000, 0)
    assert rest == b""
    with mmap.mmap(fd, 0x10000) as window:
        window[0x1234:0x1238] = b"here"
        assert bytes(device.ram.window.view[0x1234:0x1238]) == b"here"
    with pytest.raises(PermissionError):  # sealed: nobody can shrink it under the device
        os.ftruncate(fd, 4096)
    os.close(fd)


def test_sparse_areas(raw) -> None:
    # Too little room: the size that is needed, where the capability would stand, and no descriptor.
    fixed, rest, fds = region_info(raw, 3)
    assert fixed == (32 + 16 + 2 * 16, 15, 3, 32, 0x8000, 0)
    assert (rest, fds) == (b"", [])
    fixed, rest, (fd,) = region_info(raw, 3, argsz=80)
    assert fixed == (80, 15, 3, 32, 0x8000, 0)
    assert struct.unpack("<HHIIIQQQQ", rest) == (1, 1, 0, 2, 0, 0x1000, 0x1000, 0x4000, 0x2000)
    with mmap.mmap(fd, 0x2000, offset=0x4000) as window:
        window[0:4] = b"area"
    assert raw.read(3, 0x4000, 4) == b"area"
    os.close(fd)


def test_region_io_fds_without_doorbells(raw) -> None:
    reply = raw.call(6, struct.pack("<IIII", 16, 0, 0, 0))
    assert reply == (0, struct.pack("<IIII", 16, 0, 0, 0), [])


def test_configuration_space_in_one_read(raw) -> None:
    config = raw.read(7, 0, 4096)
    assert config[:4] == bytes.fromhex("34123b5a")
    assert raw.read(7, 4, 2) == b"\x07\x00"


def test_register_accesses(raw) -> None:
    assert raw.read32(0, 0) == 0x5A3B1E
    raw.write32(0, 4, 7)
    raw.write(0, 4, b"\x09")
    assert raw.read32(0, 4) == 9
    assert raw.read32(0, 8) == 2
    raw.write32(5, 0, 0xABCD)
    assert raw.read32(5, 0) == 0xABCD


def test_handler_that_fails(raw, device) -> None:
    raw.write32(0, 0x2C, 1)
    assert isinstance(device.native.last_fault, RuntimeError)
    assert raw.read32(0, 0) == 0x5A3B1E


def test_posted_and_batched_writes(raw) -> None:
    for value in range(500):
        raw.put(10, struct.pack("<QII", 4, 0, 4) + value.to_bytes(4, "little"), flags=0x10)
    batch = b"".join(struct.pack("<QII", 4, 0, 4) + value.to_bytes(8, "little") for value in range(200))
    raw.put(15, struct.pack("<Q", 200) + batch, flags=0x10)
    assert raw.call(15, struct.pack("<Q", 200) + batch) == (0, struct.pack("<Q", 200), [])
    assert raw.read32(0, 8) == 900


def test_out_of_range(raw) -> None:
    for region, offset, count in ((0, 4094, 4), (0, 1 << 63, 4), (1, 0, 4), (8, 0, 1), (9, 0, 4), (7, 4096, 1)):
        access = struct.pack("<QII", offset, region, count)
        assert raw.call(9, access)[0] == errno.EINVAL
        assert raw.call(10, access + bytes(count))[0] == errno.EINVAL


def test_unknown_commands(raw) -> None:
    for command in (0, 11, 12, 14, 17, 18, 19, 0xFFFF):
        assert raw.call(command, bytes(40))[0] == errno.EOPNOTSUPP
    assert raw.call(16, struct.pack("<II", 16, 0x10001))[0] == errno.ENOTTY
    for version in (b"\0\0\0\0", b"\1\0\0\0", b""):  # again
        assert raw.call(1, version)[0] == errno.EINVAL
    # Without a reply nothing is said.
    raw.put(0xFFFF, bytes(8), flags=0x10)
    raw.put(13, b"too long", flags=0x10)
    assert raw.read32(0, 0) == 0x5A3B1E


def test_reset(raw, memfd: int, irq: int) -> None:
    raw.write32(0, 4, 7)
    assert raw.map(0, 0x1000, memfd) == 0
    assert raw.irqs(0x24, INTX, fds=[irq]) == 0
    assert raw.call(13) == (0, b"", [])
    assert raw.read(7, 4, 2) == b"\0\0"
    raw.enable()
    assert raw.read32(0, 4) == 0
    # Maps and connections are the client's: they stay.
    raw.write32(0, 0x24, 0)
    assert signals(irq) == 1
    assert raw.unmap(0, 0x1000) == 0


def test_what_fails_unexpectedly(raw, device, monkeypatch: pytest.MonkeyPatch) -> None:
    """An add-on, say, that raises while it hears of a reset: the client gets its answer and goes on."""
    with monkeypatch.context() as patch:
        patch.setattr(device, "reset", lambda kind: 1 / 0)
        assert raw.call(13) == (errno.EIO, b"", [])
    assert raw.call(13)[0] == 0
    assert device.resets[-1] == "FLR"


# DMA maps.


def test_dma_by_descriptor(raw, device, memfd: int) -> None:
    os.pwrite(memfd, b"\x78\x56\x34\x12", 0x3010)
    assert raw.map(0x10000, 0x2000, memfd, offset=0x3000) == 0
    raw.write(0, 0x10, struct.pack("<Q", 0x10010))
    assert raw.read32(0, 0x18) == 0x12345678
    raw.write32(0, 0x1C, 0xCAFE)
    assert os.pread(memfd, 4, 0x3010) == b"\xfe\xca\0\0"
    assert raw.unmap(0x10000, 0x2000) == 0
    assert raw.read32(0, 0x18) == 0xFFFFFFFF
    assert device.errors == ["NotMapped"]


def test_dma_map_conflicts(raw, memfd: int) -> None:
    assert raw.map(0x10000, 0x2000, memfd) == 0
    for address, size in ((0x10000, 0x2000), (0x11000, 0x1000), (0xF000, 0x2000), (0, 1 << 40)):
        assert raw.map(address, size, None) == errno.EEXIST
    assert raw.map(0x12000, 0x1000, memfd) == 0


def test_dma_map_refused(raw, memfd: int) -> None:
    read_only = os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY)
    pipe_read, pipe_write = os.pipe()
    file = os.open("/proc/self/exe", os.O_RDONLY)
    event = os.eventfd(0)
    try:
        assert raw.map(0, 0x200000, memfd)  # larger than the file
        assert raw.map(0, 0x1000, memfd, offset=1 << 40)
        assert raw.map(0, 0x1000, memfd, offset=0x800)  # not a page
        assert raw.map(0x800, 0x1000, memfd)
        assert raw.map(0, 0x1001, memfd)
        assert raw.map(0, 0x1000, read_only)  # writable wanted
        for wrong in (pipe_read, file, event):
            assert raw.map(0, 0x1000, wrong)
        assert raw.map(0, 0x1000, read_only, flags=1) == 0
    finally:
        for fd in (read_only, pipe_read, pipe_write, file, event):
            os.close(fd)


def test_more_dma_maps_than_the_server_has_told(serve, memfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One client can't use up the mappings that the kernel grants the process."""
    raw = serve().connect(negotiate=False)
    said = json.loads(raw.negotiate()[4:-1])["capabilities"]
    assert said["max_dma_maps"] == FILE_MAPS_MAX
    monkeypatch.setattr("umdev_vfio_user.session.OFFERED", replace(OFFERED, max_dma_maps=110))
    monkeypatch.setattr("umdev.memory.address_space.FILE_MAPS_MAX", 100)  # 8,191 of them take long
    for page in range(100):
        assert raw.map(page * 0x2000, 0x1000, memfd, offset=page % 32 * 0x2000) == 0
    assert raw.map(1 << 40, 0x1000, memfd) == errno.ENOSPC
    assert raw.map(1 << 40, 0x1000, None) == 0
    assert raw.unmap(0, 0x1000) == 0
    assert raw.map(1 << 41, 0x1000, memfd) == 0
    for page in range(9):
        assert raw.map((1 << 42) + (page << 12), 0x1000, None) == 0
    assert raw.map(1 << 43, 0x1000, None) == errno.ENOSPC
    assert raw.unmap(1 << 42, 0x1000) == 0
    assert raw.map(1 << 43, 0x1000, None) == 0
    assert raw.unmap(0, 0, flags=2) == 0
    raw.close()


def test_unmap_what_is_not_there(raw, memfd: int) -> None:
    """With a virtual IOMMU, QEMU unmaps ranges that were never mapped and ranges that cover many maps."""
    for address, size in ((0, 0xFEE00000), (0xFEF00000, 0xFFFFFFFF01100000), (0x80000000, 0x40000000)):
        assert raw.unmap(address, size) == 0
    for page in range(5):
        assert raw.map(0x100000 + page * 0x3000, 0x1000, memfd, offset=page * 0x1000) == 0
    assert raw.unmap(0, 0xFEE00000) == 0
    for page in range(5):
        assert raw.map(0x100000 + page * 0x3000, 0x1000, memfd, offset=page * 0x1000) == 0
    assert raw.unmap(0, 0, flags=2) == 0
    assert raw.map(0, 1 << 20, memfd) == 0
    assert raw.unmap(0, 0x1000) == errno.EINVAL  # would split the map
    assert raw.unmap(0, 1 << 20) == 0


def test_shrunk_memory(raw, device, memfd: int) -> None:
    """A client that truncates its memory hurts itself only."""
    assert raw.map(0, 0x4000, memfd) == 0
    raw.write(0, 0x10, struct.pack("<Q", 0x2000))
    os.ftruncate(memfd, 0)
    assert raw.read32(0, 0x18) in (0, 0xFFFFFFFF)
    raw.write32(0, 0x1C, 5)
    assert raw.read32(0, 0x18) in (0, 0xFFFFFFFF)
    assert device.errors[-1] == "MappingPoisoned"
    assert raw.unmap(0, 0x4000) == 0


# Interrupts.


def test_intx(raw, irq: int) -> None:
    assert raw.irqs(0x24, INTX, fds=[irq]) == 0
    raw.write32(0, 0x24, 0)
    assert signals(irq) == 1
    assert raw.read(7, 6, 1)[0] & 8  # Status: the level shows
    raw.write32(0, 0x24, 1)
    assert signals(irq) == 0  # it has masked itself
    assert raw.irqs(0x11, INTX) == 0
    assert signals(irq) == 1  # the level is high still
    raw.write32(0, 0x28, 0)
    raw.write32(0, 0x28, 1)
    assert raw.irqs(0x12, INTX, data=b"\1") == 0
    assert signals(irq) == 0
    assert raw.irqs(0x09, INTX) == 0  # masked by the client
    raw.write32(0, 0x24, 0)
    assert signals(irq) == 0
    assert raw.irqs(0x12, INTX, data=b"\0") == 0  # not meant
    assert signals(irq) == 0
    assert raw.irqs(0x11, INTX) == 0
    assert signals(irq) == 1


def test_intx_unmasked_by_an_eventfd(raw, irq: int) -> None:
    unmask = os.eventfd(0, os.EFD_NONBLOCK)
    assert raw.irqs(0x24, INTX, fds=[irq]) == 0
    assert raw.irqs(0x14, INTX, fds=[unmask]) == 0
    raw.write32(0, 0x24, 0)
    for _ in range(3):
        eventually(lambda: signals(irq) == 1)
        os.eventfd_write(unmask, 1)
    eventually(lambda: signals(irq) == 1)
    assert raw.irqs(0x14, INTX) == 0  # taken away
    os.close(unmask)
    assert raw.irqs(0x14, MSI, fds=[irq]) == errno.EINVAL


def test_msi_of_a_vmm_that_virtualizes_vectors(raw, device, irq: int) -> None:
    """QEMU never writes the MSI-X table to the server: a connected eventfd is enough."""
    assert raw.irqs(0x24, MSIX) == 0  # enabled with no vector, as QEMU does first
    assert raw.irqs(0x21, MSIX, count=0) == 0
    assert raw.irqs(0x24, MSIX, fds=[irq]) == 0
    raw.write32(0, 0x24, 0)
    assert signals(irq) == 1
    assert raw.irqs(0x24, MSIX, start=0) == 0  # disconnected
    raw.write32(0, 0x24, 0)
    assert signals(irq) == 0
    assert raw.irqs(0x21, MSIX, count=0) == 0
    assert raw.irqs(0x24, MSI, start=3, fds=[irq]) == 0
    raw.write32(0, 0x24, 3)
    assert signals(irq) == 1


def test_many_vectors_in_messages_of_sixteen(raw) -> None:
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(20)]
    assert raw.irqs(0x24, MSIX, 0, 16, fds=fds[:16]) == 0
    assert raw.irqs(0x24, MSIX, 16, 4, fds=fds[16:]) == 0
    for vector in (0, 15, 16, 19):
        raw.write32(0, 0x24, vector)
        assert [n for n in range(20) if signals(fds[n])] == [vector]
    for fd in fds:
        os.close(fd)


def test_triggered_by_the_client(raw, irq: int) -> None:
    other = os.eventfd(0, os.EFD_NONBLOCK)
    assert raw.irqs(0x24, MSI, 0, 2, fds=[irq, other]) == 0
    assert raw.irqs(0x21, MSI) == 0
    assert (signals(irq), signals(other)) == (1, 0)
    assert raw.irqs(0x22, MSI, 0, 2, data=b"\0\1") == 0
    assert (signals(irq), signals(other)) == (0, 1)
    for index in (ERR, REQ):
        assert raw.irqs(0x24, index, fds=[irq]) == 0
        assert raw.irqs(0x21, index) == 0
        assert signals(irq) == 1
    os.close(other)


@pytest.mark.parametrize(
    ("flags", "index", "start", "count"),
    [(0x24, INTX, 1, 1), (0x24, INTX, 0, 2), (0x24, MSI, 4, 1), (0x21, MSIX, 19, 2), (0x21, MSIX, 1 << 31, 1 << 31)],
)
def test_vectors_that_do_not_exist(raw, flags: int, index: int, start: int, count: int) -> None:
    assert raw.irqs(flags, index, start, count) == errno.EINVAL


def test_masks_that_do_not_exist(raw, irq: int) -> None:
    assert raw.irqs(0x0C, INTX, fds=[irq]) == errno.EINVAL
    assert raw.irqs(0x09, ERR) == errno.EINVAL


def test_what_is_no_eventfd(raw, irq: int) -> None:
    pipe_read, pipe_write = os.pipe()
    for wrong in (pipe_read, pipe_write):
        assert raw.irqs(0x24, INTX, fds=[wrong]) == errno.EINVAL
        assert raw.irqs(0x24, MSI, 0, 2, fds=[irq, wrong]) == errno.EINVAL
    raw.write32(0, 0x24, 0)
    assert signals(irq) == 0  # the good one of a refused pair is not kept
    os.close(pipe_read)
    os.close(pipe_write)


def test_saturated_eventfd(raw) -> None:
    """Nobody reads the client's eventfd: the device must not wait for it."""
    full = os.eventfd(0)
    os.eventfd_write(full, (1 << 64) - 2)
    assert raw.irqs(0x24, MSI, fds=[full]) == 0
    for _ in range(10):
        raw.write32(0, 0x24, 0)
    assert raw.irqs(0x21, MSI) == 0
    assert raw.read32(0, 0) == 0x5A3B1E
    os.close(full)
