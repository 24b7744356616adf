"""Hostile channels and runlists: each ends, in an error that the driver hears of or in nothing."""

import random

import pytest

from .conftest import (
    ALL_ONES,
    CHANNELS,
    COPY,
    DATA,
    FENCE,
    GRAPHICS,
    PAGE,
    PBDMA,
    VRAM_SIZE,
    bind_copy,
    copy,
    release,
)


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

    def test_turns_of_a_channel_that_is_bound_anew_do_not_pile_up(self, attack):
        attacker, vgpu = attack
        channel = attacker.channel(1)
        known = vgpu.registers.fifo.channels.known[1]
        queue = known.queue
        vgpu.client.pause()  # as a frame rate or other vGPUs' slots do
        for _ in range(100):
            attacker.mmio.write32(CHANNELS + 8, 1 << 31 | channel.instance >> 12)
            attacker.mmio.write32(CHANNELS + 8 + 4, 1 << 10)
        assert queue.waiting <= 1
        assert known._execution is None, "what it says is read in its own turn, not in the driver's access"
        vgpu.client.resume()
        attacker.wait_until(lambda: not queue.waiting, "the end of its turn")
        attacker.fence_comes()

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
