"""The register map as a driver sees it."""

import pytest
from umdev_intel_gvt.fences import Fence

from .conftest import BLITTER, ENGINES, GGTT, PAGE, PVINFO, RENDER, Driver


@pytest.fixture
def quiet(vgpu, loopback_function):
    """A driver that has done nothing yet."""
    driver = Driver(loopback_function(vgpu), start=False)
    yield driver
    driver.close()


def test_configuration_space(quiet):
    raw = quiet.function.region_read(7, 0, 256)
    assert raw[:4] == b"\x86\x80\x12\x59"
    assert raw[8:12] == bytes([4, 0, 0x80, 3])
    assert raw[0x50:0x52] == b"\xc0\x00"  # 8 MiB of global table, no stolen memory
    assert raw[0x5C:0x60] == raw[0xFC:0x100] == bytes(4)
    sizes = {index: bar.size for index, bar in quiet.function.probe_bars().items()}
    assert sizes == {0: 16 << 20, 2: 1 << 30, 4: 64}


def test_pvinfo(quiet, vgpu):
    quiet.handshake()
    assert (quiet.mappable, quiet.mappable_size) == (vgpu.slice.aperture.base, 64 << 20)
    assert (quiet.hidden, quiet.hidden_size) == (vgpu.slice.hidden.base, 384 << 20)
    assert quiet.fences == 4
    assert quiet.hidden >= 1 << 30
    quiet.mmio.write32(PVINFO + 0x44, 0xFFFF_FFFF)
    quiet.mmio.write32(PVINFO, 0)
    quiet.handshake()
    assert quiet.mappable_size == 64 << 20


@pytest.mark.parametrize("base", ENGINES.values(), ids=ENGINES)
def test_masked_registers(quiet, base):
    quiet.mmio.write32(base + 0x29C, 0x8000_8001)
    assert quiet.mmio.read32(base + 0x29C) == 0x8000
    quiet.mmio.write32(base + 0x29C, 0x0001_0001)  # the privilege bits are not a guest's
    assert quiet.mmio.read32(base + 0x29C) == 0x8000
    quiet.mmio.write32(base + 0xB0, 5)
    assert quiet.mmio.read32(base + 0xB0) == 0
    assert quiet.mmio.read32(base + 0x9C) & 0x200


def test_what_the_driver_polls_is_done_at_once(quiet):
    quiet.mmio.write32(0x941C, 0x1E)
    assert quiet.mmio.read32(0x941C) == 0
    quiet.mmio.write32(0x4260, 1)
    assert quiet.mmio.read32(0x4260) == 0
    quiet.mmio.write32(0x138128, 5)
    quiet.mmio.write32(0x138124, 0x8000_0008)
    assert quiet.mmio.read32(0x138124) & 0x8000_00FF == 0
    quiet.mmio.write32(0x45404, 1 << 31 | 2)
    assert quiet.mmio.read32(0x45404) == 3 << 30 | 3
    quiet.mmio.write32(RENDER + 0xD0, 1 << 16 | 1)
    assert quiet.mmio.read32(RENDER + 0xD0) == 3
    quiet.mmio.write32(RENDER + 0xD0, 1 << 16)
    assert quiet.mmio.read32(RENDER + 0xD0) == 0


def test_fuses_say_that_there_is_no_display(quiet):
    assert quiet.mmio.read32(0x51000) == 0x5020_0000
    quiet.mmio.write32(0x51000, 0)
    assert quiet.mmio.read32(0x51000) == 0x5020_0000
    assert quiet.mmio.read32(0x9120) == 0x0280_0000
    assert quiet.mmio.read32(0xA26C) == 4


def test_time_is_the_guest_s(gpu, loopback_function):
    from umdev.device import ManualClock

    clock = ManualClock()
    driver = Driver(loopback_function(gpu.create("i915-GVTg_V5_8", clock=clock)), start=False)
    before = driver.mmio.read32(BLITTER + 0x358)
    clock.advance(0.5)
    assert driver.mmio.read32(BLITTER + 0x358) - before == 6_000_000
    driver.close()


