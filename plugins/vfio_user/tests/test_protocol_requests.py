"""Every request, decoded; every number that does not fit, refused with its errno."""

from __future__ import annotations

import errno
import struct

import pytest
from umdev_vfio_user.protocol import (
    Command,
    DeviceFeature,
    DeviceReset,
    DmaMap,
    DmaMapFlag,
    DmaRead,
    DmaUnmap,
    DmaWrite,
    GetDeviceInfo,
    GetIrqInfo,
    GetRegionInfo,
    GetRegionIoFds,
    IrqAction,
    IrqData,
    Message,
    Refused,
    RegionRead,
    RegionWrite,
    RegionWriteMulti,
    Request,
    SetIrqs,
    decode_request,
)
from umdev_vfio_user.protocol.constants import MAX_TRANSFER
from umdev_vfio_user.protocol.requests import FROM_CLIENT, FROM_SERVER

END = 1 << 64


def decode(command: int, payload: bytes = b"", fds: tuple[int, ...] = (), *, client: bool = True) -> Request:
    return decode_request(Message(1, command, 0, 0, payload, fds), FROM_CLIENT if client else FROM_SERVER)


def refused(command: int, payload: bytes = b"", fds: tuple[int, ...] = (), *, client: bool = True) -> int:
    with pytest.raises(Refused) as caught:
        decode(command, payload, fds, client=client)
    assert caught.value.errno is not None
    return caught.value.errno


def dma_map(argsz=32, flags=3, offset=0, address=0x1000, size=0x1000) -> bytes:
    return struct.pack("<IIQQQ", argsz, flags, offset, address, size)


def dma_unmap(argsz=24, flags=0, address=0x1000, size=0x1000) -> bytes:
    return struct.pack("<IIQQ", argsz, flags, address, size)


def irq_set(flags: int, index=0, start=0, count=1, data=b"", argsz=20) -> bytes:
    return struct.pack("<IIIII", argsz, flags, index, start, count) + data


def test_dma_map() -> None:
    both = DmaMapFlag.READABLE | DmaMapFlag.WRITABLE
    assert decode(2, dma_map(), (5,)) == DmaMap(0x1000, 0x1000, 0, both, 5)
    assert decode(2, dma_map(flags=1, offset=0x10)) == DmaMap(0x1000, 0x1000, 0x10, DmaMapFlag.READABLE, None)
    assert decode(2, dma_map(address=END - 0x1000))


@pytest.mark.parametrize(
    ("payload", "fds"),
    [
        (dma_map()[:-1], ()),
        (dma_map() + b"\0", ()),
        (b"", ()),
        (dma_map(argsz=31), ()),
        (dma_map(flags=0), ()),
        (dma_map(flags=4), ()),
        (dma_map(flags=0xFFFFFFFF), ()),
        (dma_map(size=0), ()),
        (dma_map(address=END - 0x1000, size=0x1001), ()),
        (dma_map(address=END - 1, size=END - 1), ()),
        (dma_map(offset=(1 << 63)), ()),
        (dma_map(offset=END - 1), (5,)),
        (dma_map(), (5, 6)),
    ],
)
def test_dma_map_refused(payload: bytes, fds: tuple[int, ...]) -> None:
    assert refused(2, payload, fds) == errno.EINVAL


def test_dma_unmap() -> None:
    assert decode(3, dma_unmap()) == DmaUnmap(0x1000, 0x1000, all_maps=False, payload=dma_unmap())
    everything = dma_unmap(flags=2, address=0, size=0)
    assert decode(3, everything) == DmaUnmap(0, 0, all_maps=True, payload=everything)
    # What QEMU sends with a virtual IOMMU.
    tail = decode(3, dma_unmap(address=0xFEF00000, size=0xFFFFFFFF01100000))
    assert isinstance(tail, DmaUnmap)
    assert tail.address + tail.size == END
    beyond = decode(3, dma_unmap(address=END - 0x1000, size=END - 1))
    assert isinstance(beyond, DmaUnmap)
    assert beyond.address + beyond.size == END


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (dma_unmap(argsz=23), errno.EINVAL),
        (dma_unmap()[:-1], errno.EINVAL),
        (dma_unmap() + b"\0", errno.EINVAL),
        (dma_unmap(flags=1), errno.EOPNOTSUPP),  # dirty bitmap
        (dma_unmap(flags=1) + bytes(16), errno.EOPNOTSUPP),
        (dma_unmap(flags=4), errno.EINVAL),
        (dma_unmap(size=0), errno.EINVAL),
        (dma_unmap(flags=2), errno.EINVAL),
    ],
)
def test_dma_unmap_refused(payload: bytes, code: int) -> None:
    assert refused(3, payload) == code


