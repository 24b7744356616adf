"""i915's exact sequence with no VM, on every bus: memory, status page, status buffer and message are looked at."""

import numpy as np
import pytest

from .conftest import (
    BLITTER,
    ENGINES,
    GT_BLOCK,
    PAGE,
    RENDER,
    SECONDS,
    USER,
    batch_end,
    batch_start,
    copy,
    fill,
    flush,
    pipe_control,
    store,
    user_interrupt,
)

WIDTH = HEIGHT = 64
COLOUR = 0xFF80_4020


def test_a_breadcrumb_comes_back_on_every_engine(driver):
    for number, base in enumerate(ENGINES.values(), 0x100):
        bus, graphics = driver.status[base]
        context = driver.context(base)
        breadcrumb = pipe_control if base == RENDER else flush
        context.emit([*breadcrumb(graphics + 0x200, number), *user_interrupt()])
        driver.submit(context)
        assert driver.interrupts.wait(timeout=SECONDS) >= 1
        events = driver.wait_idle(base)
        assert driver.load(bus + 0x200) == number
        assert events == [(0x01, 0), (0x18, context.identity)]
        assert context.head == context.tail


def test_the_user_interrupt_is_in_its_engine_s_half(driver):
    for base in ENGINES.values():
        block, shift = GT_BLOCK[base]
        context = driver.context(base)
        context.emit(user_interrupt())
        driver.submit(context)
        seen = 0
        events = []
        while not events or not events[-1][0] & 8:
            assert driver.interrupts.wait(timeout=SECONDS)
            seen |= driver.serve_interrupt().get(block, 0)
            events += driver.events(base)
        seen |= driver.serve_interrupt().get(block, 0)
        assert seen >> shift & 0xFFFF == 0x101


def test_a_blit_is_executed(driver):
    table = driver.table()
    surface = driver.pages(8)
    address = 0x1_2345_6000
    for number in range(8):
        table.map(address + number * PAGE, surface + number * PAGE)
    batch = driver.page()
    table.map(0x7000_0000, batch)
    pitch = WIDTH * 4
    commands = [
        *fill(address, pitch, 0, 0, WIDTH, HEIGHT, 0x1122_3344),
        *fill(address, pitch, 8, 4, 40, 20, COLOUR),
        *copy(address + 4 * PAGE, pitch, 0, 0, 32, 16, address, pitch, 8, 4),
        *batch_end(),
    ]
    for number, dword in enumerate(commands):
        driver.save(batch + 4 * number, dword)
    events = driver.run(BLITTER, batch_start(0x7000_0000), table)
    assert events[-1][0] == 0x18
    expected = np.full((2 * HEIGHT, WIDTH), 0, "<u4")
    expected[:HEIGHT] = 0x1122_3344
    expected[4:20, 8:40] = COLOUR
    expected[HEIGHT : HEIGHT + 16, :32] = expected[4:20, 8:40]
    assert driver.peek(surface, 8 * PAGE) == expected.tobytes()


def test_two_elements_run_one_after_the_other(driver):
    table = driver.table()
    page = driver.page()
    table.map(0x10_0000, page)
    first, second = driver.context(RENDER, table), driver.context(RENDER, table)
    first.emit(store(0x10_0000, 1))
    second.emit(store(0x10_0004, 2))
    driver.submit(first, second)
    events = driver.wait_idle(RENDER)
    assert events == [(0x01, 0), (0x14, first.identity), (0x18, second.identity)]
    assert (driver.load(page), driver.load(page + 4)) == (1, 2)


def test_a_thousand_submissions_around_the_ring(loopback_driver):
    driver = loopback_driver
    bus, graphics = driver.status[BLITTER]
    context = driver.context(BLITTER)
    for number in range(1, 1001):
        context.emit([*flush(graphics + 0x200, number), *user_interrupt()])
        driver.submit(context)
        driver.wait_until(lambda wanted=number: driver.load(bus + 0x200) == wanted)
        driver.events(BLITTER)
    driver.wait_until(lambda: context.head == context.tail)
    assert driver.function.config is not None


@pytest.mark.parametrize("base", ENGINES.values(), ids=ENGINES)
def test_an_engine_that_runs_for_ever_is_reset_and_the_next_batch_runs(loopback_driver, vgpu, base):
    driver = loopback_driver
    table = driver.table()
    batch, page = driver.page(), driver.page()
    table.map(0x10_0000, batch)
    table.map(0x20_0000, page)
    for number, dword in enumerate(batch_start(0x10_0000)):
        driver.save(batch + 4 * number, dword)
    endless = driver.context(base, table)
    endless.emit(batch_start(0x10_0000))
    driver.submit(endless)
    assert driver.mmio.read32(base + 0x238) == endless.identity
    driver.reset_engine(base)
    assert driver.mmio.read32(base + 0x238) == 0
    driver.events(base)
    assert driver.run(base, store(0x20_0000, 7), table)[-1][0] == 0x18
    assert driver.load(page) == 7


def test_a_status_page_of_the_driver_decides_where_events_go(loopback_driver):
    driver = loopback_driver
    events = driver.run(BLITTER, user_interrupt())
    assert len(events) == 2
    assert driver.mmio.read32(BLITTER + 0x3A0) & 7 == 1
    assert driver.mmio.read64(BLITTER + 0x370 + 8) == driver.load(driver.status[BLITTER][0] + 0x48, 8)
    assert USER == 1
