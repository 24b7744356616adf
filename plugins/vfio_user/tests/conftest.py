"""A device with one of everything, and a client that sends whatever it is told to."""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from umdev.device import (
    RO,
    Block,
    Device,
    DmaError,
    Interrupts,
    IoBar,
    MemoryBar,
    PciExpress,
    PciId,
    PowerManagement,
    Register,
    Register64,
    ResetKind,
    State,
    Window,
)
from umdev_vfio_user import Server, VfioUserFunction, bus

HEADER = struct.Struct("<HHIII")
ACCESS = struct.Struct("<QII")
IO_FDS = struct.Struct("<IIII")
SUB_REGION = struct.Struct("<QQIIIIQ")
VERSION_DATA = b'\0\0\0\0{"capabilities":{"max_msg_fds":16,"write_multiple":true}}' + b" " * 200 + b"\0"
WAIT = 60.0
MEMORY = 0x10_0000
DMA_WRITE = 12


class Registers(Block["Sample"]):
    """BAR 0."""

    ident = Register(0x00, RO, reset=0x5A3B1E)
    scratch = Register(0x04)
    count = Register(0x08, RO)
    address = Register64(0x10)
    read_now = Register(0x18)  # DMA while the driver waits for the value
    bell = Register(0x1C)  # DMA in the handler of a write
    later = Register(0x20)  # DMA in deferred work
    raise_irq = Register(0x24)
    lower_irq = Register(0x28)
    broken = Register(0x2C)

    @scratch.on_write
    def counted(self, value: int) -> None:
        self.count.value += 1

    @read_now.on_read
    def dma_read(self) -> int:
        return self.device.fetch()

    @bell.on_write
    def rung(self, value: int) -> None:
        self.device.store(value)

    @later.on_write
    def deferred(self, value: int) -> None:
        self.device.after(0, lambda: self.device.store(value))

    @raise_irq.on_write
    def raised(self, value: int) -> None:
        self.device.interrupts.raise_(value)

    @lower_irq.on_write
    def lowered(self, value: int) -> None:
        self.device.interrupts.lower(value)

    @broken.on_write
    def fails(self, value: int) -> None:
        raise RuntimeError("on purpose")


class Ram(Block["Sample"]):
    """BAR 2: all of it is passed through."""

    window = Window(0, 0x10000)


class Mixed(Block["Sample"]):
    """BAR 3: two windows between registers."""

    low = Register(0x0000)
    first = Window(0x1000, 0x1000)
    second = Window(0x4000, 0x2000)


class Ports(Block["Sample"]):
    """BAR 5."""

    data = Register(0x0)
    bell = Register(0x4)

    @bell.on_write
    def rung(self, value: int) -> None:
        self.device.store(value)


class Sample(Device):
    """One of everything."""

    pci = PciId(vendor=0x1234, device=0x5A3B, class_code=0x00FF00)
    interrupts = Interrupts(msi=4, msix=20, intx=True, msix_bar=4)
    capabilities = (PowerManagement(), PciExpress(flr=True))
    registers = MemoryBar(0, Registers, size=4096, sizes=(1, 2, 4, 8))
    ram = MemoryBar(2, Ram, size=0x10000, prefetchable=True)
    mixed = MemoryBar(3, Mixed, size=0x8000)
    table = MemoryBar(4, Block, size=0x1000)
    ports = IoBar(5, Ports, size=16)
    errors: State[list[str]] = State(list, save=False)
    resets: State[list[str]] = State(list, save=False)

    def on_reset(self, kind: ResetKind) -> None:
        self.resets.append(kind.name)

    def fetch(self) -> int:
        """The word at `address`, or all ones."""
        try:
            return int.from_bytes(self.memory.read(self.registers.address.value, 4), "little")
        except DmaError as error:
            self.errors.append(type(error).__name__)
            return 0xFFFF_FFFF

    def store(self, value: int) -> None:
        """A word to `address`."""
        try:
            self.memory.write(self.registers.address.value, value.to_bytes(4, "little"))
        except DmaError as error:
            self.errors.append(type(error).__name__)


