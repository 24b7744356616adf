"""The client: the driver's view over a connection, with memory shared and by message."""

from __future__ import annotations

import errno
import gc
import os
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from umdev.errors import (
    Disconnected,
    InvalidArgument,
    NotSupported,
    ProtocolError,
    SocketPathError,
    StateError,
    TransportError,
)
from umdev_vfio_user import Client, VfioUserFunction, bus
from umdev_vfio_user.protocol import Command

HEADER = struct.Struct("<HHIII")


def eventually(check) -> None:
    for _ in range(1000):
        if check():
            return
        time.sleep(0.005)
    raise AssertionError("it did not happen")


def descriptors() -> int:
    gc.collect()  # what earlier tests left
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def read_for_ever(function: VfioUserFunction) -> None:
    while True:
        function.region_read(7, 0, 4)


def test_regions(function) -> None:
    regions = function.regions
    assert sorted(regions) == [0, 2, 3, 4, 5, 7]
    assert {index: info.size for index, info in regions.items()} == {
        0: 0x1000, 2: 0x10000, 3: 0x8000, 4: 0x1000, 5: 16, 7: 4096,
    }  # fmt: skip
    assert [(area.offset, area.length) for area in regions[2].areas] == [(0, 0x10000)]
    assert [(area.offset, area.length) for area in regions[3].areas] == [(0x1000, 0x1000), (0x4000, 0x2000)]
    assert regions[0].areas == ()


def test_accesses(function) -> None:
    bar = function.bars[0]
    assert bar.read32(0) == 0x5A3B1E
    bar.write32(4, 0x1234)
    assert bar.read16(4) == 0x1234
    assert bar.read32(8) == 1
    function.bars[5].write32(0, 99)
    assert function.bars[5].read32(0) == 99
    assert function.config.vendor_id == 0x1234
    with pytest.raises(InvalidArgument):
        function.region_read(0, 4096, 4)
    with pytest.raises(InvalidArgument):
        function.region_read(1, 0, 4)
    with pytest.raises(InvalidArgument):
        function.region_write(0, -1, b"x")


def test_passthrough(function, device) -> None:
    with function.map_area(2) as ram, function.map_area(3, 1) as second:
        ram.write(0x100, b"from the driver")
        assert bytes(device.ram.window.view[0x100:0x10F]) == b"from the driver"
        device.ram.window.view[0:4] = b"back"
        assert ram.read(0, 4) == b"back"
        second.write(0x10, b"sparse")
        assert function.region_read(3, 0x4010, 6) == b"sparse"


def test_dma_from_deferred_work(function, device) -> None:
    with function.allocate(5000) as buffer:
        assert buffer.size == 8192
        function.bars[0].write64(0x10, buffer.address + 4096 - 2)  # across two pages
        function.bars[0].write32(0x20, 0xCAFEBABE)
        eventually(lambda: buffer.read32(4094) == 0xCAFEBABE)
    assert device.errors == []


def test_dma_from_handlers(function, device) -> None:
    """The client may wait for any of them, or for what comes behind: with memory by message, it is refused at once."""
    memory = function.allocate(4096)
    shared = device.address_space.mappings[0].backing is not None
    memory.write32(0, 0x600D)
    function.bars[0].write64(0x10, memory.address)
    started = time.monotonic()
    value = function.bars[0].read32(0x18)
    function.bars[5].write32(4, 0x77)
    stored = memory.read32(0)
    function.bars[0].write32(0x1C, 0x88)
    function.bars[0].read32(0)  # behind it
    assert time.monotonic() - started < 4  # not by running into a time limit
    if shared:
        assert (value, stored, memory.read32(0)) == (0x600D, 0x77, 0x88)
        assert device.errors == []
    else:
        assert (value, stored, memory.read32(0)) == (0xFFFFFFFF, 0x600D, 0x600D)
        assert device.errors == ["DmaWouldDeadlock"] * 3
    memory.free()


