"""Shadow tables by write protection, compared with the reference: walking the driver's own tables."""

import random

import pytest
from umdev.device import InvalidArgument
from umdev_intel_gvt.shadow import SHADOW_MODES

from .conftest import BLITTER, PAGE, PVINFO, RENDER, Driver, fill, pipe_control, store

BASE = 0x4000_0000
PAGES = 24
MODES = ("off", "trap", "track", "auto")


@pytest.fixture
def make(gpu, loopback_function):
    """`make("trap")`: a vGPU whose tables are shadowed that way, and its driver."""
    drivers = []

    def make(shadow, attach=loopback_function):
        vgpu = gpu.create("i915-GVTg_V5_8", attributes={"shadow": shadow})
        drivers.append(Driver(attach(vgpu)))
        return vgpu, drivers[-1]

    yield make
    for driver in drivers:
        driver.close()


def remapped(driver, seed):
    """Map, fill, map otherwise, fill again, a dozen times; what memory holds then, page by page."""
    chance = random.Random(seed)
    table = driver.table()
    pages = [driver.page() for _ in range(PAGES)]
    for number in range(12):
        order = chance.sample(pages, PAGES)
        for place, page in enumerate(order):
            table.map(BASE + place * (PAGE << chance.choice((0, 9, 18))), page)
        first = chance.randrange(0, 8)
        colour = chance.getrandbits(32)
        for place, page in enumerate(order[: PAGES // 2]):
            table.map(BASE + place * PAGE, page)
        driver.run(BLITTER, fill(BASE + first * PAGE, PAGE, 0, 0, 1024, 1, colour), table)
        driver.run(RENDER, store(BASE + (number % 8) * PAGE + 4 * number, number), table)
    return [driver.peek(page, PAGE) for page in pages]


@pytest.mark.parametrize("seed", range(3))
def test_shadows_lead_to_the_same_memory(make, seed):
    found = {}
    for mode in MODES:
        vgpu, driver = make(mode)
        found[mode] = remapped(driver, seed)
        assert vgpu.errors == 0
        if mode != "off":
            state = vgpu.query("engine_state")["shadows"]
            assert state["tables"] >= 4
            assert state["refused"] == 0
            assert state["mode"] == ("trap" if mode == "auto" else mode)
            assert state["reads"] > state["tables"]
    assert all(pages == found["off"] for pages in found.values())
    assert any(page != bytes(PAGE) for page in found["off"])


@pytest.mark.parametrize("bus", ["vfio-user", "vfio-user-messages"])
def test_over_a_socket_the_host_gives_what_it_can(gpu, bus, make):
    from umdev_testkit.functions import attach

    vgpu, driver = make("auto", lambda device: attach(device, bus))
    table, page = driver.table(), driver.page()
    table.map(BASE, page)
    if bus == "vfio-user":
        driver.run(RENDER, store(BASE, 5), table)
        assert driver.load(page) == 5
        table.map(BASE, other := driver.page())
        driver.run(RENDER, store(BASE, 6), table)
        assert (driver.load(page), driver.load(other)) == (5, 6)
    assert vgpu.shadows.mode is not None or bus == "vfio-user-messages"
    driver.close()
    driver.function.close()
    vgpu.close()


def test_a_changed_table_counts_after_an_invalidation_in_the_ring(make):
    for mode in MODES:
        vgpu, driver = make(mode)
        table, first, second = driver.table(), driver.page(), driver.page()
        table.map(BASE, first)
        context = driver.context(RENDER, table)
        context.emit(store(BASE, 1))
        driver.submit(context)
        driver.wait_idle(RENDER)
        table.map(BASE, second)
        _, graphics = driver.status[RENDER]
        invalidate = pipe_control(graphics + 0x200, 1)
        invalidate[1] |= 1 << 18
        context.emit([*invalidate, *store(BASE, 2)])
        driver.submit(context)
        driver.wait_idle(RENDER)
        assert (driver.load(first), driver.load(second)) == (1, 2)
        assert vgpu.errors == 0


def test_large_pages_are_split(make):
    _, driver = make("trap")
    table, page = driver.table(), driver.page()
    table.map(BASE, page)
    directory = driver.load(driver.load(table.root, 8) & ~0xFFF | 0, 8) & ~0xFFF
    entry = driver.load(driver.load(table.root, 8) & ~0xFFF | 8 * (BASE >> 30), 8) & ~0xFFF
    assert directory == 0
    large = page & ~0x1F_FFFF
    driver.save(entry, large | 0x83, 8)
    driver.run(RENDER, store(BASE + (page - large), 0x600D), table)
    assert driver.load(page) == 0x600D


@pytest.mark.parametrize("mode", MODES)
def test_a_large_page_that_may_only_be_read_stays_so(make, mode):
    vgpu, driver = make(mode)
    table, page = driver.table(), driver.page()
    table.map(BASE, page)
    entry = driver.load(driver.load(table.root, 8) & ~0xFFF | 8 * (BASE >> 30), 8) & ~0xFFF
    driver.save(entry, page & ~0x1F_FFFF | 0x81, 8)
    context = driver.context(RENDER, table)
    context.emit(store(BASE + page % (2 << 20), 1))
    driver.submit(context)
    driver.wait_until(lambda: not vgpu.engines[0].busy or vgpu.engines[0].error)
    assert "not permitted" in vgpu.engines[0].error
    assert driver.load(page) == 0


def test_roots_that_are_no_memory_are_not_kept(make):
    vgpu, _ = make("track")
    with vgpu.locked():
        assert {vgpu.shadows.root(1 << 38 | number * PAGE) for number in range(100)} == {0}
        assert not vgpu.shadows._roots


def test_what_is_destroyed_is_given_back(make):
    vgpu, driver = make("trap")
    tables = []
    for _ in range(5):
        table, page = driver.table(), driver.page()
        table.map(BASE, page)
        driver.run(RENDER, store(BASE, 1), table)
        tables.append(table)
    assert vgpu.shadows.state["tables"] == 20
    for table in tables:
        driver.mmio.write32(PVINFO + 0x838, table.root & 0xFFFF_FFFF)
        driver.mmio.write32(PVINFO + 0x818, 5)
    assert vgpu.shadows.state["tables"] == 0
    driver.save(tables[0].root, 0, 8)  # not protected any more
    driver.function.reset()
    assert vgpu.pinned.count == 0


def test_a_table_that_points_to_itself_ends(make):
    vgpu, driver = make("trap")
    table = driver.table()
    for entry in range(512):
        driver.save(table.root + 8 * entry, table.root | 3, 8)
    driver.run(RENDER, store(BASE, 1), table)
    assert vgpu.shadows.state["tables"] == 4


def test_more_tables_than_there_is_room_for_are_not_there(make):
    vgpu, driver = make("track")
    table = driver.table()
    middle = driver.page()
    for entry in range(512):
        driver.save(table.root + 8 * entry, middle | 3, 8)
        driver.save(middle + 8 * entry, driver.base + (entry % 1000) * PAGE | 3, 8)
    context = driver.context(RENDER, table)
    context.emit(store(BASE, 1))
    driver.submit(context)
    engine = vgpu.engines[0]
    driver.wait_until(lambda: engine.error or not engine.busy)
    assert vgpu.shadows.state["tables"] <= 4095


def test_modes_that_are_none(gpu):
    with pytest.raises(InvalidArgument, match=", ".join(SHADOW_MODES)):
        gpu.create("i915-GVTg_V5_8", attributes={"shadow": "yes"})


def test_what_the_engine_comes_back_to_is_pinned(make):
    vgpu, driver = make("off")
    driver.map(driver.hidden, 1 << 38)  # a page that is no memory ends this `hold`, and hinders no other one
    driver.map(driver.hidden + PAGE, driver.page())
    with vgpu.locked():
        vgpu.pinned.hold(vgpu.engines[0].memory.ggtt, driver.hidden, 2 * PAGE)
        assert vgpu.pinned.count == 0
    context = driver.context(RENDER)
    context.emit(store(0, 0)[:0])
    context.emit([0, 0])
    driver.submit(context)
    driver.wait_idle(RENDER)
    assert vgpu.pinned.count == vgpu.memory.pinned == context.size // PAGE + 2 + 1
