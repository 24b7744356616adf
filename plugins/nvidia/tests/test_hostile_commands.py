"""Hostile methods and copies: what makes no sense is passed over, and the driver hears of it."""

import pytest

from .conftest import (
    ALL_ONES,
    DATA,
    FENCE,
    PAGE,
    PBDMA,
    PITCH_LAUNCH,
    REMAP,
    VIDEO,
    acquire,
    bind_copy,
    copy,
    header,
    interrupt,
    methods,
    remap,
)

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
        assert attacker.mmio.read32(0x400C0) >> 16 & 7 == dwords[0] >> 13 & 7, "the subchannel"
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
