"""The driver's side of a vGPU with no VM: what nouveau writes, in its order, in plain Python."""

from __future__ import annotations

import gc
import resource
import struct
import time
from pathlib import Path

import pytest

PAGE = 4096
LARGE_PAGE = 128 << 10
MIB = 1 << 20
SECONDS = 120
PRAMIN, PROM, CHANNELS = 0x700000, 0x300000, 0x800000
FIFO_INTR, NON_STALL, RUNLIST_DONE, FAULT, PBDMA = 0x2100, 1 << 31, 1 << 30, 1 << 28, 1 << 29
COPY, GRAPHICS = 0, 1
PITCH_LAUNCH = 0x182
"""LAUNCH_DMA: not pipelined, both images without blocks."""
MULTI_LINE, REMAP = 1 << 9, 1 << 10
ALL_ONES = 0xFFFF_FFFF
DATA, VIDEO, FENCE = 0x2000_0000, 0x4000_0000, 0x6000_0000
"""Where an attacker's channel sees a page of the system's memory, one of video memory, and one for its fences."""
GROWTH = 48 * MIB
VRAM_SIZE = 512 * MIB


def header(method, count=1, *, subchannel=0, kind=1):
    return kind << 29 | count << 16 | subchannel << 13 | method >> 2


def methods(method, *data, subchannel=4):
    """An increasing header and its data."""
    return [header(method, len(data), subchannel=subchannel), *data]


def address(value):
    return value >> 32, value & 0xFFFF_FFFF


def bind_copy(class_=0xB0B5, subchannel=4):
    return methods(0, class_, subchannel=subchannel)


def copy(source, target, length, lines=1, *, source_pitch=0, target_pitch=0, flags=PITCH_LAUNCH):
    """What nouveau's buffer moves are made of."""
    flags |= MULTI_LINE if lines > 1 else 0
    pitches = [pitch & 0xFFFF_FFFF for pitch in (source_pitch, target_pitch)]
    return [
        *methods(0x400, *address(source), *address(target), *pitches, length, lines),
        *methods(0x300, flags),
    ]


def remap(components, size=4, *, sources=1, constant_a=0, constant_b=0):
    """SET_REMAP: `components` as the class numbers them."""
    word = sum(component << 4 * number for number, component in enumerate(components))
    word |= size - 1 << 16 | sources - 1 << 20 | len(components) - 1 << 24
    return methods(0x700, constant_a, constant_b, word)


def release(at, payload, *, words=1):
    """The host's semaphore, as a fence is written: one word, or four with a time."""
    return methods(0x10, *address(at), payload, 2 | (1 << 24 if words == 1 else 0), subchannel=0)


def acquire(at, payload, operation=1):
    return methods(0x10, *address(at), payload, operation | 1 << 12, subchannel=0)


def interrupt():
    return methods(0x20, 0, subchannel=0)


class Tables:
    """GF100 page tables in video memory."""

    def __init__(self, driver, limit=(1 << 40) - 1):
        self.driver, self.limit = driver, limit
        self.directory = driver.vram(64 << 10)
        self.small, self.large = {}, {}

    def map(self, virtual, physical, pages=1, *, system=False, read_only=False, large=False):
        size = LARGE_PAGE if large else PAGE
        for number in range(pages):
            place, page = virtual + number * size, physical + number * size
            entry = 1 | read_only << 2 | page >> 8 | (2 << 33 if system else 0)
            self.entry(place, entry, large=large)

    def entry(self, virtual, value, *, large=False):
        tables, shift, count = (self.large, 17, 1024) if large else (self.small, 12, 32768)
        slot = virtual >> 27
        if slot not in tables:
            tables[slot] = self.driver.vram(count * 8)
            self.driver.save(self.directory + 8 * slot + (0 if large else 4), tables[slot] >> 8 | 1)
        at = tables[slot] + (virtual >> shift) % count * 8
        self.driver.save(at, value & 0xFFFF_FFFF)
        self.driver.save(at + 4, value >> 32)

    def instance(self):
        """An instance block that points here."""
        block = self.driver.vram(PAGE)
        for at, value in ((0x200, self.directory), (0x208, self.limit)):
            self.driver.save(block + at, value & 0xFFFF_FFFF)
            self.driver.save(block + at + 4, value >> 32)
        return block


