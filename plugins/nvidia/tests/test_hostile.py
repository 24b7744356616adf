"""A hostile driver: whatever it does, this process lives, the other vGPU works on, and a reset makes good."""

import gc
import random
import resource
import struct
from pathlib import Path

import pytest
from umdev_softgpu import Reason

from .conftest import (
    CHANNELS,
    COPY,
    FAULT,
    GRAPHICS,
    LARGE_PAGE,
    MIB,
    PAGE,
    PBDMA,
    PITCH_LAUNCH,
    PRAMIN,
    PROM,
    REMAP,
    Driver,
    acquire,
    bind_copy,
    copy,
    header,
    interrupt,
    methods,
    release,
    remap,
)

ALL_ONES = 0xFFFF_FFFF
DATA, VIDEO, FENCE = 0x2000_0000, 0x4000_0000, 0x6000_0000
GROWTH = 48 * MIB
VRAM_SIZE = 512 * MIB


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


class TestRegisters:
    def test_accesses_of_every_size_at_every_border(self, attack):
        attacker, _ = attack
        places = {
            attacker.mmio: (
                0,
                0x88066,
                PROM - 4,
                PROM,
                PROM + MIB - 4,
                PRAMIN,
                PRAMIN + MIB - 4,
                CHANNELS,
                (16 << 20) - 4,
            ),
            attacker.bar1: (0, attacker.USER, 256 * MIB - PAGE),
            attacker.bar3: (0, 32 * MIB - PAGE),
        }
        for bar, offsets in places.items():
            for offset in offsets:
                for length in (1, 2, 3, 4, 5, 8, 16, 4096):
                    if offset + length <= bar.size:
                        assert len(bar.read(offset, length)) == length
                        bar.write(offset, bytes(length))

    def test_every_fifo_register_takes_ones(self, attack):
        attacker, _ = attack
        for first, end in ((0x2000, 0x2C00), (0x40000, 0x44000), (0x9000, 0x9600), (0x100C00, 0x100D00)):
            for offset in range(first, end, 4):
                attacker.mmio.write32(offset, ALL_ONES)
                attacker.mmio.read32(offset)

    def test_the_vbios_ends(self, attack):
        attacker, _ = attack
        assert attacker.mmio.read(PROM + PAGE, 64) == b"\xff" * 64
        attacker.mmio.write(PROM, bytes(64))
        assert attacker.mmio.read32(PROM) & 0xFFFF == 0xAA55

    def test_endless_uploads_to_the_pmu(self, attack):
        attacker, vgpu = attack
        for number in range(20_000):
            attacker.mmio.write32(0x10A1C4, number)
            attacker.mmio.write32(0x10A184, number)
        assert vgpu.refused == {}

    def test_an_alarm_storm_keeps_one_alarm(self, attack):
        attacker, vgpu = attack
        for number in range(2_000):
            attacker.mmio.write32(0x9420, number)
        assert len(vgpu.work.pending) <= 1


class TestWindows:
    @pytest.mark.parametrize("value", [0, 1 << 31 | 0x0FFF_FFFF, 1 << 31 | (VRAM_SIZE >> 12), ALL_ONES], ids=hex)
    def test_a_window_without_tables(self, attack, value):
        attacker, _ = attack
        attacker.mmio.write32(0x1704, value)
        attacker.mmio.write32(0x1714, value)
        for bar in (attacker.bar1, attacker.bar3):
            assert bar.read32(attacker.USER) == ALL_ONES
            bar.write32(attacker.USER, 1)

    def test_a_window_s_limit_holds(self, attack):
        attacker, _ = attack
        tables = attacker.bar1_tables
        tables.map(0x200_0000, attacker.video)
        tables.limit = 0x200_0000 + 7
        for limit, expected in ((0x1FF_FFFF, ALL_ONES), (0x200_0000, 0)):
            tables.limit = limit
            attacker.mmio.write32(0x1704, 1 << 31 | tables.instance() >> 12)
            assert attacker.bar1.read32(0x200_0000) == expected

    @pytest.mark.parametrize("base", [VRAM_SIZE >> 16, 0xFF_FFFF, 1 << 24, 2 << 24 | 0x10, ALL_ONES], ids=hex)
    def test_pramin_shows_no_other_memory(self, attack, base):
        attacker, _ = attack
        attacker.mmio.write32(0x1700, base)
        attacker.mmio.write32(PRAMIN, 0)
        assert attacker.mmio.read32(PRAMIN) == ALL_ONES

    def test_pramin_ends_with_video_memory(self, attack):
        attacker, _ = attack
        attacker.mmio.write32(0x1700, (VRAM_SIZE >> 16) - 1)
        assert attacker.mmio.read32(PRAMIN + 0xFFFC) == 0
        assert attacker.mmio.read32(PRAMIN + 0x10000) == ALL_ONES
        attacker.mmio.write(PRAMIN + 0xFFFC, b"\1" * 16)
        assert attacker.mmio.read32(PRAMIN + 0xFFFC) == 0