class Raw:
    """A client without manners."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        end.settimeout(WAIT)
        self.number = 100

    def put(self, command: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0, number: int = 0) -> None:
        message = HEADER.pack(number, command, 16 + len(payload), flags, 0) + payload
        socket.send_fds(self.socket, [message], list(fds))

    def get(self) -> tuple[int, int, int, int, bytes, list[int]]:
        """id, command, flags, errno, payload, descriptors of one message."""
        head, ancillary, _, _ = self.socket.recvmsg(16, socket.CMSG_SPACE(64))
        while head and len(head) < 16:
            head += self.socket.recv(16 - len(head))
        if not head:
            raise EOFError
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content)
        number, command, size, flags, error = HEADER.unpack(head)
        payload = b""
        while len(payload) < size - 16:
            payload += self.socket.recv(size - 16 - len(payload))
        return number, command, flags, error, payload, list(fds)

    def call(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> tuple[int, bytes, list[int]]:
        """errno, payload and descriptors of the reply."""
        self.number = (self.number + 1) & 0xFFFF
        self.put(command, payload, fds, number=self.number)
        number, answered, flags, error, reply, got = self.get()
        assert (number, answered) == (self.number, command)
        assert flags & 1
        assert bool(flags & 0x20) == bool(error)
        assert not error or not reply
        return error, reply, got

    def read(self, region: int, offset: int, count: int) -> bytes:
        error, reply, _ = self.call(9, ACCESS.pack(offset, region, count))
        assert error == 0
        assert reply[:16] == ACCESS.pack(offset, region, count)
        return reply[16:]

    def write(self, region: int, offset: int, data: bytes) -> None:
        error, reply, _ = self.call(10, ACCESS.pack(offset, region, len(data)) + data)
        assert error == 0
        assert reply == ACCESS.pack(offset, region, len(data))

    def read32(self, region: int, offset: int) -> int:
        return int.from_bytes(self.read(region, offset, 4), "little")

    def write32(self, region: int, offset: int, value: int) -> None:
        self.write(region, offset, value.to_bytes(4, "little"))

    def irqs(
        self, flags: int, index: int, start: int = 0, count: int = 1, data: bytes = b"", fds: Sequence[int] = ()
    ) -> int:
        return self.call(8, struct.pack("<IIIII", 20 + len(data), flags, index, start, count) + data, fds)[0]

    def map(self, address: int, size: int, fd: int | None = None, offset: int = 0, flags: int = 3) -> int:
        fds = () if fd is None else (fd,)
        return self.call(2, struct.pack("<IIQQQ", 32, flags, offset, address, size), fds)[0]

    def unmap(self, address: int, size: int, flags: int = 0) -> int:
        payload = struct.pack("<IIQQ", 24, flags, address, size)
        error, reply, _ = self.call(3, payload)
        assert error or reply == payload
        return error

    def doorbells(self, region: int, room: int = 4096) -> tuple[tuple[int, ...], list[tuple[int, ...]], list[int]]:
        """DEVICE_GET_REGION_IO_FDS: fixed part, sub-regions and descriptors."""
        error, reply, fds = self.call(6, IO_FDS.pack(room, 0, region, 0))
        assert error == 0
        return IO_FDS.unpack_from(reply), list(SUB_REGION.iter_unpack(reply[16:])), fds

    def negotiate(self, data: bytes = VERSION_DATA) -> bytes:
        error, reply, _ = self.call(1, data)
        assert error == 0
        return reply

    def enable(self) -> None:
        """Memory, I/O, bus mastering."""
        self.write(7, 4, b"\x07\x00")

    def close(self) -> None:
        self.socket.close()


class MessageClient(Raw):
    """Its memory is reached by message, and it answers for it when the test says so."""

    def post(self, offset: int, value: int) -> None:
        """A write that nobody answers."""
        self.put(10, ACCESS.pack(offset, 0, 4) + value.to_bytes(4, "little"), flags=0x10)

    def start_dma(self, value: int) -> tuple[int, bytes]:
        """Have deferred work write `value` to memory: the request that is left without an answer."""
        self.write(0, 0x10, MEMORY.to_bytes(8, "little"))
        self.post(0x20, value)
        return self.request()

    def request(self) -> tuple[int, bytes]:
        """The device's next request, which must be a DMA_WRITE: its id and payload."""
        number, command, flags, _, payload, _ = self.get()
        assert (command, flags & 0xF) == (DMA_WRITE, 0)
        return number, payload

    def answer(self, request: tuple[int, bytes]) -> None:
        """It is written."""
        number, payload = request
        self.put(DMA_WRITE, payload[:16], flags=1, number=number)

    def finish_dma(self, request: tuple[int, bytes]) -> bytes:
        """Answer it and what follows; returns the data of the last."""
        self.answer(request)
        request = self.request()
        self.answer(request)
        return request[1][16:]


class Served:
    """A server in a thread."""

    def __init__(self, device: Device, path: Path, **options: object) -> None:
        self.device = device
        self.server = Server(device, path=str(path), **options)
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.server.run()
        except BaseException as error:  # noqa: BLE001 - raised again by close()
            self.failure = error

    def connect(self, *, negotiate: bool = True) -> Raw:
        end = socket.socket(socket.AF_UNIX)
        end.connect(self.server.socket_path)
        raw = Raw(end)
        if negotiate:
            raw.negotiate()
        return raw

    def close(self) -> None:
        self.server.stop()
        self.thread.join(WAIT)
        assert not self.thread.is_alive()
        self.server.close()
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def device() -> Iterator[Sample]:
    """A Sample that nobody serves yet."""
    made = Sample()
    yield made
    made.close()


@pytest.fixture
def serve(device: Sample, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Serve the device; ended with the test."""
    made: list[Served] = []

    def start(**options: object) -> Served:
        made.append(Served(device, tmp_path / f"socket{len(made)}", **options))
        return made[-1]

    yield start
    for served in made:
        served.close()


@pytest.fixture
def raw(serve: Callable[..., Served]) -> Iterator[Raw]:
    """A negotiated connection to the device, with memory, I/O and bus mastering on."""
    client = serve().connect()
    client.enable()
    yield client
    client.close()


@pytest.fixture
def connect_by_message(serve: Callable[..., Served]) -> Callable[[], MessageClient]:
    """Connect to one server: memory, I/O and bus mastering on, and a page of memory."""
    served = serve()

    def connect() -> MessageClient:
        client = MessageClient(served.connect(negotiate=False).socket)
        client.negotiate()
        client.enable()
        assert client.map(MEMORY, 4096) == 0
        return client

    return connect


@pytest.fixture(params=["shared", "messages"])
def function(device: Sample, request: pytest.FixtureRequest) -> Iterator[VfioUserFunction]:
    """The driver's view, with memory shared and by message."""
    with bus.open_function(device, share_memory=request.param == "shared") as opened:
        opened.assign_bars()
        opened.enable()
        yield opened


@pytest.fixture
def memfd() -> Iterator[int]:
    """1 MiB of memory."""
    fd = os.memfd_create("test")
    os.ftruncate(fd, 1 << 20)
    yield fd
    os.close(fd)