class Channel:
    """A channel with its ring and a push buffer, both in the system's memory, and its user page behind BAR 1."""

    RING, PUSH = 0x1000_0000, 0x1010_0000

    def __init__(self, driver, number, runlist=COPY, *, tables=None, entries_log2=6, start=True):
        self.driver, self.number, self.runlist = driver, number, runlist
        self.tables = tables or Tables(driver)
        self.entries = 1 << entries_log2
        self.ring, self.push = driver.page(), driver.pages(4)
        self.tables.map(self.RING, self.ring, system=True)
        self.tables.map(self.PUSH, self.push, 4, system=True)
        self.user = driver.user + number * 0x200
        self.instance = self.tables.instance()
        for at, value in ((0x08, self.user), (0x48, self.RING | entries_log2 << 48)):
            driver.save(self.instance + at, value & 0xFFFF_FFFF)
            driver.save(self.instance + at + 4, value >> 32)
        driver.save(self.instance + 0xE8, number)
        self.put = self._fill = 0
        if start:
            self.start()

    def start(self):
        mmio = self.driver.mmio
        for at in range(0, 0x200, 4):
            self.driver.save(self.user + at, 0)
        mmio.write32(CHANNELS + 8 * self.number, 1 << 31 | self.instance >> 12)
        mmio.write32(CHANNELS + 4 + 8 * self.number, 1 << 10)
        self.driver.listed[self.runlist].append(self.number)
        self.driver.submit_runlist(self.runlist)

    def stop(self):
        mmio = self.driver.mmio
        mmio.write32(CHANNELS + 4 + 8 * self.number, 1 << 11)
        self.driver.listed[self.runlist].remove(self.number)
        self.driver.submit_runlist(self.runlist)
        mmio.write32(0x2634, self.number)
        self.driver.wait_until(lambda: not mmio.read32(0x2634) & 1 << 20, "preemption")
        mmio.write32(CHANNELS + 8 * self.number, 0)

    def emit(self, *dwords):
        """A push buffer of these dwords, and its entry in the ring; nothing is told to the GPU."""
        if self._fill + 4 * len(dwords) > 4 * PAGE:
            self._fill = 0
        self.driver.poke(self.push + self._fill, struct.pack(f"<{len(dwords)}I", *dwords))
        self.entry(self.PUSH + self._fill, len(dwords))
        self._fill += 4 * len(dwords)

    def entry(self, at, dwords):
        low, high = at & 0xFFFF_FFFF, at >> 32 | dwords << 10
        self.driver.poke(self.ring + 8 * self.put, struct.pack("<II", low, high))
        self.put = (self.put + 1) % self.entries

    def kick(self):
        self.driver.bar1.write32(self.user_offset + 0x8C, self.put)

    def go(self, *dwords):
        """Emit and kick."""
        self.emit(*dwords)
        self.kick()

    @property
    def user_offset(self):
        return self.driver.USER + self.number * 0x200

    @property
    def get(self):
        return self.driver.bar1.read32(self.user_offset + 0x88)

    def wait_idle(self):
        self.driver.wait_until(lambda: self.get == self.put, "the end of the ring")


