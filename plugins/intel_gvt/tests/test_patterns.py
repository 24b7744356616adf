"""Patterns, setups, clipping and atomics of the command streamer, against numpy."""

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import BLITTER, PAGE, batch_end, batch_start

BATCH, DATA, PATTERN = 0x10_0000, 0x20_0000, 0x30_0000
WIDTH, HEIGHT = 32, 24
DEPTHS = {0: np.uint8, 1: np.uint16, 2: np.uint16, 3: np.uint32}
CLIP, SOLID, TRANSPARENT = 1 << 30, 1 << 31, 1 << 28
BOTH = 3 << 20
FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
ROPS = {
    0xF0: lambda pattern, target: pattern,
    0x0F: lambda pattern, target: ~pattern,
    0x5A: lambda pattern, target: pattern ^ target,
    0xA0: lambda pattern, target: pattern & target,
    0xFA: lambda pattern, target: pattern | target,
    0x55: lambda pattern, target: ~target,
}


def blit(opcode, *words, flags=0):
    return [2 << 29 | opcode << 22 | flags | len(words) - 1, *words]


def corner(x, y):
    return (y & 0xFFFF) << 16 | x & 0xFFFF


class Stage:
    """A surface, a pattern, and one context of the blitter that draws."""

    def __init__(self, driver, vgpu):
        self.driver, self.vgpu = driver, vgpu
        table = driver.table()
        self.batch, self.data, self.pattern = driver.page(), driver.page(), driver.page()
        for address, page in ((BATCH, self.batch), (DATA, self.data), (PATTERN, self.pattern)):
            table.map(address, page)
        self.context = driver.context(BLITTER, table)

    def draw(self, words, before, pattern=b""):
        """The surface after the batch."""
        self.driver.poke(self.data, before.tobytes())
        self.driver.poke(self.pattern, pattern)
        dwords = [*words, *batch_end()]
        self.driver.poke(self.batch, struct.pack(f"<{len(dwords)}I", *dwords))
        self.context.emit(batch_start(BATCH))
        self.driver.submit(self.context)
        self.driver.wait_idle(BLITTER)
        assert self.vgpu.errors == 0
        return np.frombuffer(self.driver.peek(self.data, before.nbytes), before.dtype).reshape(before.shape)


@pytest.fixture
def stage(loopback_driver, vgpu):
    return Stage(loopback_driver, vgpu)


def surface(depth):
    kind = DEPTHS[depth]
    return (np.arange(WIDTH * HEIGHT, dtype=np.uint64) * 2654435761 >> 7).astype(kind).reshape(HEIGHT, WIDTH)


def tile(pattern, seeds):
    """An 8 by 8 pattern over the surface: a seed is the column, or row, that falls on 0."""
    rows, columns = np.arange(HEIGHT)[:, None], np.arange(WIDTH)[None, :]
    return pattern[(rows + seeds[1]) % 8, (columns + seeds[0]) % 8]


def drawn(before, pattern, rect, rop, clip=None):
    x1, y1, x2, y2 = rect
    if clip is not None:
        x1, y1, x2, y2 = max(x1, clip[0]), max(y1, clip[1]), min(x2, clip[2]), min(y2, clip[3])
    after = before.copy()
    if x1 < x2 and y1 < y2:
        place = np.s_[y1:y2, x1:x2]
        after[place] = ROPS[rop](pattern[place], before[place])
    return after


def mono(bits, background, foreground, kind):
    rows = np.unpackbits(np.frombuffer(bits, np.uint8)[:, None], axis=1)
    colours = np.array([background, foreground], np.uint64).astype(kind)
    return colours[rows]


rects = st.builds(
    lambda x1, y1, x2, y2: (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)),
    *[st.integers(0, 32), st.integers(0, 24)] * 2,
)
seeds = st.tuples(st.integers(0, 7), st.integers(0, 7))
depths = st.sampled_from(list(DEPTHS))
colours = st.integers(0, 0xFFFF_FFFF)
rops = st.sampled_from(list(ROPS))


def control(depth, rop, flags=0):
    return flags | depth << 24 | rop << 16 | WIDTH * np.dtype(DEPTHS[depth]).itemsize