ENTRIES = {
    "beyond-vram": 1 | VRAM_SIZE >> 8,
    "last-page-of-the-format": 1 | 0xFFFF_FFF0,
    "a-peer-s": 1 | 1 << 33,
    "the-system-s-nowhere": 1 | 0xFFFF_FFF0 | 2 << 33,
    "all-ones": (1 << 64) - 1,
    "not-valid": 0,
}


class TestTables:
    @pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
    @pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
    def test_an_entry_of_nonsense(self, attack, entry, large):
        attacker, _ = attack
        attacker.victim.tables.entry(0x7000_0000, entry, large=large)
        attacker.invalidate(attacker.victim.tables)
        attacker.victim.go(*bind_copy(), *copy(0x7000_0000, DATA, 16), *release(FENCE, 5))
        attacker.wait_until(attacker.faulted, "the fault")
        assert attacker.word(attacker.fence) == 0

    def test_a_large_page_that_video_memory_ends_in(self, attack):
        attacker, _ = attack
        tables = attacker.victim.tables
        tables.entry(0x7000_0000, 1 | VRAM_SIZE - LARGE_PAGE >> 8, large=True)
        attacker.invalidate(tables)
        attacker.victim.go(*bind_copy(), *copy(0x7000_0000 + LARGE_PAGE - 64, DATA, 64))
        attacker.victim.wait_idle()
        attacker.victim.go(*copy(0x7000_0000 + LARGE_PAGE - 64, DATA, 65))
        attacker.wait_until(attacker.faulted, "the fault")

    def test_a_directory_that_is_its_own_table(self, attack):
        attacker, _ = attack
        tables = attacker.victim.tables
        for slot in range(64):
            attacker.save(tables.directory + 8 * slot, tables.directory >> 8 | 1)
            attacker.save(tables.directory + 8 * slot + 4, tables.directory >> 8 | 1)
        attacker.invalidate(tables)
        attacker.victim.go(*release(FENCE, 1))
        attacker.wait_until(lambda: attacker.faulted() or attacker.victim.get, "an end")

    def test_a_page_that_may_only_be_read(self, attack):
        attacker, _ = attack
        attacker.victim.tables.map(0x7000_0000, attacker.video, read_only=True)
        attacker.invalidate(attacker.victim.tables)
        attacker.victim.go(*bind_copy(), *copy(0x7000_0000, DATA, 16), *copy(DATA, 0x7000_0000, 16))
        attacker.wait_until(attacker.faulted, "the fault")
        assert attacker.mmio.read32(0x29BC) == 0x19 << 8 | 0x40 | 0x80 | 6

    def test_a_limit_below_everything(self, attack):
        attacker, _ = attack
        channel = attacker.channel(1, start=False)
        channel.tables.limit = 0
        channel.instance = channel.tables.instance()
        for at, value in ((0x08, channel.user), (0x48, channel.RING), (0x4C, 6 << 16)):
            attacker.save(channel.instance + at, value)
        channel.start()
        channel.go(*release(FENCE, 1))
        attacker.wait_until(attacker.faulted, "the fault")
        assert attacker.mmio.read32(0x259C) == 1 << 7
        assert attacker.mmio.read32(0x280C + 0x70) == 6 << 8 | 0x40 | 3


def ring(ring_high=6 << 16, user=None, ring_low=0x1000_0000):
    return ring_high, user, ring_low


INSTANCES = {
    "one-entry": ring(0),
    "two-to-the-31": ring(31 << 16),
    "ring-nowhere": ring(ring_low=0x7777_0000),
    "ring-at-the-end-of-addresses": ring(6 << 16 | 0xFF, ring_low=0xFFFF_FFF8),
    "user-page-nowhere": ring(user=0xFFFF_FE00),
    "user-page-at-the-end": ring(user=VRAM_SIZE - 0x200),
    "user-page-of-the-system": ring(user=2),
}


