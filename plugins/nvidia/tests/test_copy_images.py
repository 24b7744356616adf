"""Images of blocks, of any shape and depth, moved by the copy engine: byte for byte against numpy."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import PAGE, REMAP, bind_copy, copy, methods, release, remap

SYSTEM, VRAM, FENCE = 0x2000_0000, 0x4000_0000, 0x6000_0000
PAGES = 64
TARGET, SOURCE = 0x70C, 0x728
FROM_PITCH, TO_PITCH = 0x82, 0x102
FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


@pytest.fixture
def work(vgpu, loopback_driver):
    driver = loopback_driver
    channel = driver.channel(0)
    channel.system, channel.fence = driver.pages(PAGES), driver.page()
    channel.video = driver.vram(PAGES * PAGE)
    channel.tables.map(SYSTEM, channel.system, PAGES, system=True)
    channel.tables.map(VRAM, channel.video, PAGES)
    channel.tables.map(FENCE, channel.fence, system=True)
    driver.invalidate(channel.tables)
    channel.emit(*bind_copy())
    channel.vram, channel.count = vgpu.vram.memory, 0
    return channel


def run(work, *commands):
    work.count += 1
    work.go(*commands, *release(FENCE, work.count))
    work.driver.wait_until(lambda: work.driver.word(work.fence) == work.count, "the fence")


def places(columns, rows, layer, row_bytes, height, rows_log2, layers_log2):
    """Where bytes of an image lie: blocks of one 64-byte column, row after row, layer after layer of blocks."""
    x, y = np.asarray(columns)[None, :], np.asarray(rows)[:, None]
    high, deep = 1 << rows_log2, 1 << layers_log2
    across, down = row_bytes // 64, -(-height // (8 * high))
    block = (layer // deep * down + y // (8 * high)) * across + x // 64
    gob = (block * deep + layer % deep) * high + y // 8 % high
    sector = x // 32 % 2 * 256 + y // 2 % 4 * 64 + x // 16 % 2 * 32 + y % 2 * 16
    return gob * 512 + sector + x % 16


@st.composite
def images(draw, element):
    """Width and height in elements, depth, the block's logarithms; and a rectangle in one layer."""
    high, deep = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    width, height = draw(st.integers(1, 256 // element)), draw(st.integers(1, 50))
    row_bytes = -(-width * element // 64) * 64
    layer_bytes = row_bytes * (-(-height // (8 << high)) * (8 << high))
    depth = draw(st.integers(1, max(1, (PAGES * PAGE // layer_bytes >> deep << deep))))
    layer = draw(st.integers(0, min(depth, PAGES * PAGE // layer_bytes >> deep << deep) - 1))
    x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    rect = x, y, draw(st.integers(1, width - x)), draw(st.integers(1, height - y))
    return width, height, depth, layer, high, deep, row_bytes, rect


def set_image(which, image):
    width, height, depth, layer, high, deep, _, (x, y, _, _) = image
    return methods(which, 1 << 12 | deep << 8 | high << 4, width, height, depth, layer, y << 16 | x)


def in_image(image, element):
    _, height, _, layer, high, deep, row_bytes, (x, y, columns, rows) = image
    return places(
        np.arange(x * element, (x + columns) * element), np.arange(y, y + rows), layer, row_bytes, height, high, deep
    )


def fill(work, seed):
    content = np.random.default_rng(seed).integers(0, 256, PAGES * PAGE, dtype="u1")
    work.vram[work.video : work.video + PAGES * PAGE] = content.tobytes()
    return content


def seen(work):
    return np.frombuffer(work.vram[work.video : work.video + PAGES * PAGE], "u1")


@FIXTURES
@given(data=st.data(), seed=st.integers(0, 99))
def test_into_a_layer_and_out_of_it(work, data, seed):
    image = data.draw(images(1))
    _, _, columns, rows = image[-1]
    expected = fill(work, seed)
    pixels = np.random.default_rng(seed + 100).integers(0, 256, (rows, columns), dtype="u1")
    work.driver.poke(work.system, pixels.tobytes())
    run(
        work,
        *set_image(TARGET, image),
        *set_image(SOURCE, image),
        *copy(SYSTEM, VRAM, columns, rows, source_pitch=columns, flags=FROM_PITCH),
        *copy(VRAM, SYSTEM + 32 * PAGE, columns, rows, target_pitch=columns, flags=TO_PITCH),
    )
    expected[in_image(image, 1)] = pixels
    np.testing.assert_array_equal(seen(work), expected)
    assert work.driver.peek(work.system + 32 * PAGE, pixels.nbytes) == pixels.tobytes()


@FIXTURES
@given(data=st.data(), seed=st.integers(0, 99), size=st.integers(1, 4))
def test_components_of_a_layer(work, data, seed, size):
    """Three components become four, one of them a constant and one left as it is."""
    image = data.draw(images(4 * size))
    _, _, columns, rows = image[-1]
    expected = fill(work, seed)
    pixels = np.random.default_rng(seed + 100).integers(0, 256, (rows, columns, 3, size), dtype="u1")
    work.driver.poke(work.system, pixels.tobytes())
    run(
        work,
        *set_image(TARGET, image),
        *remap((2, 4, 6, 0), size, sources=3, constant_a=0x4433_2211),
        *copy(SYSTEM, VRAM, columns, rows, source_pitch=3 * size * columns, flags=FROM_PITCH | REMAP),
    )
    where = in_image(image, 4 * size).reshape(rows, columns, 4, size)
    expected[where[:, :, 0]], expected[where[:, :, 3]] = pixels[:, :, 2], pixels[:, :, 0]
    expected[where[:, :, 1]] = np.frombuffer(b"\x11\x22\x33\x44", "u1")[:size]
    np.testing.assert_array_equal(seen(work), expected)


@FIXTURES
@given(data=st.data(), seed=st.integers(0, 99))
def test_between_two_images(work, data, seed):
    """From one layer of blocks to another of another shape, components exchanged."""
    source, target = data.draw(images(4)), data.draw(images(4))
    columns, rows = (min(source[-1][at], target[-1][at]) for at in (2, 3))
    source, target = ((*image[:-1], (*image[-1][:2], columns, rows)) for image in (source, target))
    room = PAGES * PAGE
    pixels = fill(work, seed)
    second = np.random.default_rng(seed + 100).integers(0, 256, room, dtype="u1")
    work.driver.poke(work.system, second.tobytes())
    run(
        work,
        *set_image(SOURCE, source),
        *set_image(TARGET, target),
        *remap((3, 2, 1, 0), 1, sources=4),
        *copy(VRAM, SYSTEM, columns, rows, flags=2 | REMAP),
    )
    moved = pixels[in_image(source, 4)].reshape(rows, columns, 4)[:, :, ::-1]
    second[in_image(target, 4)] = moved.reshape(rows, 4 * columns)
    assert work.driver.peek(work.system, room) == second.tobytes()


@pytest.mark.parametrize("size", [0x0010, 0x1001, 0x100E, 0x1060, 0x1600, 0x2000])
def test_blocks_that_are_none(work, size):
    before = fill(work, 1)
    run(work, *methods(TARGET, size, 64, 8, 1, 0, 0), *copy(SYSTEM, VRAM, 64, 8, source_pitch=64, flags=FROM_PITCH))
    work.driver.wait_until(lambda: work.driver.mmio.read32(0x106908) & 4, "the launch error")
    np.testing.assert_array_equal(seen(work), before)