@pytest.mark.parametrize(
    ("command", "payload", "expected"),
    [
        (4, struct.pack("<IIII", 16, 0, 0, 0), GetDeviceInfo(16)),
        (5, struct.pack("<IIIIQQ", 32, 0, 8, 0, 0, 0), GetRegionInfo(8, 32)),
        (6, struct.pack("<IIII", 16, 0, 2, 0), GetRegionIoFds(2, 16)),
        (7, struct.pack("<IIII", 16, 0, 4, 0), GetIrqInfo(4, 16)),
    ],
)
def test_questions(command: int, payload: bytes, expected: Request) -> None:
    assert decode(command, payload) == expected
    assert refused(command, payload[:-1]) == errno.EINVAL
    assert refused(command, payload + b"\0") == errno.EINVAL
    assert refused(command, payload, (3,)) == errno.EINVAL
    assert refused(command, struct.pack("<I", len(payload) - 1) + payload[4:]) == errno.EINVAL  # argsz
    if command != 4:
        for index in (9, 100, 0xFFFFFFFF):
            assert refused(command, payload[:8] + struct.pack("<I", index) + payload[12:]) == errno.EINVAL


def test_region_io_fds_fields() -> None:
    assert refused(6, struct.pack("<IIII", 16, 1, 2, 0)) == errno.EINVAL
    assert refused(6, struct.pack("<IIII", 16, 0, 2, 1)) == errno.EINVAL


@pytest.mark.parametrize("data", list(IrqData))
@pytest.mark.parametrize("action", list(IrqAction))
def test_set_irqs(data: IrqData, action: IrqAction) -> None:
    booleans = b"\0\1\2" if data is IrqData.BOOL else b""
    fds = (4, 5, 6) if data is IrqData.EVENTFD else ()
    request = decode(8, irq_set(data | action, 2, 1, 3, booleans), fds)
    chosen = (False, True, True) if data is IrqData.BOOL else ()
    assert request == SetIrqs(2, 1, 3, data, action, chosen, fds)


def test_set_irqs_as_qemu_sends_them() -> None:
    assert decode(8, irq_set(0x24), (9,)) == SetIrqs(0, 0, 1, IrqData.EVENTFD, IrqAction.TRIGGER, (), (9,))
    assert decode(8, irq_set(0x24, 2)) == SetIrqs(2, 0, 1, IrqData.EVENTFD, IrqAction.TRIGGER)
    assert decode(8, irq_set(0x21, count=0)) == SetIrqs(0, 0, 0, IrqData.NONE, IrqAction.TRIGGER)
    assert decode(8, irq_set(0x11)) == SetIrqs(0, 0, 1, IrqData.NONE, IrqAction.UNMASK)
    assert decode(8, irq_set(0x09)) == SetIrqs(0, 0, 1, IrqData.NONE, IrqAction.MASK)
    assert decode(8, irq_set(0x14), (9,)) == SetIrqs(0, 0, 1, IrqData.EVENTFD, IrqAction.UNMASK, (), (9,))