class TestChannels:
    @pytest.mark.parametrize("values", INSTANCES.values(), ids=INSTANCES)
    def test_an_instance_block_of_nonsense(self, attack, values):
        attacker, _ = attack
        ring_high, user, ring_low = values
        channel = attacker.channel(1, start=False)
        for at, value in ((0x08, channel.user if user is None else user), (0x48, ring_low), (0x4C, ring_high)):
            attacker.save(channel.instance + at, value)
        channel.start()
        channel.go(*release(FENCE, 1))
        for put in (1, 2, 63, 64, ALL_ONES, 0):
            attacker.bar1.write32(channel.user_offset + 0x8C, put)
        channel.stop()

    def test_a_user_page_on_the_page_tables(self, attack):
        attacker, _ = attack
        channel = attacker.channel(1, start=False)
        attacker.save(channel.instance + 0x08, channel.tables.directory)
        channel.start()
        for put in range(200):
            attacker.save(channel.tables.directory + 0x8C, put)
        attacker.fence_comes()

    def test_put_pointers_beyond_the_ring(self, attack):
        attacker, _ = attack
        attacker.bar1.write32(attacker.victim.user_offset + 0x8C, 64)
        attacker.wait_until(lambda: attacker.mmio.read32(0x2100) & PBDMA, "the error")
        assert attacker.mmio.read32(0x25A0) == 1
        assert attacker.mmio.read32(0x40108) == 1 << 14
        assert attacker.mmio.read32(0x40120) == 0
        attacker.mmio.write32(0x40108, ALL_ONES)
        attacker.fence_comes()

    @pytest.mark.parametrize(
        ("at", "dwords"),
        [(DATA, 0x1F_FFFF), (0xFF_FFFF_FFFC, 4), (0x7777_0000, 1), (DATA + PAGE - 4, 2)],
        ids=["longest", "end-of-addresses", "nowhere", "over-the-edge"],
    )
    def test_ring_entries_to_nowhere(self, attack, at, dwords):
        attacker, _ = attack
        attacker.victim.entry(at, dwords)
        attacker.victim.kick()
        attacker.wait_until(attacker.faulted, "the fault")
        assert attacker.mmio.read32(0x259C) == 1 << 7

    def test_a_ring_of_empty_entries_does_not_hold_the_engine(self, attack):
        attacker, _ = attack
        channel = attacker.channel(1, start=False)
        attacker.save(channel.instance + 0x4C, 31 << 16)
        for page in range(64):
            channel.tables.map(channel.RING + page * PAGE, channel.ring, system=True)
        attacker.invalidate(channel.tables)
        channel.start()
        attacker.bar1.write32(channel.user_offset + 0x8C, 0x7FFF_FFFF)
        attacker.fence_comes()

    def test_a_push_buffer_that_writes_itself(self, attack):
        attacker, _ = attack
        channel = attacker.victim
        channel.go(*bind_copy(), *copy(DATA, channel.PUSH, PAGE), *release(FENCE, 1))
        channel.wait_idle()

    def test_faults_that_nobody_looks_at_are_one_for_each_channel(self, attack):
        attacker, vgpu = attack
        fifo = vgpu.registers.fifo
        attacker.victim.go(*release(0x7F00_0000, 1))
        attacker.wait_until(attacker.faulted, "the fault")
        channel = attacker.channel(1, start=False)
        channel.emit(*release(0x7F00_0000, 1))
        for _ in range(5):
            channel.start()
            channel.kick()
            attacker.wait_until(lambda: fifo.channels.known[1].killed, "the channel's end")
            channel.stop()
        assert list(fifo.waiting) == [(7, 1)]
        attacker.mmio.write32(0x259C, 1 << 7)
        assert not fifo.waiting

    def test_two_channels_fault_and_the_driver_hears_of_both(self, attack):
        attacker, _ = attack
        second = attacker.channel(1)
        for channel in (attacker.victim, second):
            channel.go(*release(0x7F00_0000, 1))
        seen = set()
        while len(seen) < 2:
            attacker.wait_until(attacker.faulted, "the other fault")
            seen.add(attacker.mmio.read32(0x2870) << 12)
            attacker.mmio.write32(0x259C, 1 << 7)
        assert seen == {attacker.victim.instance, second.instance}

    def test_kicks_and_binds_in_any_order(self, attack):
        attacker, vgpu = attack
        rng = random.Random(1)
        values = (0, 1 << 31, 1 << 31 | attacker.victim.instance >> 12, ALL_ONES, 1 << 10, 1 << 11)
        for _ in range(3000):
            number = rng.choice((0, 0, 1, 5, 2047))
            attacker.mmio.write32(CHANNELS + 8 * number + rng.choice((0, 4)), rng.choice(values))
            attacker.bar1.write32(attacker.USER + 0x8C, rng.randrange(64))
            attacker.mmio.write32(0x2634, rng.choice((0, 1, 5, 0x100_0000)))
        assert len(vgpu.registers.fifo.channels.known) <= 4


