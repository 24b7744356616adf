"""The command streamer: lengths, the scan in C, and what each command does."""

import struct

import pytest
from umdev_intel_gvt import scan

from .conftest import (
    BLITTER,
    PAGE,
    RENDER,
    batch_end,
    batch_start,
    load_register,
    pipe_control,
    store,
    store_register,
)

BATCH, DATA = 0x10_0000, 0x20_0000


def packed(*dwords):
    return struct.pack(f"<{len(dwords)}I", *dwords)


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (0, 1),
        (0x02 << 23, 1),
        (0x20 << 23 | 2, 4),
        (0x26 << 23 | 2, 4),
        (0x26 << 23 | 1 << 7 | 2, 4),  # bit 7 invalidates the video engine's cache and is no length
        (0x22 << 23 | 0xFF, 257),
        (0x6904_0000, 1),
        (0x680B_0000, 1),
        (0x7A00_0004, 6),
        (0x7936_0005, 7),
        (2 << 29 | 0x50 << 22 | 5, 7),
        (1 << 29, 0),
        (4 << 29, 0),
    ],
    ids=hex,
)
def test_lengths(header, length):
    assert scan.length(header) == length


def test_the_scan_stops_at_what_has_an_effect():
    scanner = scan.Scanner()
    words = packed(0, 0, 0x6904_0000, 0x7936_0001, 1, 2, 0x05 << 23, *store(0, 0), 0)
    found = scanner.scan(words, 0, len(words) // 4)
    assert (found.at, found.stop, found.length, found.commands, found.states) == (7, scan.EXECUTE, 4, 5, 2)
    found = scanner.scan(words, 11, len(words) // 4)
    assert (found.at, found.stop, found.commands) == (1, scan.END, 1)


def test_the_scan_says_what_is_cut_off():
    scanner = scan.Scanner()
    words = packed(0, 0x7936_0005, 1, 2)
    found = scanner.scan(words, 0, len(words) // 4)
    assert (found.at, found.stop, found.length) == (1, scan.PARTIAL, 7)
    found = scanner.scan(packed(0, 1 << 29), 0, 2)
    assert (found.at, found.stop, found.length) == (1, scan.UNKNOWN, 0)


@pytest.fixture
def stream(loopback_driver, vgpu):
    """`stream(dwords)` runs a batch on the render engine with a page of data; what the page holds."""
    driver = loopback_driver
    table = driver.table()
    pages, data = driver.pages(3), driver.page()
    for number in range(3):
        table.map(BATCH + number * PAGE, pages + number * PAGE)
    table.map(DATA, data)

    def run(dwords, base=RENDER, ring=()):
        driver.poke(pages, packed(*dwords))
        assert driver.run(base, [*ring, *batch_start(BATCH)], table)[-1][0] == 0x18
        assert vgpu.errors == 0
        return list(struct.unpack("<1024I", driver.peek(data, PAGE)))

    return run


def test_a_long_state_lands_on_its_end(stream):
    """Packets of every length, across two page borders, and a store after them."""
    state = []
    length = 2
    while len(state) < 2200:
        state += [0x7800_0000 | length - 2, *([0xDEAD_BEEF] * (length - 1))]
        length = 2 + (length + 6) % 250
    found = stream([*state, *store(DATA + 8, 77), *batch_end()])
    assert found[2] == 77
    assert sum(found) == 77


def test_stores_of_both_sizes(stream):
    quadword = [0x20 << 23 | 1 << 21 | 3, DATA + 8, 0, 0x1111, 0x2222]
    found = stream([*store(DATA, 5), *quadword, *batch_end()])
    assert found[:4] == [5, 0, 0x1111, 0x2222]


def test_registers_go_to_memory_and_back(stream):
    general = RENDER + 0x600
    load = [0x29 << 23 | 2, general + 8, DATA, 0]
    move = [0x2A << 23 | 1, general + 8, general + 16]
    found = stream(
        [
            *store(DATA, 0xABC),
            *load,
            *move,
            *store_register(general + 16, DATA + 4),
            *load_register(0x7014, 0x0003_0001),
            *store_register(0x7014, DATA + 8),
            *batch_end(),
        ]
    )
    assert found[:3] == [0xABC, 0xABC, 1]


def test_arithmetic(stream):
    general = RENDER + 0x600
    load_a, load_b, add, subtract = 0x080 << 20 | 0x20 << 10, 0x080 << 20 | 0x21 << 10 | 1, 0x100 << 20, 0x101 << 20
    accumulator = 0x31
    program = [load_a, load_b, add, 0x180 << 20 | 2 << 10 | accumulator, subtract, 0x180 << 20 | 3 << 10 | accumulator]
    found = stream(
        [
            *load_register(general, 7),
            *load_register(general + 4, 1),
            *load_register(general + 8, 9),
            0x1A << 23 | len(program) - 1,
            *program,
            *store_register(general + 16, DATA),
            *store_register(general + 20, DATA + 4),
            *store_register(general + 24, DATA + 8),
            *store_register(general + 28, DATA + 12),
            *batch_end(),
        ]
    )
    assert found[:4] == [16, 1, 0xFFFF_FFFE, 0]


def test_memory_is_copied_and_conditions_end_a_batch(stream):
    copy = [0x2E << 23 | 3, DATA + 4, 0, DATA, 0]
    end_if_not_above = [0x36 << 23 | 2, 5, DATA, 0]
    found = stream([*store(DATA, 6), *copy, *end_if_not_above, *store(DATA + 8, 1), *batch_end()])
    assert found[:3] == [6, 6, 1]
    found = stream([*store(DATA, 5), *end_if_not_above, *store(DATA + 12, 1), *batch_end()])
    assert found[3] == 0


def test_second_level_batches_return_and_chained_ones_do_not(stream, loopback_driver):
    inner = BATCH + 2 * PAGE
    words = [*batch_start(inner, second_level=True), *store(DATA, 1), *batch_end()]
    words += [0] * (2 * PAGE // 4 - len(words))
    words += [*store(DATA + 4, 2), *batch_end()]
    assert stream(words)[:2] == [1, 2]
    words[:3] = batch_start(inner)
    words[3:7] = store(DATA + 8, 3)
    assert stream(words)[:3] == [1, 2, 0]


def test_timestamps_and_the_flush_event(stream, loopback_driver, vgpu):
    stamp = [0x7A00_0004, 3 << 14 | 1 << 8, DATA, 0, 0, 0]
    before = vgpu.timestamp()
    found = stream([*stamp, *batch_end()])
    assert before <= found[0] | found[1] << 32 <= vgpu.timestamp()


def test_a_ring_s_commands_reach_the_global_table(stream, loopback_driver):
    bus, graphics = loopback_driver.status[RENDER]
    stream([*batch_end()], ring=pipe_control(graphics + 0x300, 0x55))
    assert loopback_driver.load(bus + 0x300) == 0x55


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_fast_copy(stream, depth):
    size = {0: 1, 1: 2, 3: 4}[depth]
    words = [
        *store(DATA, 0x0403_0201),
        2 << 29 | 0x42 << 22 | 8,
        depth << 24 | 64,
        1 << 16 | 4,
        2 << 16 | 5,
        DATA,
        0,
        0,
        64,
        DATA,
        0,
        *batch_end(),
    ]
    found = stream(words, base=BLITTER)
    assert struct.pack("<I", found[(64 + 4 * size) // 4])[:size] == bytes([1, 2, 3, 4])[:size]


def test_rows_of_bytes(stream):
    fill = [2 << 29 | 0x40 << 22 | 4, 3 << 24 | 0xF0 << 16 | 64, 2 << 16 | 16, DATA, 0, 0x1234_5678]
    copy = [2 << 29 | 0x43 << 22 | 6, 3 << 24 | 0xCC << 16 | 64, 2 << 16 | 8, DATA + 1024, 0, 64, DATA, 0]
    found = stream([*fill, *copy, *batch_end()], base=BLITTER)
    assert found[:5] == found[16:21] == [0x1234_5678] * 4 + [0]
    assert found[256:260] == found[272:276] == [0x1234_5678] * 2 + [0] * 2


def test_commands_are_counted_by_name(stream, vgpu):
    stream([*store(DATA, 1), 0, 0, 0x7936_0001, 0, 0, *batch_end()])
    counted = vgpu.query("engine_state")["engines"]["render"]["commands"]
    assert counted == {
        "MI_STORE_DATA_IMM": 1,
        "MI_BATCH_BUFFER_START": 1,
        "MI_BATCH_BUFFER_END": 1,
        "without effect": 4,
    }