def test_long_dma(function, device) -> None:
    """Longer than a message, and than a socket's buffer."""
    data = os.urandom(3 << 20)
    with function.allocate(len(data)) as buffer:
        buffer.write(0, data)
        assert device.memory.read(buffer.address, len(data)) == data
        device.memory.write(buffer.address, data[::-1])
        assert buffer.read(0, len(data)) == data[::-1]


def test_dma_from_many_threads_while_the_driver_works(function, device) -> None:
    """Workers that hold the device lock while they wait for the client, a driver that waits for the lock."""
    buffers = [function.allocate(4096) for _ in range(4)]

    def work(number: int) -> None:
        for turn in range(60):
            value = (number << 16 | turn).to_bytes(4, "little") * 16
            with device.locked():
                device.memory.write(buffers[number].address, value)
                assert device.memory.read(buffers[number].address, 64) == value

    def drive() -> None:
        for turn in range(300):
            function.bars[0].write32(4, turn)
            assert function.bars[0].read32(4) == turn

    with ThreadPoolExecutor(5) as pool:
        for future in [pool.submit(work, number) for number in range(4)] + [pool.submit(drive)]:
            future.result(60)
    assert function.bars[0].read32(8) == 300
    for buffer in buffers:
        buffer.free()


def test_freed_memory_is_out_of_reach(function, device) -> None:
    buffer = function.allocate(4096)
    address = buffer.address
    buffer.free()
    buffer.free()
    function.bars[0].write64(0x10, address)
    assert function.bars[0].read32(0x18) == 0xFFFFFFFF
    assert device.errors[-1] == "NotMapped"
    with pytest.raises(StateError):
        buffer.read(0, 1)
    with function.allocate(1) as again:
        assert again.address == address
        assert again.read(0, 4096) == bytes(4096)


def test_buffers_do_not_touch(function) -> None:
    with pytest.raises(InvalidArgument):
        function.allocate(0)
    buffers = [function.allocate(size) for size in (1, 4096, 8192, 4097)]
    ranges = sorted((buffer.address, buffer.address + buffer.size) for buffer in buffers)
    assert all(end < start for (_, end), (start, _) in pairwise(ranges))
    for buffer in buffers:
        buffer.free()


@pytest.mark.parametrize("kind", ["intx", "msi", "msix"])
def test_interrupts(function, kind: str) -> None:
    count = {"intx": 1, "msi": 4, "msix": 20}[kind]
    with function.enable_interrupts(kind, count) as irqs:
        for vector in (0, count - 1):
            function.bars[0].write32(0x24, vector)
            assert irqs.wait(vector, timeout=5) == 1
            function.bars[0].write32(0x28, vector)
            irqs.acknowledge()


def test_msix_masks_and_pending_bits_are_the_servers(function) -> None:
    """A client that does not virtualize the table gets the function's own masks."""
    with function.enable_interrupts("msix", 2) as irqs:
        table = function.bars[4]
        control = 16 * 1 + 12
        table.write32(control, 1)
        function.bars[0].write32(0x24, 1)
        assert irqs.wait(1, timeout=0.05) == 0
        table.write32(control, 0)
        assert irqs.wait(1, timeout=5) == 1


def test_irq_descriptors(function) -> None:
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
    function.connect_irq(1, [fds[0], -1, fds[1]])
    for vector, fd in ((0, fds[0]), (2, fds[1])):
        function.trigger_irq(1, vector)
        assert os.eventfd_read(fd) == 1
    with pytest.raises(InvalidArgument):
        function.connect_irq(1, fds * 2)
    pipe_read, pipe_write = os.pipe()
    with pytest.raises(InvalidArgument):
        function.connect_irq(1, [pipe_read])
    function.connect_irq(1, [fds[2]])
    function.disable_irq(1)
    function.disable_irq(1)
    function.trigger_irq(1, 0)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(fds[2])
    for fd in (pipe_read, pipe_write, *fds):
        os.close(fd)