class TestRunlists:
    @pytest.mark.parametrize(
        ("base", "submit"),
        [(0x0FFF_FFFF, COPY << 20 | 4), (0x1000_0000, COPY << 20 | 4), (0, COPY << 20 | 0xFFFF), (0, 15 << 20 | 1)],
        ids=["nowhere", "the-system-s", "longest", "no-such"],
    )
    def test_runlists_of_nonsense(self, attack, base, submit):
        attacker, _ = attack
        attacker.mmio.write32(0x2270, base)
        attacker.mmio.write32(0x2274, submit)

    def test_a_channel_on_both_and_some_that_are_not_there(self, attack):
        attacker, vgpu = attack
        attacker.listed[GRAPHICS] = [0, 0, 7, 2047, 4095]
        attacker.submit_runlist(GRAPHICS)
        attacker.fence_comes()
        assert len(vgpu.registers.fifo.channels.known) <= 4

    def test_every_channel(self, attack):
        attacker, vgpu = attack
        for number in range(2048):
            attacker.mmio.write32(CHANNELS + 8 * number, 1 << 31 | attacker.victim.instance >> 12)
            attacker.mmio.write32(CHANNELS + 8 * number + 4, 1 << 10)
        attacker.mmio.write32(CHANNELS + 8 * 2048, ALL_ONES)
        assert len(vgpu.registers.fifo.channels.known) == 2048
        attacker.fence_comes()


COPIES = {
    "largest": copy(DATA, VIDEO, ALL_ONES, ALL_ONES),
    "wraps": copy(0xFF_FFFF_F000, VIDEO, 2 * PAGE),
    "negative-pitch": copy(DATA, VIDEO, 16, 64, source_pitch=-PAGE, target_pitch=-64),
    "no-pitch": copy(DATA, VIDEO, PAGE, 4),
    "nothing": copy(DATA, VIDEO, 0, 0),
    "blocks-of-nothing": copy(DATA, VIDEO, 64, 8, flags=2),
    "blocks": [
        *methods(0x70C, 0x1FF0, ALL_ONES, ALL_ONES, ALL_ONES, ALL_ONES, ALL_ONES),
        *copy(DATA, VIDEO, 64, 8, flags=0x82),
    ],
    "blocks-product": [
        *methods(0x70C, 0x1050, ALL_ONES, ALL_ONES, 1, ALL_ONES, ALL_ONES),
        *copy(DATA, VIDEO, 64, 8, flags=0x82),
    ],
    "physical": copy(0, 0, PAGE, flags=PITCH_LAUNCH | 3 << 12),
    "transfer-3": copy(DATA, VIDEO, 16, flags=PITCH_LAUNCH | 3),
    "semaphore-3": copy(DATA, VIDEO, 16, flags=PITCH_LAUNCH | 3 << 3),
    "reduction-float": copy(DATA, VIDEO, 16, flags=PITCH_LAUNCH | 1 << 3 | 1 << 19 | 10 << 14),
    "remap-missing": [*remap((3, 7), 4), *copy(DATA, VIDEO, 16, flags=PITCH_LAUNCH | REMAP)],
    "remap-largest": [*remap((1, 0), 4, sources=4), *copy(DATA, VIDEO, ALL_ONES, 2, flags=PITCH_LAUNCH | REMAP)],
    "condition-nowhere": [*methods(0x254, 0x7F, 0, 2), *copy(DATA, VIDEO, 16)],
    "semaphore-nowhere": [*methods(0x240, 0x7F, 0, 2), *copy(DATA, VIDEO, 16, flags=PITCH_LAUNCH | 1 << 3)],
    "own-push-buffer": copy(DATA, 0x1010_0000, PAGE, 4, target_pitch=PAGE),
}
ERRORS = {
    "header-kind-0": ([1 << 16], 1 << 18),
    "header-kind-2": ([2 << 29], 1 << 18),
    "header-kind-7": ([7 << 29 | 0x1FFF_FFFF], 1 << 18),
    "no-class": (methods(0x100, 1, subchannel=2), 1 << 23),
    "foreign-class": (methods(0, 0xA097, subchannel=0), 1 << 23),
    "unknown-method": (methods(0x104, 1), 1 << 23),
    "unknown-host-method": (methods(0x40, 1, subchannel=0), 1 << 21),
    "semaphore-0": (methods(0x1C, 0, subchannel=0), 1 << 25),
    "reduction-15": (methods(0x1C, 16 | 15 << 27, subchannel=0), 1 << 25),
}


