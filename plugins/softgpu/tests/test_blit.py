"""Fills and copies against numpy, byte for byte, over everything that a rectangle may be."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from umdev_softgpu import Blit, Brush, Budget, Fault, Format, Level, Masks, Reason, Rect, Step, Surface, Tiling

sys.path.insert(0, str(Path(__file__).parent))
from softgpu_reference import addresses, draw

PAGE = 4096
PAGES = 192  # in front of the tables
TABLES = PAGES * PAGE
SHAPE = Format([Level(30, 9), Level(21, 9), Level(12, 9)], 39)
BITS = [Masks(writable=2)] * 3
FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
TILE_WIDTH = {Tiling.LINEAR: 1, Tiling.X: 512, Tiling.Y: 128, Tiling.BLOCKS: 64}
PIXELS = [1, 2, 4]


class Picture:
    """A space of scattered pages, and what numpy thinks of it."""

    def __init__(self, guest, port):
        self.guest = guest
        order = list(range(PAGES))
        random.Random(7).shuffle(order)
        self.order = np.array(order)
        self.space = port.paged(SHAPE, BITS)
        base = guest.BASE + TABLES
        guest.memory[TABLES : TABLES + 8] = (base + PAGE | 3).to_bytes(8, "little")
        guest.memory[TABLES + PAGE : TABLES + PAGE + 8] = (base + 2 * PAGE | 3).to_bytes(8, "little")
        entries = b"".join((guest.BASE + page * PAGE | 3).to_bytes(8, "little") for page in order)
        guest.memory[TABLES + 2 * PAGE : TABLES + 2 * PAGE + len(entries)] = entries
        self.space.set_root(base)
        self.content = np.random.default_rng(3).integers(0, 256, TABLES, dtype=np.uint8)

    def physical(self, addresses):
        return self.order[addresses // PAGE] * PAGE + addresses % PAGE

    def check(self, target, rect, pixel_bytes, rop, step_units, **how):
        expected = self.content.copy()
        mask = how.pop("write_mask", None)
        draw(expected, self.physical, target, rect, pixel_bytes, rop, mask=mask, **how)
        self.guest.memory[:TABLES] = self.content.tobytes()
        blit = Blit(target, rect, pixel_bytes, rop, write_mask=mask, **how)
        for _ in range(100_000):
            outcome = blit.step(Budget(step_units))
            if outcome is not Step.MORE:
                break
        assert outcome is Step.DONE, str(outcome)
        seen = np.frombuffer(self.guest.memory[:TABLES], np.uint8)
        wrong = np.flatnonzero(seen != expected)
        assert not len(wrong), f"{len(wrong)} bytes differ, the first at {wrong[0]:#x}"


@pytest.fixture
def picture(guest, port):
    return Picture(guest, port)


@st.composite
def surfaces(draw, picture, first_page, pages, pixel_bytes):
    """A surface in a part of the space, with a rectangle size that fits: (surface, width, height) in pixels."""
    tiling = draw(st.sampled_from(list(Tiling)))
    room = pages * PAGE
    block_rows, block_layers = (
        draw(st.tuples(st.integers(0, 3), st.integers(0, 2))) if tiling is Tiling.BLOCKS else (0, 0)
    )
    if tiling is Tiling.LINEAR:
        pitch = draw(st.one_of(st.integers(1, 3000), st.sampled_from([64, 1024, 4096, 8192])))
        start = draw(st.integers(0, PAGE))
        rows = min((room - start) // pitch, 200)
        if draw(st.booleans()):
            return Surface(picture.space, first_page * PAGE + start, pitch), pitch // pixel_bytes, rows
        last_row = first_page * PAGE + start + (rows - 1) * pitch
        return Surface(picture.space, last_row, -pitch), pitch // pixel_bytes, rows
    pitch = TILE_WIDTH[tiling] * draw(st.integers(1, 8))
    rows_of_tile = {Tiling.X: 8, Tiling.Y: 32, Tiling.BLOCKS: 8 << block_rows}[tiling]
    rows = (room >> block_layers) // (pitch * rows_of_tile) * rows_of_tile
    surface = Surface(picture.space, first_page * PAGE, pitch, tiling, block_rows, block_layers)
    return surface, pitch // pixel_bytes, min(rows, 200)


@st.composite
def patterns(draw, pixel_bytes):
    if draw(st.booleans()):
        return draw(st.integers(0, (1 << 8 * pixel_bytes) - 1))
    pixels = np.random.default_rng(draw(st.integers(0, 9))).bytes(64 * pixel_bytes)
    return Brush(pixels, draw(st.integers(-20, 20)), draw(st.integers(-20, 20)))


def rects(draw, width, height):
    x, y = draw(st.integers(0, max(width - 1, 0))), draw(st.integers(0, max(height - 1, 0)))
    return Rect(x, y, draw(st.integers(0, width - x)), draw(st.integers(0, height - y)))


@FIXTURES
@given(data=st.data())
def test_fills(picture, data):
    pixel_bytes = data.draw(st.sampled_from(PIXELS))
    surface, width, height = data.draw(surfaces(picture, 0, 96, pixel_bytes))
    rect = rects(data.draw, width, height)
    clip = data.draw(st.none() | st.builds(Rect, *[st.integers(-50, 400)] * 2, *[st.integers(0, 400)] * 2))
    rop = data.draw(st.sampled_from([0xF0, 0xF0, 0x00, 0xFF, 0x0F, 0x5A, 0x55, 0xA0, 0xFA, 0xA5, 0x50]))
    picture.check(
        surface,
        rect,
        pixel_bytes,
        rop,
        data.draw(st.sampled_from([1 << 40, 5000, 700])),
        pattern=data.draw(patterns(pixel_bytes)),
        clip=clip,
        write_mask=data.draw(st.none() | st.integers(0, (1 << 8 * pixel_bytes) - 1)),
    )


@FIXTURES
@given(data=st.data())
def test_copies(picture, data):
    pixel_bytes = data.draw(st.sampled_from(PIXELS))
    target, width, height = data.draw(surfaces(picture, 0, 96, pixel_bytes))
    source, source_width, source_height = data.draw(surfaces(picture, 96, 96, pixel_bytes))
    rect = rects(data.draw, min(width, source_width), min(height, source_height))
    at = (
        data.draw(st.integers(0, source_width - rect.width)),
        data.draw(st.integers(0, source_height - rect.height)),
    )
    clip = data.draw(st.none() | st.builds(Rect, *[st.integers(-50, 400)] * 2, *[st.integers(0, 400)] * 2))
    picture.check(
        target,
        rect,
        pixel_bytes,
        data.draw(st.sampled_from([0xCC, 0xCC, *range(256)])),
        data.draw(st.sampled_from([1 << 40, 5000, 700])),
        pattern=data.draw(patterns(pixel_bytes)),
        source=source,
        at=at,
        clip=clip,
        write_mask=data.draw(st.none() | st.integers(0, (1 << 8 * pixel_bytes) - 1)),
    )


@FIXTURES
@given(data=st.data())
def test_bytes_of_a_row(picture, data):
    surface, width, height = data.draw(surfaces(picture, 0, 96, 1))
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, max(height - 1, 0)))
    length = data.draw(st.integers(0, width - x))
    places = picture.physical(addresses(surface, np.arange(x, x + length), [y])[0])
    picture.guest.memory[:TABLES] = picture.content.tobytes()
    assert surface.read(x, y, length) == picture.content[places].tobytes()
    written = np.random.default_rng(length).integers(0, 256, length, dtype="u1")
    assert surface.write(x, y, written) is None
    expected = picture.content.copy()
    expected[places] = written
    assert picture.guest.memory[:TABLES] == expected.tobytes()


@pytest.mark.parametrize(
    ("kind", "x", "reason"),
    [
        ({"tiling": Tiling.BLOCKS, "address": 1}, 0, Reason.INVALID),
        ({}, 1 << 62, Reason.INVALID),
        ({}, 1 << 70, Reason.INVALID),
        ({"address": 1 << 38}, 0, Reason.NOT_PRESENT),
    ],
)
def test_rows_of_a_surface_that_is_none(picture, kind, x, reason):
    surface = Surface(**{"space": picture.space, "address": 0, "pitch": 64, **kind})
    assert surface.read(x, 0, 4).reason is reason
    assert surface.write(x, 0, b"four").reason is reason
    assert Surface(picture.space, 0, 64).read(0, 0, 1 << 40).reason is Reason.INVALID


@FIXTURES
@given(data=st.data())
def test_overlapping_copies_in_one_surface(picture, data):
    pixel_bytes = data.draw(st.sampled_from(PIXELS))
    surface, width, height = data.draw(surfaces(picture, 0, 96, pixel_bytes))
    rect = rects(data.draw, width, height)
    near = lambda place, size, room: st.integers(max(0, place - 40), min(place + 40, room - size))  # noqa: E731
    at = (data.draw(near(rect.x, rect.width, width)), data.draw(near(rect.y, rect.height, height)))
    picture.check(
        surface,
        rect,
        pixel_bytes,
        data.draw(st.sampled_from([0xCC, 0x66, 0x33, 0xCA])),
        data.draw(st.sampled_from([1 << 40, 5000, 700])),
        pattern=data.draw(patterns(pixel_bytes)),
        source=surface,
        at=at,
    )


@FIXTURES
@given(
    shift=st.integers(-9000, 9000),
    pitch=st.integers(1, 5000),
    height=st.integers(1, 20),
    width=st.integers(1, 5000),
    rop=st.sampled_from([0xCC, 0x66, 0x96]),
    units=st.sampled_from([1 << 40, 3000]),
)
def test_overlapping_copies_at_any_distance(picture, shift, pitch, height, width, rop, units):
    """As `memmove` for rectangles: both linear, of one pitch, from anywhere to anywhere."""
    width = min(width, pitch)
    start = 20 * PAGE
    target, source = Surface(picture.space, start, pitch), Surface(picture.space, start + shift, pitch)
    picture.check(target, Rect(0, 0, width, height), 1, rop, units, source=source, pattern=0xA7)


@FIXTURES
@given(pixel_bytes=st.sampled_from([3, 6, 8, 12, 16]), data=st.data())
def test_fills_of_odd_and_large_pixels(picture, pixel_bytes, data):
    pitch = data.draw(st.integers(pixel_bytes, 5000))
    rect = rects(data.draw, pitch // pixel_bytes, 40)
    color = data.draw(st.integers(0, (1 << 8 * pixel_bytes) - 1))
    picture.check(Surface(picture.space, 5, pitch), rect, pixel_bytes, 0xF0, 1 << 40, pattern=color)


@pytest.mark.parametrize("rop", range(256))
def test_every_raster_operation(picture, rop):
    source, target = Surface(picture.space, 100 * PAGE, 517), Surface(picture.space, 3, 600)
    brush = Brush(np.random.default_rng(1).bytes(256), 3, 5)
    picture.check(target, Rect(2, 1, 111, 9), 4, rop, 1 << 40, source=source, at=(3, 4), pattern=brush)


@pytest.mark.parametrize("change", [
    {"pixel_bytes": 0},
    {"pixel_bytes": 17},
    {"rop": 256},
    {"rect": Rect(1 << 33, 0, 1, 1)},
    {"rect": Rect(0, -(1 << 33), 1, 1)},
    {"rect": Rect(0, 0, 1 << 32, 1)},
    {"rect": Rect(0, 0, -1, 1)},
    {"clip": Rect(0, 0, 1 << 40, 1)},
    {"at": (1 << 62, 0)},
    {"pattern": Brush(b"short")},
    {"pattern": Brush(bytes(192)), "pixel_bytes": 3},
    {"target": {"pitch": 1 << 33}},
    {"target": {"pitch": -(1 << 62)}},
    {"target": {"tiling": 7}},
    {"target": {"tiling": Tiling.X, "pitch": 500}},
    {"target": {"tiling": Tiling.X, "pitch": -512}},
    {"target": {"tiling": Tiling.X, "pitch": 0}},
    {"target": {"tiling": Tiling.Y, "pitch": 128, "address": 16}},
    {"target": {"tiling": Tiling.BLOCKS, "pitch": 64, "block_rows": 6}},
    {"target": {"tiling": Tiling.BLOCKS, "pitch": 64, "block_layers": 6}},
    {"target": {"tiling": Tiling.BLOCKS, "pitch": 64, "block_layers": 1 << 16}},
    {"target": {"tiling": Tiling.BLOCKS, "pitch": 64, "address": 256}},
])  # fmt: skip
def test_numbers_that_no_hardware_takes(picture, change):
    kind = {"address": 0, "pitch": 512, **change.pop("target", {})}
    how = {"rect": Rect(0, 0, 8, 8), "pixel_bytes": 4, "rop": 0xCC, "at": (0, 0), "pattern": 0, **change}
    picture.guest.memory[:TABLES] = picture.content.tobytes()
    blit = Blit(Surface(picture.space, **kind), source=Surface(picture.space, 0, 512), **how)
    assert blit.step(Budget()) == Fault(Reason.INVALID, write=True)
    assert picture.guest.memory[:TABLES] == picture.content.tobytes()


def test_copy_without_a_source(picture):
    assert Blit(Surface(picture.space, 0, 64), Rect(0, 0, 1, 1), 4, 0xCC).step(Budget()).reason is Reason.INVALID


@pytest.mark.parametrize("rect", [Rect(0, 0, 0, 5), Rect(5, 5, 5, 0), Rect(-9, 0, 9, 9), Rect(9, 9, 100, 100)])
def test_nothing_to_draw(picture, rect):
    blit = Blit.fill(Surface(picture.space, 1 << 60, 512), rect, 4, 7, clip=Rect(0, 0, 9, 9))
    assert blit.step(Budget()) is Step.DONE


def test_fault_in_the_middle_keeps_what_was_drawn(picture):
    """The last page is not there: rows before it are drawn, and the answer says where it ended."""
    end = PAGES * PAGE
    picture.guest.memory[:TABLES] = bytes(TABLES)
    outcome = Blit.fill(Surface(picture.space, end - 2000, 1000), Rect(0, 0, 250, 4), 4, 0xFFFF_FFFF).step(Budget())
    assert outcome == Fault(
        Reason.NOT_PRESENT, end, write=True, level=2, beneath=picture.guest.BASE + TABLES + 2 * PAGE + 8 * PAGES
    )
    last = int(picture.order[-1]) * PAGE
    assert picture.guest.memory[last + PAGE - 2000 : last + PAGE] == b"\xff" * 2000


@pytest.mark.parametrize("pitch", [-512, 1 << 32, 0, -(1 << 32)])
def test_addresses_that_wrap(picture, pitch):
    outcome = Blit.fill(Surface(picture.space, 0, pitch), Rect(0, 0, 1 << 31, 1 << 31), 4, 0).step(Budget())
    assert isinstance(outcome, Fault)
    assert outcome.reason in (Reason.NOT_PRESENT, Reason.OUT_OF_RANGE)


def test_huge_rectangle_costs_a_budget_at_a_time(picture):
    """65,535 rows of one pixel in one place: each row costs, so no budget is outrun."""
    blit = Blit.fill(Surface(picture.space, 0, 0), Rect(0, 0, 1, 65535), 1, 5)
    budget = Budget(65_000)
    assert blit.step(budget) is Step.MORE
    assert -100 < budget.units <= 0
    assert blit.step(Budget()) is Step.DONE


def test_stop_and_expiry(picture):
    for end in (Budget.stop, Budget.expire):
        budget = Budget()
        end(budget)
        assert Blit.fill(Surface(picture.space, 0, 64), Rect(0, 0, 4, 4), 4, 5).step(budget) is Step.MORE
        assert budget.used == 0


def test_read_only_target(picture):
    entry = TABLES + 2 * PAGE + 8 * 5
    value = int.from_bytes(picture.guest.memory[entry : entry + 8], "little")
    picture.guest.memory[entry : entry + 8] = (value & ~2).to_bytes(8, "little")
    picture.space.invalidate()
    outcome = Blit.fill(Surface(picture.space, 4 * PAGE, PAGE), Rect(0, 0, PAGE, 2), 1, 5).step(Budget())
    assert (outcome.reason, outcome.address, outcome.write) == (Reason.NOT_PERMITTED, 5 * PAGE, True)