def test_reset(function) -> None:
    function.bars[0].write32(4, 5)
    function.reset()
    function.enable()
    assert function.bars[0].read32(4) == 0
    function.bars[0].write32(4, 5)
    function.function_level_reset()
    function.enable()
    assert function.bars[0].read32(4) == 0


def test_posted_writes(device) -> None:
    with bus.open_function(device, posted=True) as function:
        function.enable()
        for turn in range(1000):
            function.bars[0].write32(4, turn)
        assert function.bars[0].read32(8) == 1000


def test_threads_overlap_and_lose_nothing(function) -> None:
    def hammer(_: int) -> None:
        for _ in range(200):
            function.bars[0].write32(4, 1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hammer, range(4)))
    assert function.bars[0].read32(8) == 800


def test_services(function, device) -> None:
    services = device.attachment.services
    assert services.mechanisms["trap[0]"] == "REGION_READ and REGION_WRITE messages"
    assert services.mechanisms["passthrough[3+0x4000]"] == "descriptor + sparse mmap area"
    assert services.mechanisms["interrupt"] == "eventfds by SET_IRQS"
    assert services.mapper().mechanism == "mmap of DMA_MAP descriptors"
    with function.allocate(1):
        shared = device.address_space.mappings[0].backing is not None
        wanted = "mmap of DMA_MAP descriptors" if shared else "DMA_READ and DMA_WRITE messages"
        assert services.mapper().mechanism == wanted


def test_close(device) -> None:
    gc.collect()
    before = descriptors(), threading.active_count()
    function = bus.open_function(device)
    buffer = function.allocate(4096)
    with pytest.raises(StateError, match="already attached"):
        bus.open_function(device)
    function.close()
    function.close()
    buffer.free()
    assert device.attachment is None
    assert (descriptors(), threading.active_count()) == before
    for call in (lambda: function.region_read(0, 0, 4), function.reset, lambda: function.allocate(1)):
        with pytest.raises(Disconnected):
            call()


def test_server_that_goes(serve) -> None:
    served = serve()
    with bus.connect(served.server.socket_path) as function:
        function.enable()
        served.server.stop()
        with pytest.raises(Disconnected):
            read_for_ever(function)


def test_paths(tmp_path) -> None:
    with pytest.raises(SocketPathError) as caught:
        bus.connect(tmp_path / "nobody")
    assert caught.value.errno == errno.ENOENT


class FakeServer:
    """Answers as it is told to."""

    def __init__(self, *answers: bytes | None) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.answers = list(answers)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        with self.theirs:
            for answer in self.answers:
                data = self.theirs.recv(65536)
                if not data or answer is None:
                    return
                number, command, *_ = HEADER.unpack_from(data)
                self.theirs.sendall(answer.replace(b"IDCM", struct.pack("<HH", number, command)))
            self.theirs.recv(1)


def answer(payload: bytes = b"", flags: int = 1, error: int = 0) -> bytes:
    return b"IDCM" + struct.pack("<III", 16 + len(payload), flags, error) + payload


WELCOME = answer(b'\0\0\1\0{"capabilities":{"max_msg_fds":3}}\0')


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (answer(b""), ProtocolError),
        (answer(b"\1\0\0\0"), ProtocolError),
        (answer(b"\0\0\2\0"), ProtocolError),
        (answer(b"\0\0\0\0{"), ProtocolError),
        (answer(b"", 0x21, errno.EINVAL), InvalidArgument),
        (b"\0\0\0\0" + bytes(12), Disconnected),
        (answer(b"\0\0\0\0", 7), Disconnected),
        (answer(b"\0\0\0\0").replace(b"IDCM", b"\x55\x55\1\0"), Disconnected),
        (None, Disconnected),
    ],
)
def test_bad_welcome(reply: bytes | None, error: type[Exception]) -> None:
    fake = FakeServer(reply)
    with pytest.raises(error):
        Client(fake.ours, timeout=2)
    fake.thread.join()