class TestMethods:
    @pytest.mark.parametrize("dwords", COPIES.values(), ids=COPIES)
    def test_copies_of_nonsense(self, attack, dwords):
        attacker, vgpu = attack
        attacker.victim.go(*bind_copy(), *dwords)
        channel = vgpu.registers.fifo.channels.known[0]
        attacker.wait_until(lambda: attacker.faulted() or channel.queue.steps > 2 or attacker.victim.get, "an end")

    @pytest.mark.parametrize(("dwords", "bits"), ERRORS.values(), ids=ERRORS)
    def test_what_is_no_command_is_passed_over_and_reported(self, attack, dwords, bits):
        attacker, _ = attack
        attacker.victim.go(*dwords)
        attacker.wait_until(lambda: attacker.mmio.read32(0x2100) & PBDMA, "the error")
        attacker.victim.wait_idle()
        assert attacker.mmio.read32(0x40108) == bits
        attacker.mmio.write32(0x40108, ALL_ONES)
        assert not attacker.mmio.read32(0x2100) & PBDMA
        attacker.fence_comes()

    def test_a_launch_that_makes_no_sense_is_reported_by_the_engine(self, attack):
        attacker, _ = attack
        attacker.victim.go(*bind_copy(), *copy(0, 0, PAGE, flags=PITCH_LAUNCH | 1 << 12))
        attacker.wait_until(lambda: attacker.mmio.read32(0x106908) & 4, "the error")
        assert attacker.mmio.read32(0x100) & 1 << 7
        attacker.mmio.write32(0x106908, 4)
        assert not attacker.mmio.read32(0x100) & 1 << 7
        attacker.fence_comes()

    def test_a_header_counts_beyond_its_buffer(self, attack):
        attacker, _ = attack
        attacker.victim.go(header(0x10, 0x1FFF, subchannel=0, kind=3), *range(100))
        attacker.victim.wait_idle()

    def test_an_acquire_that_never_comes_holds_nobody(self, attack):
        attacker, _ = attack
        channel = attacker.channel(1)
        channel.tables.map(FENCE, attacker.page(), system=True)
        attacker.invalidate(channel.tables)
        channel.go(*acquire(FENCE, 1))
        attacker.fence_comes()
        channel.stop()

    def test_ten_thousand_interrupts_are_one_message(self, attack):
        attacker, vgpu = attack
        attacker.interrupts.wait(timeout=0)
        attacker.serve_interrupt()
        before = vgpu.registers.pmc.messages
        for _ in range(10):
            attacker.victim.go(*interrupt() * 1000)
            attacker.victim.wait_idle()
        assert vgpu.registers.pmc.messages - before == 1

    def test_the_log_does_not_grow_for_ever(self, attack, caplog):
        attacker, vgpu = attack
        with caplog.at_level("INFO", logger="umdev.nvidia"):
            attacker.victim.emit(*bind_copy())
            for _ in range(30):
                attacker.victim.go(*methods(0x300, 1 << 12) * 10)
                attacker.victim.wait_idle()
        assert len(caplog.records) == 200
        assert vgpu.refused["copy engine launch"] == 300


