"""The driver's side of a vGPU with no VM: what i915 writes, in its order, in plain Python."""

from __future__ import annotations

import gc
import itertools
import resource
import struct
import time
from pathlib import Path

import pytest

PAGE = 4096
RENDER, BLITTER, VIDEO, ENHANCE = 0x2000, 0x22000, 0x12000, 0x1A000
ENGINES = {"render": RENDER, "blitter": BLITTER, "video": VIDEO, "enhance": ENHANCE}
GT_BLOCK = {RENDER: (0, 0), BLITTER: (0, 16), VIDEO: (1, 0), ENHANCE: (3, 0)}
RESET_BIT = {RENDER: 1, VIDEO: 2, BLITTER: 3, ENHANCE: 4}
MASTER = 0x44200
PVINFO = 0x78000
GGTT = 8 << 20
USER, CONTEXT_SWITCH = 1 << 0, 1 << 8
CSB, CSB_INDEX = 0x40, 0x7C
MIB = 1 << 20
GROWTH = 16 * MIB
BATCH, DATA = 0x10_0000, 0x20_0000
ALL_ONES = 0xFFFF_FFFF
RING_PAGES = 4
SECONDS = 120
ANSWER_SECONDS = 1.0


def noop(count=1):
    return [0] * count


def store(address, value, *, ggtt=False):
    """MI_STORE_DATA_IMM."""
    return [0x20 << 23 | (ggtt << 22) | 2, address & 0xFFFF_FFFF, address >> 32, value]


def user_interrupt():
    return [0x02 << 23]


def batch_start(address, *, process=True, second_level=False):
    return [0x31 << 23 | second_level << 22 | process << 8 | 1, address & 0xFFFF_FFFF, address >> 32]


def batch_end():
    return [0x0A << 23]


def endless():
    """Of a batch at `BATCH`: it jumps to itself."""
    return batch_start(BATCH)


def flush(address, value, *, notify=False):
    """MI_FLUSH_DW with a store to the global table, as a breadcrumb is written."""
    return [0x26 << 23 | 1 << 14 | notify << 8 | 2, address & ~7 | 4, address >> 32, value]


def pipe_control(address, value, *, ggtt=True):
    return [0x7A00_0004, 1 << 14 | ggtt << 24, address & 0xFFFF_FFFF, address >> 32, value, 0]


def load_register(offset, value):
    return [0x22 << 23 | 1, offset, value]


def store_register(offset, address):
    return [0x24 << 23 | 2, offset, address & 0xFFFF_FFFF, address >> 32]


def fill(address, pitch, x1, y1, x2, y2, colour, *, depth=3, rop=0xF0):
    """XY_COLOR_BLT, 32 bits: colours and alpha."""
    return [
        2 << 29 | 0x50 << 22 | 3 << 20 | 5,
        depth << 24 | rop << 16 | pitch & 0xFFFF,
        (y1 & 0xFFFF) << 16 | x1 & 0xFFFF,
        (y2 & 0xFFFF) << 16 | x2 & 0xFFFF,
        address & 0xFFFF_FFFF,
        address >> 32,
        colour,
    ]


def copy(target, target_pitch, x1, y1, x2, y2, source, source_pitch, sx=0, sy=0, *, depth=3, rop=0xCC):
    """XY_SRC_COPY_BLT."""
    return [
        2 << 29 | 0x53 << 22 | 3 << 20 | 8,
        depth << 24 | rop << 16 | target_pitch & 0xFFFF,
        (y1 & 0xFFFF) << 16 | x1 & 0xFFFF,
        (y2 & 0xFFFF) << 16 | x2 & 0xFFFF,
        target & 0xFFFF_FFFF,
        target >> 32,
        (sy & 0xFFFF) << 16 | sx & 0xFFFF,
        source_pitch & 0xFFFF,
        source & 0xFFFF_FFFF,
        source >> 32,
    ]


class PageTable:
    """A 48-bit process table, built in the driver's memory."""

    def __init__(self, driver):
        self.driver = driver
        self.root = driver.page()

    def map(self, address, bus, flags=3):
        table = self.root
        for shift in (39, 30, 21):
            at = table + (address >> shift & 511) * 8
            entry = self.driver.load(at, 8)
            if not entry & 1:
                entry = self.driver.page() | 3
                self.driver.save(at, entry, 8)
            table = entry & ~0xFFF
        self.driver.save(table + (address >> 12 & 511) * 8, bus | flags if flags else 0, 8)