class Driver:
    """What nouveau does to a vGPU: identity, VBIOS, sizes, PMU, windows, FIFO."""

    USER = 0x10_0000
    """Where the user pages are in BAR 1."""
    USERS = 16

    def __init__(self, function, *, megabytes=4):
        self.function = function
        self.mmio, self.bar1, self.bar3 = function.bars[0], function.bars[1], function.bars[3]
        self.buffer = function.allocate(megabytes << 20)
        self.base = self._next = self.buffer.address
        self._vram = MIB
        self._shown = None
        self.listed = {GRAPHICS: [], COPY: []}
        self.interrupts = None

    # The system's memory, by bus address.

    def page(self):
        return self.pages(1)

    def pages(self, count):
        found, self._next = self._next, self._next + count * PAGE
        assert self._next <= self.base + self.buffer.size, "the driver has no more memory"
        return found

    def peek(self, bus, length):
        return self.buffer.read(bus - self.base, length)

    def poke(self, bus, data):
        self.buffer.write(bus - self.base, data)

    def word(self, bus):
        return int.from_bytes(self.peek(bus, 4), "little")

    # Video memory, through PRAMIN.

    def vram(self, size):
        found = -(-self._vram // max(PAGE, min(size, LARGE_PAGE))) * max(PAGE, min(size, LARGE_PAGE))
        self._vram = found + size
        return found

    def _show(self, at):
        if self._shown != at >> 16:
            self._shown = at >> 16
            self.mmio.write32(0x1700, at >> 16)
        return PRAMIN + (at & 0xFFFF)

    def save(self, at, value):
        self.mmio.write32(self._show(at), value)

    def load(self, at):
        return self.mmio.read32(self._show(at))

    # Life.

    def start(self):
        self.identify()
        self.boot_pmu()
        self.open_windows()
        self.start_interrupts()
        self.start_fifo()
        return self

    def identify(self):
        mmio = self.mmio
        assert mmio.read32(0) == 0x1170_00A2
        mmio.write32(0x88050, mmio.read32(0x88050) & ~1)
        rom = b"".join(mmio.read32(PROM + at).to_bytes(4, "little") for at in range(0, PAGE, 4))
        assert rom[:2] == b"\x55\xaa"
        assert sum(rom) % 256 == 0
        assert mmio.read32(0x2240C) & 2
        words = [mmio.read32(0x22700 + 4 * number) for number in range(64)]
        assert [word >> 2 & 0x1FFFFFFF for word in words if word & 3 == 3] == [0, 3]
        per_partition = mmio.read32(0x2243C) // mmio.read32(0x22438)
        self.megabytes = sum(mmio.read32(0x11020C + 0x1000 * n) for n in range(per_partition * mmio.read32(0x22438)))
        self.vram_size = self.megabytes * MIB

    def boot_pmu(self):
        mmio = self.mmio
        assert mmio.read32(0x10A10C) & 6 == 0
        for port, data in ((0x10A1C0, 0x10A1C4), (0x10A180, 0x10A184)):
            mmio.write32(port, 1 << 24)
            for word in range(64):
                mmio.write32(data, word)
        assert mmio.read32(0x10A4D0) == 0
        mmio.write32(0x10A104, 0)
        mmio.write32(0x10A100, 2)
        assert mmio.read32(0x10A4D0) >> 16
        assert mmio.read32(0x10A4DC) >> 16

    def open_windows(self):
        self.bar3_tables = Tables(self, 32 * MIB - 1)
        self.bar1_tables = Tables(self, 256 * MIB - 1)
        self.user = self.vram(self.USERS * 0x200)
        self.bar1_tables.map(self.USER, self.user, self.USERS * 0x200 // PAGE)
        self.mmio.write32(0x1714, 1 << 31 | self.bar3_tables.instance() >> 12)
        self.mmio.write32(0x1704, 1 << 31 | self.bar1_tables.instance() >> 12)
        assert self.mmio.read32(0x1710) & 3 == 0
        self.invalidate(self.bar1_tables)

    def invalidate(self, tables):
        mmio = self.mmio
        assert mmio.read32(0x100C80) & 0x00FF_0000
        mmio.write32(0x100CB8, tables.directory >> 8)
        mmio.write32(0x100CBC, 0x8000_0001)
        assert mmio.read32(0x100C80) & 0x8000

    def start_interrupts(self):
        self.interrupts = self.function.enable_interrupts("msi")
        self.mmio.write32(0x640, 0xFFFF_FFFF)
        self.mmio.write32(0x140, 1)

    def start_fifo(self):
        mmio = self.mmio
        mmio.write32(0x204, 0xFFFF_FFFF)
        count = mmio.read32(0x204).bit_count()
        assert [mmio.read32(0x2390 + 4 * number) for number in range(count)] == [1, 2]
        for number in range(count):
            mmio.write32(0x40108 + 0x2000 * number, 0xFFFF_FFFF)
            mmio.write32(0x4010C + 0x2000 * number, 0xFFFF_FEFF)
        mmio.write32(0x2254, 0x1000_0000 | self.USER >> 12)
        mmio.write32(FIFO_INTR, 0xFFFF_FFFF)
        mmio.write32(0x2140, 0xFFFF_FFFF)
        self.runlists = [self.vram(PAGE) for _ in range(count)]

    def submit_runlist(self, runlist):
        for number, channel in enumerate(self.listed[runlist]):
            self.save(self.runlists[runlist] + 8 * number, channel)
            self.save(self.runlists[runlist] + 8 * number + 4, 0)
        self.mmio.write32(0x2270, self.runlists[runlist] >> 12)
        self.mmio.write32(0x2274, runlist << 20 | len(self.listed[runlist]))
        assert not self.mmio.read32(0x2284 + 8 * runlist) & 1 << 20
        assert self.mmio.read32(0x2A00) & 1 << runlist
        self.mmio.write32(0x2A00, 1 << runlist)

    def channel(self, number=0, runlist=COPY, **options):
        return Channel(self, number, runlist, **options)

    # What comes back.

    def serve_interrupt(self):
        """nouveau's handler: close, look, re-arm, acknowledge, open. Returns FIFO's interrupts."""
        mmio = self.mmio
        mmio.write32(0x140, 0)
        found = 0
        pending = mmio.read32(0x100)
        mmio.write8(0x88068, 0xFF)
        if pending & 1 << 8:
            found = mmio.read32(FIFO_INTR) & mmio.read32(0x2140)
            mmio.write32(0x2A00, mmio.read32(0x2A00))
            mmio.write32(FIFO_INTR, found)
        mmio.write32(0x140, 1)
        return found

    def wait_until(self, condition, what="it"):
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"{what} has not come"
            time.sleep(0.001)

    def close(self):
        if self.interrupts is not None:
            self.interrupts.close()
        self.buffer.free()


class Attacker(Driver):
    """A driver that knows how to misbehave."""

    def prepare(self):
        """A channel with a page of the system's memory, one of video memory and one of fences."""
        self.victim = channel = self.channel(0)
        self.data, self.fence, self.video = self.page(), self.page(), self.vram(PAGE)
        channel.tables.map(DATA, self.data, system=True)
        channel.tables.map(FENCE, self.fence, system=True)
        channel.tables.map(VIDEO, self.video)
        self.invalidate(channel.tables)
        return channel

    def fence_comes(self, payload=77):
        self.victim.go(*release(FENCE, payload))
        self.wait_until(lambda: self.word(self.fence) == payload, "the fence")

    def faulted(self):
        return bool(self.mmio.read32(0x2100) & FAULT)


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path, monkeypatch):
    """Claims of a test's own, so that what runs elsewhere takes no instance away."""
    monkeypatch.setenv("UMDEV_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.fixture
def gpu():
    """A GPU of the test's own."""
    from umdev_nvidia import TeslaM10

    gpu = TeslaM10()
    yield gpu
    gpu.close()


@pytest.fixture
def vgpu(gpu):
    device = gpu.create("nvidia-36")
    yield device
    device.close()


@pytest.fixture
def driver(vgpu, any_function):
    """A started driver, on every bus."""
    driver = Driver(any_function(vgpu)).start()
    yield driver
    driver.close()


@pytest.fixture
def loopback_driver(vgpu, loopback_function):
    """A started driver, on the bus without a VM."""
    driver = Driver(loopback_function(vgpu)).start()
    yield driver
    driver.close()


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.fixture
def attack(gpu, loopback_function):
    """A hostile driver, prepared, and its vGPU; afterwards an honest one's and everything else is looked at."""
    vgpu, other = (gpu.create("nvidia-36") for _ in range(2))
    attacker, honest = (Attacker(loopback_function(device)).start() for device in (vgpu, other))
    attacker.prepare()
    honest.prepare()
    honest.fence_comes(1)
    channels = other.registers.fifo.channels.known.values()
    honest.wait_until(lambda: not any(channel.queue.waiting for channel in channels), "the end of its step")
    honest.save(honest.video, 0x1234_5678)
    memory = other.vram.memory[: 16 * MIB]
    gc.collect()
    before = resident()
    yield attacker, vgpu
    gc.collect()
    assert resident() - before <= GROWTH
    assert other.vram.memory[: 16 * MIB] == memory
    honest.fence_comes(2)
    assert other.refused == {}
    # What the attacker broke, its own reset mends.
    attacker.interrupts.close()
    attacker.function.reset()
    attacker.function.enable()
    assert vgpu.vram.memory[: 16 * MIB].strip(b"\0") == b""
    attacker.__init__(attacker.function)
    attacker.start()
    attacker.prepare()
    attacker.fence_comes(3)
    assert vgpu.native.counters["faulted"] == other.native.counters["faulted"] == 0
    attacker.close()
    honest.close()
