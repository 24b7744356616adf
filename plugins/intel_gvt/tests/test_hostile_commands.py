"""Hostile batches and blits: each ends, in an error that the driver hears of or in nothing."""

import re
import struct
import time

import pytest

from .conftest import (
    ALL_ONES,
    BATCH,
    BLITTER,
    DATA,
    PAGE,
    PVINFO,
    RENDER,
    SECONDS,
    batch_end,
    batch_start,
    copy,
    endless,
    fill,
    flush,
    load_register,
    pipe_control,
    store,
    store_register,
    user_interrupt,
)

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

    @pytest.mark.parametrize("last", [0, 0x7800_0000], ids=["no-operations", "commands-across-the-edge"])
    def test_padding_that_has_no_end_holds_nobody(self, pair, last):
        attacker, vgpu, honest, _ = pair
        page = attacker.page()
        attacker.poke(page + PAGE - 4, struct.pack("<I", last))
        for _ in range(3):  # every address of the upper half of the space leads to one page of padding
            page, table = attacker.page(), page
            attacker.poke(page, struct.pack("<Q", table | 3) * 512)
        attacker.poke(attacker.attack_table.root + 8 * 256, struct.pack("<Q", page | 3) * 256)
        attacker.go(RENDER, batch_start(1 << 47))
        for _ in range(20):
            assert honest.run(BLITTER, user_interrupt())[-1][0] == 0x18
        assert vgpu.engines[0].busy
        attacker.reset_engine(RENDER)

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