@pytest.mark.parametrize(
    ("payload", "fds"),
    [
        (irq_set(0x24)[:-1], ()),
        (irq_set(0x24, argsz=19), ()),
        (irq_set(0x24, index=5), ()),
        (irq_set(0x24, index=0xFFFFFFFF), ()),
        (irq_set(0x20), ()),  # no data kind
        (irq_set(0x04), ()),  # no action
        (irq_set(0x25), ()),  # two data kinds
        (irq_set(0x34), ()),  # two actions
        (irq_set(0x64), ()),  # an unknown bit
        (irq_set(0x24, start=0xFFFFFFFF), ()),
        (irq_set(0x24, count=0xFFFFFFFF), ()),
        (irq_set(0x24, count=3), (4, 5)),
        (irq_set(0x24, count=1), (4, 5)),
        (irq_set(0x24, count=0), ()),
        (irq_set(0x21, start=1, count=0), ()),
        (irq_set(0x11, count=0), ()),
        (irq_set(0x21, data=b"\1"), ()),
        (irq_set(0x22, count=2, data=b"\1"), ()),
        (irq_set(0x22, count=1, data=b"\1\1"), ()),
        (irq_set(0x21), (4,)),
        (irq_set(0x22, data=b"\1"), (4,)),
    ],
)
def test_set_irqs_refused(payload: bytes, fds: tuple[int, ...]) -> None:
    assert refused(8, payload, fds) == errno.EINVAL


def test_accesses() -> None:
    access = struct.pack("<QII", 0x10, 2, 4)
    assert decode(9, access) == RegionRead(2, 0x10, 4)
    assert decode(10, access + b"abcd") == RegionWrite(2, 0x10, b"abcd")
    assert refused(9, access + b"x") == errno.EINVAL
    assert refused(10, access + b"abc") == errno.EINVAL
    assert refused(10, access + b"abcde") == errno.EINVAL
    assert refused(9, struct.pack("<QII", 0, 9, 4)) == errno.EINVAL
    assert refused(9, struct.pack("<QII", END - 2, 0, 4)) == errno.EINVAL
    assert refused(9, struct.pack("<QII", 0, 0, MAX_TRANSFER + 1)) == errno.E2BIG


def test_write_multi() -> None:
    entries = struct.pack("<QII8s", 0, 1, 2, b"ab") + struct.pack("<QII8s", 8, 1, 8, b"12345678")
    request = decode(15, struct.pack("<Q", 2) + entries)
    assert request == RegionWriteMulti((RegionWrite(1, 0, b"ab"), RegionWrite(1, 8, b"12345678")))
    assert decode(15, struct.pack("<Q", 0)) == RegionWriteMulti(())
    for count in (1, 3, 1 << 63, END - 1):
        assert refused(15, struct.pack("<Q", count) + entries) == errno.EINVAL
    assert refused(15, struct.pack("<Q", 2) + entries[:-1]) == errno.EINVAL
    assert refused(15, struct.pack("<Q", 1) + struct.pack("<QII8s", 0, 1, 9, b"")) == errno.EINVAL


def test_reset_and_feature() -> None:
    assert decode(13) == DeviceReset()
    assert refused(13, b"x") == errno.EINVAL
    assert refused(13, fds=(3,)) == errno.EINVAL
    assert decode(16, struct.pack("<II", 16, 0x10002)) == DeviceFeature(2, 0x10000, b"")
    assert refused(16, b"") == errno.EINVAL
    assert refused(16, struct.pack("<II", 7, 0)) == errno.EINVAL


@pytest.mark.parametrize("command", [0, 11, 12, 14, 17, 18, 19, 0x7FFF, 0xFFFF])
def test_commands_that_a_server_does_not_serve(command: int) -> None:
    assert refused(command, bytes(32)) == errno.EOPNOTSUPP


def test_what_a_client_serves() -> None:
    access = struct.pack("<QQ", 0x1000, 4)
    assert decode(11, access, client=False) == DmaRead(0x1000, 4)
    assert decode(12, access + b"abcd", client=False) == DmaWrite(0x1000, b"abcd")
    assert refused(11, access + b"x", client=False) == errno.EINVAL
    assert refused(12, access + b"abc", client=False) == errno.EINVAL
    assert refused(11, struct.pack("<QQ", 0, MAX_TRANSFER + 1), client=False) == errno.E2BIG
    assert refused(11, struct.pack("<QQ", END - 1, 4), client=False) == errno.EINVAL
    assert refused(Command.REGION_READ, bytes(16), client=False) == errno.EOPNOTSUPP