def seeded(seeds):
    return seeds[0] << 12 | seeds[1] << 8


@FIXTURES
@given(
    data=st.binary(min_size=256, max_size=256), rect=rects, seeds=seeds, depth=depths, rop=rops, inline=st.booleans()
)
def test_coloured_patterns(stage, data, rect, seeds, depth, rop, inline):
    before = surface(depth)
    size = 64 * before.itemsize
    places = (control(depth, rop), corner(*rect[:2]), corner(*rect[2:]), DATA, 0)
    if inline:
        words = blit(0x72, *places, *struct.unpack(f"<{size // 4}I", data[:size]), flags=BOTH | seeded(seeds))
    else:
        words = blit(0x51, *places, PATTERN, 0, flags=BOTH | seeded(seeds))
    pattern = tile(np.frombuffer(data[:size], before.dtype).reshape(8, 8), seeds)
    assert np.array_equal(stage.draw(words, before, data), drawn(before, pattern, rect, rop))


@FIXTURES
@given(
    bits=st.binary(min_size=8, max_size=8),
    rect=rects,
    seeds=seeds,
    depth=depths,
    rop=rops,
    two=st.tuples(colours, colours),
)
def test_patterns_of_one_bit(stage, bits, rect, seeds, depth, rop, two):
    before = surface(depth)
    places = (control(depth, rop), corner(*rect[:2]), corner(*rect[2:]), DATA, 0)
    words = blit(0x52, *places, PATTERN, 0, *two, flags=BOTH | seeded(seeds))
    pattern = tile(mono(bits, *two, before.dtype), seeds)
    assert np.array_equal(stage.draw(words, before, bits), drawn(before, pattern, rect, rop))


@FIXTURES
@given(
    bits=st.binary(min_size=8, max_size=8), clip=rects, again=st.none() | rects, areas=st.lists(rects, max_size=4),
    seeds=seeds, depth=depths, rop=rops, two=st.tuples(colours, colours), solid=st.booleans(), clipped=st.booleans(),
)  # fmt: skip
def test_lines_and_pixels_by_a_setup(stage, bits, clip, again, areas, seeds, depth, rop, two, solid, clipped):
    expected = before = surface(depth)
    flags = (SOLID if solid else 0) | (CLIP if clipped else 0)
    low, high = struct.unpack("<2I", bits)
    words = blit(
        0x11, control(depth, rop, flags), corner(*clip[:2]), corner(*clip[2:]), DATA, 0, *two, low, high, flags=BOTH
    )
    if again:
        words += blit(0x03, corner(*again[:2]), corner(*again[2:]))
    limit = (again or clip) if clipped else None
    pattern = mono(b"\xff" * 8 if solid else bits, *two, before.dtype)
    for number, rect in enumerate(areas):
        if number % 2 and rect[0] < WIDTH and rect[1] < HEIGHT:
            words += blit(0x24, corner(*rect[:2]), flags=seeded(seeds))
            place = (*rect[:2], rect[0] + 1, rect[1] + 1)
        else:
            words += blit(0x25, corner(*rect[:2]), corner(*rect[2:]), flags=seeded(seeds))
            place = rect
        expected = drawn(expected, tile(pattern, seeds), place, rop, limit)
    assert np.array_equal(stage.draw(words, before), expected)


def test_a_setup_of_a_coloured_pattern_clips_fills_too(stage):
    before = surface(3)
    data = bytes(range(256))
    words = blit(0x01, control(3, 0xF0), corner(4, 4), corner(20, 12), DATA, 0, 1, 2, PATTERN, 0, flags=BOTH)
    words += blit(0x25, corner(0, 0), corner(8, 8))
    words += blit(0x50, control(3, 0xF0, CLIP), corner(0, 0), corner(32, 24), DATA, 0, 0x77, flags=BOTH)
    expected = drawn(before, tile(np.frombuffer(data, np.uint32).reshape(8, 8), (0, 0)), (0, 0, 8, 8), 0xF0)
    expected = drawn(expected, np.full_like(before, 0x77), (0, 0, 32, 24), 0xF0, (4, 4, 20, 12))
    assert np.array_equal(stage.draw(words, before, data), expected)


