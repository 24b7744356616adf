"""A hostile driver: whatever it does, this process lives, the other vGPU works on, and a reset makes good."""

import random
import struct

import pytest

from .conftest import (
    ALL_ONES,
    CHANNELS,
    DATA,
    FENCE,
    LARGE_PAGE,
    MIB,
    PAGE,
    PRAMIN,
    PROM,
    VRAM_SIZE,
    bind_copy,
    copy,
    release,
)


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