class TestLife:
    def test_memory_goes_while_it_is_used(self, gpu, loopback_function):
        vgpus = [gpu.create("nvidia-36") for _ in range(2)]
        attacker, honest = (Attacker(loopback_function(vgpu)).start() for vgpu in vgpus)
        channel = attacker.prepare()
        attacker.poke(attacker.data, b"data")
        channel.go(*bind_copy(), *copy(DATA, VIDEO, PAGE, ALL_ONES), *interrupt())
        # Not by the engine's steps: on a busy machine some may end before the copy begins.
        attacker.wait_until(lambda: attacker.load(attacker.video) == int.from_bytes(b"data", "little"), "the copy")
        vgpus[0].address_space.unmap_all()
        attacker.wait_until(attacker.faulted, "the fault")
        assert attacker.mmio.read32(0x29BC) & 0xF == 0xD
        honest.prepare()
        honest.fence_comes()
        attacker.interrupts.close()
        honest.close()

    def test_a_reset_ends_a_copy(self, attack):
        attacker, vgpu = attack
        attacker.victim.go(*bind_copy(), *copy(VIDEO, VIDEO, PAGE, ALL_ONES))
        channel = vgpu.registers.fifo.channels.known[0]
        attacker.wait_until(lambda: channel.queue.steps, "its beginning")
        attacker.interrupts.close()
        attacker.function.reset()
        attacker.function.enable()
        attacker.wait_until(lambda: channel.queue.running is None and not channel.queue.waiting, "its end")
        assert vgpu.vram.memory[: 16 * MIB].strip(b"\0") == b""
        attacker.interrupts = attacker.function.enable_interrupts("msi")

    def test_a_step_that_is_late_reaches_nothing_of_the_next_life(self, attack):
        attacker, vgpu = attack
        attacker.fence_comes()
        late = vgpu.registers.fifo.channels.known[0]._execution
        attacker.interrupts.close()
        attacker.function.reset()
        attacker.function.enable()
        attacker.interrupts = attacker.function.enable_interrupts("msi")
        for register in (0x140, 0x2140):
            attacker.mmio.write32(register, ALL_ONES)
        late.user_page.show(7, 7 << 32 | 7)
        late.non_stall_interrupt()
        late.copy_done(1)
        assert late.space.write(FENCE, b"late").reason == Reason.CLOSED
        assert late.user_page.put == 0
        assert vgpu.vram.memory[: 16 * MIB].strip(b"\0") == b""
        assert attacker.mmio.read32(0x100) == 0

    def test_nothing_of_one_life_is_left_to_the_next(self, gpu, loopback_function):
        with gpu.create("nvidia-36") as first:
            driver = Driver(loopback_function(first)).start()
            driver.save(driver.vram(PAGE), 0x5EC7E7)
            driver.close()
            driver.function.close()
        with gpu.create("nvidia-36") as second:
            function = loopback_function(second)
            assert second.vram.memory[: 64 * MIB].strip(b"\0") == b""
            assert function.bars[0].read32(0x1704) == 0
            function.close()

    def test_vgpus_come_and_go(self, gpu):
        def cycle():
            gpu.create("nvidia-36").close()
            gc.collect()

        cycle()
        descriptors, before = len(list(Path("/proc/self/fd").iterdir())), resident()
        for _ in range(30):
            cycle()
        assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
        assert resident() - before <= GROWTH


class TestFuzz:
    @pytest.mark.parametrize("seed", range(4))
    def test_random_writes_with_random_memory(self, attack, seed):
        attacker, _ = attack
        rng = random.Random(seed)
        interesting = [
            *range(0x2100, 0x2148, 4), *range(0x2250, 0x2290, 4), *range(0x2590, 0x25A4, 4), *range(0x2620, 0x2650, 4),
            *range(0x1700, 0x1718, 4), 0x140, 0x144, 0x200, 0x204, 0x640, 0x9420, 0x70000, 0x88068, 0x100C80, 0x100CB8,
            0x100CBC, 0x106904, 0x106908, 0x40108, 0x4010C, 0x42108, 0x4210C, 0x10A100, 0x2A00,
            *range(CHANNELS, CHANNELS + 64, 4),
        ]  # fmt: skip
        pages = [attacker.victim.ring, attacker.victim.push, attacker.data]
        values = [0, 1, ALL_ONES, 1 << 31, attacker.victim.instance >> 12 | 1 << 31, 1 << 10, 1 << 20 | 2]
        for _ in range(1500):
            match rng.randrange(5):
                case 0 | 1:
                    value = rng.choice(values) if rng.random() < 0.7 else rng.getrandbits(32)
                    attacker.mmio.write32(rng.choice(interesting), value)
                case 2:
                    attacker.mmio.write32(PRAMIN + rng.randrange(0, MIB, 4), rng.getrandbits(32))
                case 3:
                    words = [rng.choice((0x2001_8000 | rng.randrange(0x800), rng.getrandbits(32))) for _ in range(16)]
                    attacker.poke(rng.choice(pages) + rng.randrange(0, PAGE - 64, 4), struct.pack("<16I", *words))
                case 4:
                    attacker.bar1.write32(attacker.USER + 0x8C, rng.randrange(70))
        attacker.mmio.read32(0x100)