def test_what_is_not_drawn_is_counted_and_the_engine_goes_on(stage, vgpu):
    before = surface(3)
    not_drawn = {"XY_TEXT_BLT": 0x26, "XY_MONO_SRC_COPY_BLT": 0x54, "XY_FULL_BLT": 0x55, "XY_PAT_CHROMA_BLT": 0x76}
    words = [word for opcode in not_drawn.values() for word in blit(opcode, *[0] * 9)]
    words += blit(0x52, control(3, 0xF0, TRANSPARENT), 0, corner(8, 8), DATA, 0, PATTERN, 0, 1, 2, flags=BOTH)
    words += [0x13 << 23, 0, 0x27 << 23 | 1, 0, 0, 0x2C << 23 | 2, 0, 0, 0]
    words += blit(0x50, control(3, 0xF0), 0, corner(1, 1), DATA, 0, 0x77, flags=BOTH)
    assert stage.draw(words, before)[0, 0] == 0x77
    counted = vgpu.query("engine_state")["refused_commands"]
    names = [*not_drawn, "a pattern with transparent pixels", "MI_LOAD_SCAN_LINES_EXCL", "MI_LOAD_URB_MEM"]
    assert counted == {f"{name} is not done here": 1 for name in names}


def test_a_line_without_a_setup_is_an_error(stage, vgpu, loopback_driver):
    stage.context.emit(blit(0x25, 0, corner(1, 1)))
    loopback_driver.submit(stage.context)
    loopback_driver.wait_until(lambda: vgpu.engine_at(BLITTER).error)
    assert "none has been made" in vgpu.engine_at(BLITTER).error


def signed(value, bits):
    return value - (value >> bits - 1 << bits)


ATOMICS = {
    0x1: lambda old, a, b, n: old & a,
    0x2: lambda old, a, b, n: old | a,
    0x3: lambda old, a, b, n: old ^ a,
    0x4: lambda old, a, b, n: a,
    0x5: lambda old, a, b, n: old + 1,
    0x6: lambda old, a, b, n: old - 1,
    0x7: lambda old, a, b, n: old + a,
    0x8: lambda old, a, b, n: old - a,
    0x9: lambda old, a, b, n: a - old,
    0xA: lambda old, a, b, n: old if signed(old, n) >= signed(a, n) else a,
    0xB: lambda old, a, b, n: old if signed(old, n) <= signed(a, n) else a,
    0xC: lambda old, a, b, n: max(old, a),
    0xD: lambda old, a, b, n: min(old, a),
    0xE: lambda old, a, b, n: b if old == a else old,
}


@FIXTURES
@given(
    operation=st.sampled_from(list(ATOMICS)),
    wide=st.booleans(),
    values=st.tuples(*[st.integers(0, (1 << 64) - 1)] * 3),
    same=st.booleans(),
)
def test_atomics(stage, operation, wide, values, same):
    bits = 64 if wide else 32
    old, first, second = (value & (1 << bits) - 1 for value in values)
    first = old if same else first
    header = 0x2F << 23 | wide << 19 | 1 << 18 | (operation | wide << 5) << 8 | 9
    operands = [word for at in (0, 32) for word in (first >> at & 0xFFFF_FFFF, second >> at & 0xFFFF_FFFF)]
    before = np.array([old, 0x1122_3344_5566_7788], np.uint64)
    after = stage.draw([header, DATA, 0, *operands, 0, 0, 0, 0], before)
    expected = ATOMICS[operation](old, first, second, bits) & (1 << bits) - 1
    assert [int(value) for value in after] == [expected, 0x1122_3344_5566_7788]


def test_a_performance_report(stage, vgpu):
    before = np.full(PAGE // 4, 0xFFFF_FFFF, np.uint32)
    after = stage.draw([0x28 << 23 | 2, DATA + 64, 0, 0x1234], before)
    assert after[16] == 0x1234
    assert after[17] <= vgpu.timestamp()
    assert after[18] == stage.context.identity
    assert not after[19:80].any()
    assert (after[:16] == 0xFFFF_FFFF).all()
    assert (after[80:] == 0xFFFF_FFFF).all()
