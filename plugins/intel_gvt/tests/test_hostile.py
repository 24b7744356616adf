"""A hostile driver: whatever it does, this process lives, the other vGPU works on, and a reset makes good."""

import gc
import re
import resource
import struct
import time
from pathlib import Path

import pytest

from .conftest import (
    BLITTER,
    ENGINES,
    GGTT,
    PAGE,
    PVINFO,
    RENDER,
    SECONDS,
    Driver,
    batch_end,
    batch_start,
    copy,
    fill,
    flush,
    load_register,
    pipe_control,
    store,
    store_register,
    user_interrupt,
)

MIB = 1 << 20
GROWTH = 16 * MIB
BATCH, DATA = 0x10_0000, 0x20_0000
ALL_ONES = 0xFFFF_FFFF


class Attacker(Driver):
    """A driver that knows how to misbehave."""

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
        self.wait_until(lambda: engine.error or not engine.busy, "an end of the attack")
        return engine.error

    def image(self, context, **values):
        """Overwrite dwords of a context's image, by number."""
        for number, value in values.items():
            self.save(context.image + PAGE + 4 * int(number[1:], 0), value)


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
    assert honest.run(RENDER, pipe_control(graphics + 0x200, 77))[-1][0] == 0x18
    assert honest.load(bus + 0x200) == 77
    assert other.errors == 0
    # What the attacker broke, its own reset mends.
    attacker.interrupts.close()
    attacker.function.reset()
    attacker.function.enable()
    attacker.status.clear()
    attacker.start()
    for base in ENGINES.values():
        bus, graphics = attacker.status[base]
        breadcrumb = pipe_control if base == RENDER else flush
        assert attacker.run(base, breadcrumb(graphics + 0x200, 99))[-1][0] == 0x18
        assert attacker.load(bus + 0x200) == 99
    assert vgpu.native.counters["faulted"] == other.native.counters["faulted"] == 0


class TestRegisters:
    def test_accesses_of_every_size_at_every_border(self, attack):
        attacker, _ = attack
        for bar, size in ((attacker.mmio, 16 * MIB), (attacker.aperture, 1 << 30)):
            for offset in (0, 2 * MIB - 1, 2 * MIB, 8 * MIB - 4, 8 * MIB, 16 * MIB - 1):
                for length in (1, 2, 3, 4, 5, 8, 16, 4096):
                    if offset + length <= size:
                        assert len(bar.read(offset, length)) == length
                        bar.write(offset, bytes(length))

    def test_every_register_of_an_engine_takes_ones(self, attack):
        attacker, _ = attack
        for base in ENGINES.values():
            for offset in range(0, 0x800, 4):
                attacker.mmio.write32(base + offset, ALL_ONES)
                attacker.mmio.read32(base + offset)

    def test_storms_of_resets_and_mailbox_requests(self, attack):
        attacker, _ = attack
        for number in range(500):
            attacker.go(RENDER, batch_start(BATCH)) if number % 100 == 0 else None
            attacker.mmio.write32(0x941C, number)
            attacker.mmio.write32(0x138124, 1 << 31 | number)
            attacker.mmio.write32(RENDER + 0xD0, number << 16 | number & 1)

    def test_the_protocol_page_can_t_be_changed(self, attack):
        attacker, _ = attack
        before = attacker.mmio.read(PVINFO, 0x60)
        for offset in range(0, 0x800, 4):
            attacker.mmio.write32(PVINFO + offset, ALL_ONES)
        assert attacker.mmio.read(PVINFO, 0x60) == before

    def test_notifications_are_counted_and_bounded(self, attack):
        attacker, vgpu = attack
        for number in range(5000):
            attacker.mmio.write32(PVINFO + 0x838, number * PAGE)
            attacker.mmio.write32(PVINFO + 0x818, 4)
        assert len(vgpu.page_tables.roots) == 4096
        for message in (0, 2, 3, 6, 7, ALL_ONES, 5, 5):
            attacker.mmio.write32(PVINFO + 0x818, message)
        attacker.mmio.write32(PVINFO + 0x838, 123)
        attacker.mmio.write32(PVINFO + 0x818, 4)
        assert vgpu.page_tables.refused >= 5000 - 4096

    def test_a_driver_that_has_not_read_the_page_submits_nothing(self, pair):
        attacker, vgpu, _, _ = pair
        with vgpu.locked():
            vgpu.handshake = False
        attacker.go(RENDER, store(DATA, 1))
        assert vgpu.refused["a submission by a driver that does not know that this is a vGPU"] == 1
        assert not vgpu.engines[0].busy