class Context:
    """A context with its ring, in graphics memory."""

    def __init__(self, driver, engine, identity, table, *, size=RING_PAGES * PAGE):
        self.driver, self.engine, self.identity, self.table = driver, engine, identity, table
        self.size = size
        self.ring, self.start = driver.graphics_pages(size // PAGE)
        self.image, self.address = driver.graphics_pages(2)
        self.tail = 0
        image = [0] * 0x60
        image[0x03] = 9 << 16 | 1  # inhibit restore, as a new context's
        image[0x05] = image[0x07] = 0
        image[0x09] = self.start
        image[0x0B] = self.size - PAGE | 1
        image[0x31], image[0x33] = table.root >> 32, table.root & 0xFFFF_FFFF
        driver.poke(self.image + PAGE, struct.pack("<96I", *image))

    @property
    def descriptor(self):
        return self.identity << 32 | self.address | 1 << 8 | 3 << 3 | 1

    def emit(self, dwords):
        """Into the ring, with a last NOOP where the tail would not be aligned."""
        dwords = list(dwords) + [0] * (len(dwords) % 2)
        for dword in dwords:
            self.driver.save(self.ring + self.tail, dword, 4)
            self.tail = (self.tail + 4) % self.size
        self.driver.save(self.image + PAGE + 4 * 0x07, self.tail, 4)

    @property
    def head(self):
        return self.driver.load(self.image + PAGE + 4 * 0x05, 4)


class Driver:
    """What i915 does to a vGPU: handshake, tables, engines, submissions, interrupts."""

    def __init__(self, function, *, megabytes=4, start=True):
        self.function = function
        self.mmio, self.aperture = function.bars[0], function.bars[2]
        self.buffer = function.allocate(megabytes << 20)
        self.base = self.buffer.address
        self._free = itertools.count(self.base, PAGE)
        self._identities = itertools.count(1)
        self.interrupts = None
        self.status = {}
        self.read_index = {}
        if start:
            self.start()

    # Memory, by bus address.

    def page(self):
        address = next(self._free)
        assert address < self.base + self.buffer.size, "the driver has no more memory"
        return address

    def pages(self, count):
        first = self.page()
        for _ in range(count - 1):
            self.page()
        return first

    def load(self, bus, width=4):
        return int.from_bytes(self.buffer.read(bus - self.base, width), "little")

    def save(self, bus, value, width=4):
        self.buffer.write(bus - self.base, value.to_bytes(width, "little"))

    def peek(self, bus, length):
        return self.buffer.read(bus - self.base, length)

    def poke(self, bus, data):
        self.buffer.write(bus - self.base, data)

    # Graphics memory.

    def map(self, graphics, bus):
        self.mmio.write64(GGTT + graphics // PAGE * 8, bus | 1)

    def graphics_pages(self, count):
        """Bus and graphics address of new pages, from the top of the hidden slice downwards, as i915 takes them."""
        bus = self.pages(count)
        self.top -= count * PAGE
        for number in range(count):
            self.map(self.top + number * PAGE, bus + number * PAGE)
        return bus, self.top

    # Life.

    def start(self):
        self.handshake()
        self.reset(full=True)
        self.mask_all()
        self.interrupts = self.function.enable_interrupts("msi")
        self.mmio.write32(PVINFO + 0x838, 0)
        for base in ENGINES.values():
            self.start_engine(base)
        for block in range(4):
            self.mmio.write32(0x44304 + 0x10 * block, 0)
            self.mmio.write32(0x4430C + 0x10 * block, 0xFFFF_FFFF)
        self.mmio.write32(MASTER, 1 << 31)
        return self

    def handshake(self):
        assert self.mmio.read64(PVINFO) == 0x4776_5447_7654_4776
        assert self.mmio.read16(PVINFO + 8) == 1
        assert self.mmio.read32(PVINFO + 0x10) == 0x0C
        words = [self.mmio.read32(PVINFO + at) for at in (0x40, 0x44, 0x48, 0x4C, 0x50)]
        self.mappable, self.mappable_size, self.hidden, self.hidden_size, self.fences = words
        self.top = self.hidden + self.hidden_size

    def mask_all(self):
        self.mmio.write32(MASTER, 0)
        for block in range(4):
            self.mmio.write32(0x44304 + 0x10 * block, 0xFFFF_FFFF)
            self.mmio.write32(0x4430C + 0x10 * block, 0)
            self.mmio.write32(0x44308 + 0x10 * block, 0xFFFF_FFFF)
            assert self.mmio.read32(0x44308 + 0x10 * block) == 0

    def reset(self, *, full=False, engines=()):
        self.mmio.write32(0x941C, 1 if full else sum(1 << RESET_BIT[base] for base in engines))
        assert self.mmio.read32(0x941C) == 0

    def reset_engine(self, base):
        """As i915 resets one: ask for readiness, reset, start again."""
        self.mmio.write32(base + 0xD0, 1 << 16 | 1)
        assert self.mmio.read32(base + 0xD0) & 2
        self.reset(engines=(base,))
        self.mmio.write32(base + 0xD0, 1 << 16)
        self.start_engine(base)

    def start_engine(self, base):
        if base not in self.status:
            self.status[base] = self.graphics_pages(1)
        bus, graphics = self.status[base]
        self.save(bus + CSB_INDEX, 5)
        self.read_index[base] = 5
        self.mmio.write32(base + 0x3A0, 0xFFFF_0505)
        self.mmio.write32(base + 0x29C, 0x8000_8000)
        self.mmio.write32(base + 0x80, graphics)
        assert self.mmio.read32(base + 0x80) == graphics
        _, shift = GT_BLOCK[base]
        self.mmio.write32(base + 0xA8, ~((USER | CONTEXT_SWITCH) << shift) & 0xFFFF_FFFF)

    def table(self):
        """A process table, announced."""
        table = PageTable(self)
        self.mmio.write32(PVINFO + 0x838, table.root & 0xFFFF_FFFF)
        self.mmio.write32(PVINFO + 0x83C, table.root >> 32)
        self.mmio.write32(PVINFO + 0x818, 4)
        return table

    def context(self, base, table=None, **options):
        return Context(self, base, next(self._identities), table or self.table(), **options)

    def submit(self, *contexts):
        """Up to two contexts of one engine."""
        base = contexts[0].engine
        elements = [context.descriptor for context in contexts] + [0] * (2 - len(contexts))
        for element in reversed(elements):
            self.mmio.write32(base + 0x230, element >> 32)
            self.mmio.write32(base + 0x230, element & 0xFFFF_FFFF)

    # What comes back.

    def events(self, base):
        """Status buffer entries since the last look."""
        bus, _ = self.status[base]
        found = []
        written = self.load(bus + CSB_INDEX)
        while self.read_index[base] != written:
            self.read_index[base] = (self.read_index[base] + 1) % 6
            at = bus + CSB + 8 * self.read_index[base]
            found.append((self.load(at), self.load(at + 4)))
        return found

    def serve_interrupt(self):
        """What i915's handler does: off, look, acknowledge, on. Returns the bits of each block."""
        self.mmio.write32(MASTER, 0)
        control = self.mmio.read32(MASTER)
        found = {}
        for block in range(4):
            if control & 3 << 2 * block:
                found[block] = self.mmio.read32(0x44308 + 0x10 * block)
                self.mmio.write32(0x44308 + 0x10 * block, found[block])
        self.mmio.write32(MASTER, 1 << 31)
        return found

    def wait_until(self, condition, what="it"):
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"{what} has not come"
            self.interrupts.wait(timeout=0.01)
            self.serve_interrupt()

    def wait_idle(self, base, events=None):
        """Until the engine says that it is idle; the events that came."""
        events = [] if events is None else events
        self.wait_until(lambda: events.extend(self.events(base)) or (events and events[-1][0] & 8), "idleness")
        self.serve_interrupt()
        return events

    def run(self, base, dwords, table=None):
        """One context with these commands and a breadcrumb, to its end; its events."""
        context = self.context(base, table)
        context.emit(dwords)
        self.submit(context)
        return self.wait_idle(base)

    def close(self):
        if self.interrupts is not None:
            self.interrupts.close()
        self.buffer.free()


class Attacker(Driver):
    """A driver that knows how to misbehave, and sees that each attack has an answer within a second.

    A second of this process's own time, in all its threads: what else the machine does is no answer of ours.
    """

    asked = None

    def ask(self, *, anew=True):
        """An attack begins."""
        if anew or self.asked is None:
            self.asked = time.process_time()

    def answered(self):
        """It has come to an end: in an error, in nothing, or in a reset."""
        took, self.asked = time.process_time() - self.asked, None
        assert took <= ANSWER_SECONDS

    def prepare(self):
        """A table with a batch buffer and a page of data."""
        self.attack_table = self.table()
        self.batch_pages, self.data_page = self.pages(2), self.page()
        for number in range(2):
            self.attack_table.map(BATCH + number * PAGE, self.batch_pages + number * PAGE)
        self.attack_table.map(DATA, self.data_page)

    def batch(self, *dwords):
        """Put a batch into its buffer."""
        data = struct.pack(f"<{len(dwords)}I", *dwords)
        self.poke(self.batch_pages, data.ljust(2 * PAGE, b"\0")[: 2 * PAGE])

    def go(self, base, dwords, **options):
        """Submit without waiting."""
        context = self.context(base, self.attack_table, **options)
        context.emit(dwords)
        self.submit(context)
        return context

    def go_batch(self, base, *dwords):
        self.batch(*dwords)
        return self.go(base, batch_start(BATCH))

    def settle(self, base, vgpu):
        """Until the engine is idle or has stopped by an error."""
        engine = vgpu.engine_at(base)
        self.ask(anew=False)
        self.wait_until(lambda: engine.error or not engine.busy, "an end of the attack")
        self.answered()
        return engine.error

    def submit(self, *contexts):
        self.ask()
        super().submit(*contexts)

    def reset_engine(self, base):
        """An engine that is attacked comes back at once, too."""
        self.ask()
        super().reset_engine(base)
        self.answered()

    def image(self, context, **values):
        """Overwrite dwords of a context's image, by number."""
        for number, value in values.items():
            self.save(context.image + PAGE + 4 * int(number[1:], 0), value)


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path, monkeypatch):
    """Claims of a test's own, so that what runs elsewhere takes no instance away."""
    monkeypatch.setenv("UMDEV_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.fixture
def gpu():
    """A GPU of the test's own."""
    from umdev_intel_gvt import IntelGpu

    gpu = IntelGpu()
    yield gpu
    gpu.close()


@pytest.fixture
def vgpu(gpu):
    device = gpu.create("i915-GVTg_V5_8")
    yield device
    device.close()


@pytest.fixture
def driver(vgpu, any_function):
    """A started driver, on every bus."""
    driver = Driver(any_function(vgpu))
    yield driver
    driver.close()


@pytest.fixture
def loopback_driver(vgpu, loopback_function):
    """A started driver, on the bus without a VM."""
    driver = Driver(loopback_function(vgpu))
    yield driver
    driver.close()


@pytest.fixture
def pair(gpu, loopback_function):
    """A hostile driver and an honest one, each with its vGPU."""
    vgpus = [gpu.create("i915-GVTg_V5_8") for _ in range(2)]
    drivers = [kind(loopback_function(vgpu)) for kind, vgpu in zip((Attacker, Driver), vgpus, strict=True)]
    drivers[0].prepare()
    drivers[1].victim = drivers[1].context(BLITTER)
    yield drivers[0], vgpus[0], drivers[1], vgpus[1]
    for driver in drivers:
        driver.close()


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.fixture
def attack(pair):
    """The hostile driver and its vGPU; afterwards everything is looked at."""
    attacker, vgpu, honest, other = pair
    honest.run(BLITTER, user_interrupt())
    before_memory = honest.peek(honest.base, honest.buffer.size)
    gc.collect()
    before = resident()
    yield attacker, vgpu
    gc.collect()
    assert resident() - before <= GROWTH
    assert honest.peek(honest.base, honest.buffer.size) == before_memory
    bus, graphics = honest.status[RENDER]
    attacker.ask()
    assert honest.run(RENDER, pipe_control(graphics + 0x200, 77))[-1][0] == 0x18
    assert honest.load(bus + 0x200) == 77
    attacker.answered()
    assert other.errors == 0
    # What the attacker broke, its own reset mends.
    attacker.interrupts.close()
    attacker.ask()
    attacker.function.reset()
    attacker.answered()
    attacker.function.enable()
    attacker.status.clear()
    attacker.start()
    for base in ENGINES.values():
        bus, graphics = attacker.status[base]
        breadcrumb = pipe_control if base == RENDER else flush
        assert attacker.run(base, breadcrumb(graphics + 0x200, 99))[-1][0] == 0x18
        assert attacker.load(bus + 0x200) == 99
    assert vgpu.native.counters["faulted"] == other.native.counters["faulted"] == 0