@pytest.mark.parametrize(
    ("reply", "error", "code"),
    [
        (answer(b"", 0x21, errno.EINVAL), InvalidArgument, errno.EINVAL),
        (answer(b"", 0x21, errno.EOPNOTSUPP), NotSupported, errno.EOPNOTSUPP),
        (answer(b"", 0x21, errno.ENOSPC), TransportError, errno.ENOSPC),
        (answer(b"", 0x21, 0), TransportError, errno.EIO),
    ],
)
def test_refusals_keep_their_errno(reply: bytes, error: type[OSError], code: int) -> None:
    fake = FakeServer(WELCOME, reply)
    with Client(fake.ours, timeout=2) as client:
        assert client.server.max_msg_fds == 3
        with pytest.raises(error) as caught:
            client.request(Command.DEVICE_RESET)
        assert caught.value.errno == code
    fake.thread.join()


def test_no_reply_in_time() -> None:
    fake = FakeServer(WELCOME, b"")
    with Client(fake.ours, timeout=0.05) as client:
        with pytest.raises(TransportError) as caught:
            client.request(Command.DEVICE_RESET)
        assert caught.value.errno == errno.ETIMEDOUT
        with pytest.raises(Disconnected):
            client.request(Command.DEVICE_RESET)
    fake.thread.join()


@pytest.mark.parametrize(
    "reply",
    [
        answer(struct.pack("<IIIIQQ", 32, 3, 0, 0, 4096, 0)[:-1]),
        answer(b""),
    ],
)
def test_bad_region_info(reply: bytes) -> None:
    fake = FakeServer(WELCOME, answer(struct.pack("<IIII", 16, 3, 9, 5)), reply)
    with pytest.raises(ProtocolError):
        VfioUserFunction(fake.ours, timeout=2)
    fake.thread.join()


def test_more_vectors_than_there_can_be() -> None:
    """What a server says is not allocated."""
    info = answer(struct.pack("<IIII", 16, 3, 0, 1))
    fake = FakeServer(WELCOME, info, answer(struct.pack("<IIII", 16, 1, 0, 0xFFFF_FFFF)))
    with pytest.raises(ProtocolError, match="4294967295 vectors"):
        VfioUserFunction(fake.ours, timeout=2)
    fake.thread.join()


def test_server_asks_for_memory_that_is_not_there() -> None:
    """EFAULT for what no buffer covers, EOPNOTSUPP for what a client does not serve."""
    asks = b"".join(
        HEADER.pack(number, command, 16 + len(payload), flags, 0) + payload
        for number, command, payload, flags in (
            (1, 11, struct.pack("<QQ", 0x1000, 4), 0),
            (2, 12, struct.pack("<QQ", 0x1000, 4) + b"abcd", 0),
            (3, 11, struct.pack("<QQ", 0x1000, 1 << 40), 0),
            (4, 9, bytes(16), 0),
            (5, 12, struct.pack("<QQ", 0x1000, 4) + b"abcd", 0x10),
        )
    )
    ours, theirs = socket.socketpair()
    heard: list[tuple[int, ...]] = []

    def serve() -> None:
        number, *_ = HEADER.unpack_from(theirs.recv(65536))
        theirs.sendall(WELCOME.replace(b"IDCM", struct.pack("<HH", number, 1)))
        number, *_ = HEADER.unpack_from(theirs.recv(65536))
        theirs.sendall(asks)
        heard.extend(HEADER.unpack(theirs.recv(16, socket.MSG_WAITALL)) for _ in range(4))
        theirs.sendall(answer().replace(b"IDCM", struct.pack("<HH", number, 13)))

    thread = threading.Thread(target=serve)
    thread.start()
    with Client(ours, timeout=5) as client:
        client.request(Command.DEVICE_RESET)
    thread.join()
    theirs.close()
    assert [(number, flags, error) for number, _, _, flags, error in heard] == [
        (1, 0x21, errno.EFAULT),
        (2, 0x21, errno.EFAULT),
        (3, 0x21, errno.E2BIG),
        (4, 0x21, errno.EOPNOTSUPP),
    ]