def test_a_register_with_no_name_is_memory_and_is_listed(quiet, vgpu):
    assert vgpu.native.burn_down() == []
    assert quiet.mmio.read32(0x50000) == 0
    quiet.mmio.write32(0x50104, 0xABCD)
    assert quiet.mmio.read32(0x50104) == 0xABCD
    listed = {entry.offset: (entry.reads, entry.writes, entry.value) for entry in vgpu.native.burn_down()}
    assert listed == {0x50000: (1, 0, 0), 0x50104: (0, 1, 0xABCD)}
    assert ".at_" in vgpu.regions[0].name_at(0x50104)
    assert vgpu.regions[0].name_at(0x22230) == "registers.blitter.submit_port"


class TestInterruptTree:
    @pytest.fixture
    def tree(self, quiet):
        quiet.handshake()
        quiet.mask_all()
        quiet.interrupts = quiet.function.enable_interrupts("msi")
        quiet.mmio.write32(0x44304, 0)
        quiet.mmio.write32(0x4430C, 0xFFFF_FFFF)
        return quiet

    def raise_event(self, vgpu, name, event):
        from umdev_intel_gvt.interrupt_tree import EngineEvent

        engine = next(engine for engine in vgpu.engines if engine.spec.name == name)
        with vgpu.locked():
            engine.raise_event(EngineEvent(event))

    def test_masks_keep_events_out(self, tree, vgpu):
        self.raise_event(vgpu, "render", 0)  # the engine's own mask
        assert tree.mmio.read32(0x44308) == 0
        tree.mmio.write32(RENDER + 0xA8, ~1 & 0xFFFF_FFFF)
        tree.mmio.write32(0x44304, 1)
        self.raise_event(vgpu, "render", 0)
        assert tree.mmio.read32(0x44308) == 0

    def test_a_bit_waits_for_the_master(self, tree, vgpu):
        tree.mmio.write32(RENDER + 0xA8, 0)
        self.raise_event(vgpu, "render", 8)
        assert tree.mmio.read32(0x44308) == 0x100
        assert tree.interrupts.wait(timeout=0) == 0
        tree.mmio.write32(0x44200, 1 << 31)
        assert tree.interrupts.wait(timeout=10) == 1
        assert tree.mmio.read32(0x44200) == 1 << 31 | 1

    def test_events_that_come_together_are_one_message(self, tree, vgpu):
        tree.mmio.write32(RENDER + 0xA8, 0)
        tree.mmio.write32(BLITTER + 0xA8, 0)
        tree.mmio.write32(0x44200, 1 << 31)
        self.raise_event(vgpu, "render", 0)
        self.raise_event(vgpu, "blitter", 4)
        assert tree.interrupts.wait(timeout=10) == 1
        assert tree.mmio.read32(0x44308) == 1 | 1 << 20
        tree.mmio.write32(0x44200, 0)
        tree.mmio.write32(0x44308, 1)
        tree.mmio.write32(0x44200, 1 << 31)  # one is left: a message again
        assert tree.interrupts.wait(timeout=10) == 1
        tree.mmio.write32(0x44308, 1 << 20)
        assert tree.mmio.read32(0x44200) == 1 << 31

    @pytest.mark.parametrize("masked", [False, True])
    def test_an_event_before_the_acknowledgement_of_the_last_is_not_lost(self, tree, vgpu, masked):
        tree.mmio.write32(RENDER + 0xA8, 0)
        tree.mmio.write32(0x44200, 1 << 31)
        self.raise_event(vgpu, "render", 8)
        assert tree.interrupts.wait(timeout=10) == 1
        if masked:
            tree.mmio.write32(0x44200, 0)
        for _ in range(1000):  # the driver has looked already; its acknowledgement is on the way
            self.raise_event(vgpu, "render", 8)
        tree.mmio.write32(0x44308, 0x100)
        if masked:
            tree.mmio.write32(0x44200, 1 << 31)
        assert tree.interrupts.wait(timeout=10) == 1
        assert tree.mmio.read32(0x44308) == 0x100
        tree.mmio.write32(0x44308, 0x100)
        assert tree.mmio.read32(0x44308) == 0
        assert tree.interrupts.wait(timeout=0) == 0


