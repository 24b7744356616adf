"""A hostile driver: whatever it does, this process lives, the other vGPU works on, and a reset makes good."""

import struct

import pytest

from .conftest import (
    ALL_ONES,
    BATCH,
    BLITTER,
    DATA,
    ENGINES,
    GGTT,
    MIB,
    PAGE,
    PVINFO,
    RENDER,
    batch_end,
    batch_start,
    fill,
    store,
)


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

    def test_what_is_refused_has_names_that_a_guest_does_not_choose(self, attack):
        attacker, vgpu = attack
        for message in (*range(100), ALL_ONES):
            attacker.mmio.write32(PVINFO + 0x818, message)
        assert sorted(vgpu.refused) == ["a notification that is none", *(f"notification {n}" for n in (2, 3, 6, 7))]

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