class TestGlobalTable:
    def test_entries_to_nowhere_and_to_the_device_itself(self, attack):
        attacker, vgpu = attack
        for graphics, target in ((attacker.hidden, 0x7F_FFFF_F000), (attacker.hidden + PAGE, 0xC000_0000)):
            attacker.map(graphics, target)
            attacker.mmio.write32(RENDER + 0x80, graphics)
            attacker.go(RENDER, [*store(graphics, 1, ggtt=True)])
            attacker.settle(RENDER, vgpu)
            attacker.reset_engine(RENDER)

    def test_half_an_entry_is_used(self, attack):
        attacker, vgpu = attack
        entry = GGTT + attacker.hidden // PAGE * 8
        attacker.mmio.write32(entry, attacker.data_page & ALL_ONES | 1)
        attacker.mmio.write32(entry + 4, ALL_ONES)
        attacker.go(RENDER, store(attacker.hidden, 1, ggtt=True))
        assert "unreachable" in attacker.settle(RENDER, vgpu)

    def test_every_entry_is_written(self, attack):
        attacker, vgpu = attack
        block = struct.pack("<Q", attacker.data_page | 1)
        first, last = (place // PAGE for place in (attacker.hidden, attacker.hidden + attacker.hidden_size))
        for page in range(first, last, 4):
            attacker.mmio.write(GGTT + 8 * page, block)
        for page in range(0, 1 << 20, 64):
            attacker.mmio.write(GGTT + 8 * page, block)
        assert vgpu.table.counters["refused"] > 1000


class TestPlaces:
    @pytest.mark.parametrize("where", ["other", "first", "last", "border", "unmapped"])
    def test_the_status_page_lies_elsewhere(self, attack, pair, where):
        attacker, vgpu = attack
        other = pair[3]
        places = {
            "other": other.slice.hidden.end - PAGE,
            "first": 0,
            "last": 0xFFFF_F000,
            "border": attacker.mappable + attacker.mappable_size - PAGE,
            "unmapped": attacker.hidden,
        }
        attacker.mmio.write32(RENDER + 0x80, places[where])
        attacker.go(RENDER, store(DATA, 5))
        attacker.settle(RENDER, vgpu)
        assert attacker.load(attacker.data_page) == 5
        assert any("status page" in what for what in vgpu.refused)

    @pytest.mark.parametrize("place", [0, 0xFFFF_F000, 0x1234_5000])
    def test_the_context_lies_elsewhere(self, attack, place):
        attacker, vgpu = attack
        for half in (0, 0, 1, place | 1 << 8 | 3 << 3 | 1):
            attacker.mmio.write32(BLITTER + 0x230, half)
        assert attacker.settle(BLITTER, vgpu)

    def test_the_context_lies_in_the_other_s_slice(self, attack, pair):
        attacker, vgpu = attack
        other = pair[3]
        victim = pair[2].victim
        for half in (0, 0, victim.identity, victim.descriptor & ALL_ONES):
            attacker.mmio.write32(BLITTER + 0x230, half)
        assert "not present" in attacker.settle(BLITTER, vgpu)
        assert other.slice.holds(victim.address)


CONTEXTS = {
    "tail-outside": {"d7": 0x1F_FFF8},
    "head-outside": {"d5": 0x1F_FFFC},
    "ring-nowhere": {"d9": 0xFFFF_F000},
    "ring-unaligned": {"d9": 0x123},
    "control-0": {"d0xb": 0, "d7": 0x2000},
    "table-nowhere": {"d0x31": ALL_ONES, "d0x33": ALL_ONES},
    "table-0": {"d0x31": 0, "d0x33": 0},
}


class TestContexts:
    @pytest.mark.parametrize("values", CONTEXTS.values(), ids=CONTEXTS)
    def test_an_image_of_nonsense(self, attack, values):
        attacker, vgpu = attack
        context = attacker.context(RENDER, attacker.attack_table)
        context.emit(store(DATA, 1))
        attacker.image(context, **values)
        attacker.submit(context)
        attacker.settle(RENDER, vgpu)

    def test_a_table_that_points_to_itself(self, attack):
        attacker, vgpu = attack
        root = attacker.attack_table.root
        for entry in range(512):
            attacker.save(root + 8 * entry, root | 3, 8)
        attacker.go(RENDER, store(DATA, 1))
        attacker.settle(RENDER, vgpu)

    def test_a_batch_on_its_own_page_table(self, attack):
        attacker, vgpu = attack
        attacker.attack_table.map(DATA, attacker.attack_table.root)
        attacker.go_batch(BLITTER, *fill(DATA, 4096, 0, 0, 1024, 1, ALL_ONES), *store(DATA, 1), *batch_end())
        attacker.settle(BLITTER, vgpu)

    @pytest.mark.parametrize("flags", [0, 1 << 8 | 1, 1 << 8 | 1 << 3 | 1, 1 << 8 | 2 << 3 | 1])
    def test_descriptors_that_this_gpu_does_not_offer(self, attack, flags):
        attacker, vgpu = attack
        context = attacker.context(RENDER, attacker.attack_table)
        for half in (0, 0, context.identity, context.address | flags):
            attacker.mmio.write32(RENDER + 0x230, half)
        attacker.settle(RENDER, vgpu)

    def test_the_same_context_twice_and_an_element_without_the_first(self, attack):
        attacker, vgpu = attack
        context = attacker.context(RENDER, attacker.attack_table)
        context.emit(store(DATA, 1))
        attacker.submit(context, context)
        attacker.settle(RENDER, vgpu)
        attacker.events(RENDER)
        for half in (context.identity, context.descriptor & ALL_ONES, 0, 0):
            attacker.mmio.write32(RENDER + 0x230, half)
        attacker.settle(RENDER, vgpu)

    def test_a_flood_of_submissions_and_a_part_of_one(self, attack):
        attacker, vgpu = attack
        contexts = [attacker.context(RENDER, attacker.attack_table) for _ in range(4)]
        for context in contexts:
            context.emit(batch_start(BATCH))
        attacker.batch(*batch_start(BATCH))
        for number in range(2000):
            attacker.submit(contexts[number % 4])
        assert vgpu.engines[0].queue.waiting <= 1
        attacker.mmio.write32(RENDER + 0x230, 1)
        attacker.reset_engine(RENDER)
        attacker.events(RENDER)
        attacker.batch(*batch_end())
        context = attacker.go(RENDER, store(DATA, 3))
        attacker.wait_idle(RENDER)
        assert attacker.load(attacker.data_page) == 3
        assert context.head == context.tail


def endless():
    return batch_start(BATCH)


BATCHES = {
    "runs for ever": (endless(), None),
    "no end": ([0] * 2048, "can't be read"),
    "reserved client 1": ([1 << 29], "no command"),
    "reserved client 4": ([4 << 29], "no command"),
    "reserved client 7": ([7 << 29], "no command"),
    "unknown MI": ([0x3F << 23 | 1, 0, 0], "not known"),
    "unknown blit": ([2 << 29 | 0x7F << 22 | 4, 0, 0, 0, 0, 0], "not known"),
    "short MI": ([0x20 << 23, 0], "dwords"),
    "short blit": ([2 << 29 | 0x50 << 22, 0], "dwords"),
    "short PIPE_CONTROL": ([0x7A00_0000, 0], "dwords"),
    "longest load": ([0x22 << 23 | 0xFF, *range(256)], "no command|not known|can't be read|nested|semaphore"),
    "semaphore comparison": ([0x1C << 23 | 7 << 12 | 2, 0, DATA, 0], "comparison"),
    "nowhere": (store(0x7777_7777_7000, 1), "not present"),
    "beyond 48 bits": ([*store(DATA, 1)[:2], ALL_ONES, 1], "not present"),
    "across to nowhere": ([0x20 << 23 | 1 << 21 | 3, DATA + PAGE - 4, 0, 1, 2], "not present"),
    "math": ([0x1A << 23, ALL_ONES], "MI_MATH"),
    "deep": ([0x31 << 23 | 1 << 22 | 1 << 8 | 1, BATCH, 0], "nested"),
}


FORBIDDEN = (
    RENDER + 0x230,
    RENDER + 0x80,
    0x941C,
    RENDER + 0xA8,
    PVINFO,
    RENDER + 0x29C,
    RENDER + 0xD4,
    RENDER + 0x4D0,
    0x44200,
    0x20_0000,
    0x7F_FFFC,
    BLITTER + 0x600,
)
"""Submission port, status page, reset, masks, protocol page, privileges, beyond the registers, another engine's."""


class TestBatches:
    @pytest.mark.parametrize(("dwords", "error"), BATCHES.values(), ids=[name.replace(" ", "-") for name in BATCHES])
    def test_nonsense(self, attack, dwords, error):
        attacker, vgpu = attack
        attacker.go_batch(RENDER, *dwords)
        if error is None:
            assert not vgpu.engines[0].error
            attacker.reset_engine(RENDER)
            return
        assert re.search(error, attacker.settle(RENDER, vgpu))
        assert attacker.mmio.read32(RENDER + 0xB0) & 1

    def test_the_log_does_not_grow_for_ever(self, attack, caplog):
        attacker, _ = attack
        with caplog.at_level("INFO", logger="umdev.intel_gvt"):
            for _ in range(300):
                attacker.mmio.write32(PVINFO + 0x804, 1)
        assert len(caplog.records) == 200
        assert "last line" in caplog.records[-1].getMessage()

    def test_an_error_interrupts_the_driver_that_wants_it(self, attack):
        attacker, _vgpu = attack
        attacker.mmio.write32(RENDER + 0xB4, ~1 & ALL_ONES)
        attacker.mmio.write32(RENDER + 0xA8, ~(1 << 8 | 1 << 3) & ALL_ONES)
        attacker.go_batch(RENDER, 1 << 29)
        seen = 0
        while not seen & 1 << 3:
            assert attacker.interrupts.wait(timeout=SECONDS)
            seen |= attacker.serve_interrupt().get(0, 0)
        attacker.reset_engine(RENDER)
        attacker.events(RENDER)

    @pytest.mark.parametrize("offset", FORBIDDEN, ids=hex)
    def test_registers_that_are_not_a_command_s(self, attack, offset):
        attacker, vgpu = attack
        before = attacker.mmio.read32(offset)
        attacker.go_batch(
            RENDER,
            *load_register(offset, ALL_ONES),
            *store_register(offset, DATA),
            *store(DATA + 8, 5),
            *batch_end(),
        )
        assert attacker.settle(RENDER, vgpu) == ""
        assert attacker.mmio.read32(offset) == before or offset == 0x44200
        assert (attacker.load(attacker.data_page), attacker.load(attacker.data_page + 8)) == (0, 5)

    @pytest.mark.parametrize(
        "dwords",
        [
            store(0x5000_0000, 1, ggtt=True),
            pipe_control(0x5000_0000, 1),
            flush(0x5000_0000, 1),
            batch_start(BATCH + 0x100, process=False),
            [0x29 << 23 | 1 << 22 | 2, RENDER + 0x600, 0x5000_0000, 0],
            [0x1C << 23 | 1 << 22 | 2, 0, 0x5000_0000, 0],
        ],
        ids=["store", "pipe-control", "flush", "batch", "load", "semaphore"],
    )
    def test_a_process_s_batch_does_not_reach_global_memory(self, attack, dwords):
        attacker, vgpu = attack
        attacker.save(attacker.batch_pages + 0x100, 0x0500_0000)
        attacker.map(attacker.hidden, attacker.data_page)
        dwords = [word if word != 0x5000_0000 else attacker.hidden for word in dwords]
        dwords = [word if word != 0x5000_0004 else attacker.hidden | 4 for word in dwords]
        attacker.batch(*dwords, *batch_end())
        attacker.save(attacker.batch_pages + 0x100, 0x0500_0000)
        attacker.go(RENDER, batch_start(BATCH))
        assert attacker.settle(RENDER, vgpu) == ""
        assert attacker.peek(attacker.data_page, 64) == bytes(64)
        assert sum(vgpu.refused_commands.values()) == 1

    def test_an_index_into_the_status_page_stays_in_it(self, attack):
        attacker, vgpu = attack
        attacker.go(RENDER, [0x7A00_0004, 1 << 21 | 1 << 14, 0xFFFF_FFF8, 0xFFFF, 0xAA, 0])
        context = attacker.go(BLITTER, [0x26 << 23 | 1 << 21 | 1 << 14 | 2, 0xFFFF_FFF8, 0xFFFF, 0xBB])
        assert attacker.settle(RENDER, vgpu) == attacker.settle(BLITTER, vgpu) == ""
        assert attacker.load(context.image + 0xFF8) == 0xBB

    def test_a_hundred_thousand_interrupts_are_one_message(self, attack):
        attacker, vgpu = attack
        attacker.batch(*(user_interrupt() * 2046), *batch_end())
        attacker.interrupts.wait(timeout=0)
        before = vgpu.messages_sent
        attacker.go(RENDER, [*batch_start(BATCH)] * 50)
        deadline = time.monotonic() + SECONDS
        while vgpu.engines[0].busy:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert vgpu.messages_sent - before == 1

    def test_a_semaphore_that_is_never_signalled_takes_no_time(self, attack):
        attacker, vgpu = attack
        context = attacker.go_batch(RENDER, 0x1C << 23 | 4 << 12 | 2, 9, DATA, 0, *store(DATA + 8, 1), *batch_end())
        assert vgpu.engines[0].busy
        attacker.save(attacker.data_page, 9)
        attacker.wait_idle(RENDER)
        assert attacker.load(attacker.data_page + 8) == 1
        assert context.head == context.tail


BLITS = {
    "backwards": fill(DATA, 64, 10, 10, 5, 5, 1),
    "negative": fill(DATA, 64, -100, -100, 4, 4, 1),
    "largest": fill(DATA, 0x7FFF, -0x8000, -0x8000, 0x7FFF, 0x7FFF, 1),
    "pitch-0": fill(DATA, 0, 0, 0, 16, 0x7FFF, 1),
    "negative-pitch": fill(DATA, -64, 0, 0, 16, 16, 1),
    "wraps": fill(0xFFFF_FFFF_F000, 4096, 0, 0, 1024, 64, 1),
    "x-tiled-odd-pitch": [fill(DATA, 3, 0, 0, 16, 16, 1)[0] | 1 << 11, *fill(DATA, 3, 0, 0, 16, 16, 1)[1:]],
    "own-batch": fill(BATCH, 4096, 0, 0, 1024, 2, 0),
    "from-nowhere": copy(DATA, 64, 0, 0, 16, 16, 0x4444_4444_4000, 64),
    "overlap": copy(DATA + 4, 64, 0, 0, 16, 16, DATA, 64),
}


class TestBlits:
    @pytest.mark.parametrize("blit", BLITS.values(), ids=BLITS)
    def test_rectangles_of_nonsense(self, attack, blit):
        attacker, vgpu = attack
        attacker.go_batch(BLITTER, *blit, *batch_end())
        attacker.settle(BLITTER, vgpu)


class TestLife:
    def test_memory_goes_while_it_is_used(self, pair):
        attacker, vgpu, honest, _ = pair
        attacker.batch(*fill(DATA, 4096, 0, 0, 1024, 1, 7), *batch_start(BATCH))
        attacker.go(BLITTER, batch_start(BATCH))
        vgpu.address_space.unmap_all()
        engine = vgpu.engine_at(BLITTER)
        honest.wait_until(lambda: engine.error, "the error")
        assert "unreachable" in engine.error
        honest.run(BLITTER, user_interrupt())

    @pytest.mark.parametrize("bus", ["loopback", "vfio-user"])
    def test_the_client_goes_in_the_middle_of_a_batch(self, gpu, bus):
        from umdev_testkit.functions import attach

        vgpu = gpu.create("i915-GVTg_V5_8")
        for _ in range(3):
            attacker = Attacker(attach(vgpu, bus))
            attacker.prepare()
            for base in ENGINES.values():
                attacker.go_batch(base, *endless())
            attacker.close()
            attacker.function.close()
            deadline = time.monotonic() + SECONDS
            while any(engine.busy for engine in vgpu.engines) or vgpu.attachment is not None:
                assert time.monotonic() < deadline
                time.sleep(0.001)
        driver = Driver(attach(vgpu, bus))
        assert driver.run(RENDER, user_interrupt())[-1][0] == 0x18
        driver.close()
        driver.function.close()
        vgpu.close()

    def test_bus_mastering_and_power_go_in_the_middle(self, pair):
        attacker, vgpu, honest, _ = pair
        for off, on in (
            (lambda: attacker.function.enable(bus_master=False), attacker.function.enable),
            (lambda: attacker.function.region_write(7, 0xD4, b"\x03"), attacker.function.enable),
        ):
            attacker.batch(*store(DATA, 1), *endless())
            attacker.go(RENDER, batch_start(BATCH))
            off()
            honest.wait_until(lambda: vgpu.engines[0].error, "the error")
            attacker.function.region_write(7, 0xD4, b"\0")
            on()
            attacker.reset_engine(RENDER)
            attacker.events(RENDER)
            assert attacker.run(BLITTER, user_interrupt())[-1][0] == 0x18
            assert honest.run(BLITTER, user_interrupt())[-1][0] == 0x18

    def test_messages_that_nobody_hears_and_memory_that_is_read_only(self, gpu, loopback_function):
        import os

        from umdev.services import Protection

        vgpu = gpu.create("i915-GVTg_V5_8")
        driver = Driver(loopback_function(vgpu))
        driver.interrupts.close()
        driver.interrupts = None
        driver.function.region_write(7, vgpu.config.registers["msi.control"][0], b"\x01\0")
        descriptor = os.memfd_create("read-only")
        os.ftruncate(descriptor, PAGE)
        far = 1 << 38
        vgpu.address_space.map(far, PAGE, descriptor=descriptor, protection=Protection.READ)
        os.close(descriptor)
        table = driver.table()
        table.map(DATA, far)
        context = driver.context(RENDER, table)
        context.emit([*user_interrupt(), *store(DATA, 1)])
        driver.submit(context)
        deadline = time.monotonic() + SECONDS
        while not vgpu.engines[0].error:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert "not permitted" in vgpu.engines[0].error
        driver.close()

    def test_nothing_of_one_life_is_left_to_the_next(self, gpu, loopback_function):
        first = gpu.create("i915-GVTg_V5_8")
        driver = Driver(loopback_function(first))
        driver.run(RENDER, load_register(RENDER + 0x600, 0x5EC7))
        driver.mmio.write64(0x100000, 1)
        assert driver.mmio.read32(RENDER + 0x600) == 0x5EC7
        driver.close()
        driver.function.close()
        first.close()
        second = gpu.create("i915-GVTg_V5_8")
        driver = Driver(loopback_function(second), start=False)
        driver.handshake()
        assert second.slice == first.slice
        assert driver.mmio.read32(RENDER + 0x600) == driver.mmio.read64(0x100000) == 0
        assert driver.mmio.read64(GGTT + 8 * (driver.top // PAGE - 1)) == 0
        assert second.table.entries[:].strip(b"\0") == b""
        driver.close()

    def test_vgpus_come_and_go(self, gpu, loopback_function):
        def cycle():
            device = gpu.create("i915-GVTg_V5_8")
            with device:
                pass
            del device
            gc.collect()

        cycle()
        gc.collect()
        descriptors, before = len(list(Path("/proc/self/fd").iterdir())), resident()
        for _ in range(50):
            cycle()
        gc.collect()
        assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors
        assert resident() - before <= GROWTH
        assert gpu.partition.used == {}