class TestGlobalTable:
    def test_entries_of_the_slices_are_memory(self, quiet, vgpu):
        quiet.handshake()
        for page in (quiet.mappable // PAGE, quiet.hidden // PAGE, (quiet.hidden + quiet.hidden_size) // PAGE - 1):
            quiet.mmio.write64(GGTT + 8 * page, 0x12_3456_7001)
            assert quiet.mmio.read64(GGTT + 8 * page) == 0x12_3456_7001
            quiet.mmio.write32(GGTT + 8 * page + 4, 0x3F)
            assert quiet.mmio.read64(GGTT + 8 * page) == 0x3F_3456_7001
        assert vgpu.table.counters == {"updates": 6, "refused": 0}

    def test_the_others_read_0_and_take_nothing(self, quiet, vgpu):
        quiet.handshake()
        pages = (0, quiet.mappable // PAGE - 1, (quiet.mappable + quiet.mappable_size) // PAGE, (1 << 20) - 1)
        for page in pages:
            quiet.mmio.write64(GGTT + 8 * page, 0x1001)
            assert quiet.mmio.read64(GGTT + 8 * page) == 0
        quiet.mmio.write8(GGTT + 8 * (quiet.hidden // PAGE), 1)
        quiet.mmio.write16(GGTT + 8 * (quiet.hidden // PAGE), 1)
        assert quiet.mmio.read64(GGTT + 8 * (quiet.hidden // PAGE)) == 0
        assert vgpu.table.counters == {"updates": 0, "refused": 6}
        assert not any(vgpu.table.entries[: 8 * (quiet.hidden // PAGE)])

    def test_a_reset_clears_it(self, quiet, vgpu):
        quiet.handshake()
        quiet.mmio.write64(GGTT + 8 * (quiet.hidden // PAGE), 0x1001)
        quiet.function.reset()
        quiet.function.enable()
        assert quiet.mmio.read64(GGTT + 8 * (quiet.hidden // PAGE)) == 0


class TestAperture:
    def test_the_processor_reaches_guest_memory_through_the_table(self, quiet):
        quiet.handshake()
        first, second = quiet.page(), quiet.page()
        quiet.map(quiet.mappable, second)
        quiet.map(quiet.mappable + PAGE, first)
        quiet.aperture.write(quiet.mappable + PAGE - 2, b"abcd")
        assert quiet.peek(second + PAGE - 2, 2) == b"ab"
        assert quiet.peek(first, 2) == b"cd"
        assert quiet.aperture.read(quiet.mappable + PAGE - 2, 4) == b"abcd"
        assert quiet.aperture.read(quiet.mappable + 2 * PAGE, 4) == b"\xff" * 4
        quiet.aperture.write32(quiet.mappable + 2 * PAGE, 1)
        assert quiet.aperture.read(0, 8) == b"\xff" * 8

    @pytest.mark.parametrize("y_tiled", [False, True], ids=["x", "y"])
    def test_a_fence_untiles(self, quiet, y_tiled):
        quiet.handshake()
        pitch, pages = 1024, 16
        bus = quiet.pages(pages)
        for number in range(pages):
            quiet.map(quiet.mappable + number * PAGE, bus + number * PAGE)
        last = quiet.mappable + (pages - 1) * PAGE
        value = last << 32 | quiet.mappable | (pitch // 128 - 1) << 32 | y_tiled << 1 | 1
        quiet.mmio.write64(0x100000, value)
        assert quiet.mmio.read64(0x100000) == value
        width, height = (128, 32) if y_tiled else (512, 8)
        for row, column in ((0, 0), (height - 1, width - 4), (height, 0), (1, width), (5, pitch - 4)):
            quiet.aperture.write32(quiet.mappable + row * pitch + column, row << 16 | column)
            tile = row // height * (pitch // width) + column // width
            x, y = column % width, row % height
            within = x // 16 * 512 + y * 16 + x % 16 if y_tiled else y * 512 + x
            assert quiet.load(bus + tile * PAGE + within) == row << 16 | column
            assert quiet.aperture.read32(quiet.mappable + row * pitch + column) == row << 16 | column

    def test_fences_that_are_not_there(self, quiet):
        for index in range(4, 32):
            quiet.mmio.write64(0x100000 + 8 * index, 0xFFFF_FFFF)
            assert quiet.mmio.read64(0x100000 + 8 * index) == 0
        assert Fence.of(1 << 44 | 0x2001) == Fence()
        assert Fence.of(0) == Fence()


def test_a_vgpu_can_t_be_saved_and_says_so(vgpu):
    from umdev.device import SaveError

    with pytest.raises(SaveError, match="can't be saved"):
        vgpu.save()
