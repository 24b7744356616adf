"""The Bochs display on every bus: VBE, EDID, the framebuffer without an access, and the screenshot."""

import random

import pytest
from umdev.device import InvalidArgument
from umdev_bochs_display import BochsDisplay
from umdev_bochs_display.screenshot import command, picture

VRAM, MMIO = 0, 2
ID, WIDTH, HEIGHT, DEPTH, ENABLE, VIRTUAL_WIDTH, X_OFFSET, Y_OFFSET, MEMORY = 0, 1, 2, 3, 4, 6, 8, 9, 10


@pytest.fixture
def device():
    return BochsDisplay()


@pytest.fixture
def display(any_function, device):
    return any_function(device)


def vbe_write(display, index, value):
    display.bars[MMIO].write16(0x500 + 2 * index, value)


def vbe_read(display, index):
    return display.bars[MMIO].read16(0x500 + 2 * index)


def set_mode(display, width, height, depth=32, virtual=0):
    vbe_write(display, ENABLE, 0)
    for index, value in ((WIDTH, width), (HEIGHT, height), (DEPTH, depth), (VIRTUAL_WIDTH, virtual or width)):
        vbe_write(display, index, value)
    vbe_write(display, ENABLE, 0x41)
    assert vbe_read(display, ENABLE) == 0x41


def test_identity(display):
    assert vbe_read(display, ID) & 0xFFF0 == 0xB0C0
    assert vbe_read(display, MEMORY) == 256
    vbe_write(display, MEMORY, 1)
    assert vbe_read(display, MEMORY) == 256, "the size of memory is not the driver's to change"


def test_capabilities(display):
    vbe_write(display, ENABLE, 2)
    assert (vbe_read(display, WIDTH), vbe_read(display, DEPTH)) == (2560, 32)


def test_edid_is_valid(display):
    block = bytes(display.bars[MMIO].read8(offset) for offset in range(128))
    assert block[:8] == bytes.fromhex("00ffffffffffff00")
    assert sum(block) % 256 == 0
    assert (block[56] | (block[58] & 0xF0) << 4, block[59] | (block[61] & 0xF0) << 4) == (1024, 768)


def test_framebuffer_is_passed_through(display, device):
    set_mode(display, 64, 32)
    native, pattern = device.native, random.randbytes(64 * 32 * 4)
    before = dict(native.counters)
    with display.map_area(VRAM) as vram:
        vram.write(0, pattern)
    assert dict(native.counters) == before, "no access reached the device"
    frame = device.query("frame")
    assert (frame["width"], frame["height"], frame["depth"], frame["rows"]) == (64, 32, 32, pattern)


def test_trapped_access_sees_the_same_memory(display):
    with display.map_area(VRAM) as vram:
        vram.write(0x1000, b"abcd")
        assert display.bars[VRAM].read32(0x1000) == int.from_bytes(b"abcd", "little")
        display.bars[VRAM].write32(0x2000, 0x04030201)
        assert vram.read(0x2000, 4) == b"\1\2\3\4"


def test_panning_and_stride(display, device):
    set_mode(display, 2, 2, virtual=4)
    with display.map_area(VRAM) as vram:
        vram.write(0, bytes(range(64)))
    vbe_write(display, X_OFFSET, 1)
    vbe_write(display, Y_OFFSET, 1)
    assert device.query("frame")["rows"] == bytes(range(20, 28)) + bytes(range(36, 44))


def test_switching_a_mode_clears_unless_told_not_to(display):
    set_mode(display, 16, 16)
    with display.map_area(VRAM) as vram:
        vram.write(0, b"\xff" * 64)
        vbe_write(display, ENABLE, 0)
        vbe_write(display, ENABLE, 0xC1)
        vbe_read(display, ENABLE)
        assert vram.read(0, 64) == b"\xff" * 64
        vbe_write(display, ENABLE, 0)
        vbe_write(display, ENABLE, 0x41)
        vbe_read(display, ENABLE)
        assert vram.read(0, 64) == bytes(64)


@pytest.mark.parametrize(("width", "height", "depth"), [(0, 16, 32), (16, 0, 32), (65535, 65535, 32), (16, 16, 7)])
def test_a_hostile_mode_shows_nothing(display, device, width, height, depth):
    set_mode(display, width, height, depth)
    assert device.query("frame")["rows"] == b""


@pytest.mark.parametrize("depth", [16, 24, 32])
def test_picture(depth):
    pixel = {16: b"\x00\xf8", 24: b"\x00\x00\xff", 32: b"\x00\x00\xff\x00"}[depth]
    image = picture({"width": 2, "height": 2, "depth": depth, "rows": pixel * 4})
    assert image.getpixel((1, 1)) == (255, 0, 0)


@pytest.mark.parametrize("ending", ["", ".nonsense", ".fli"])  # the last is one that Pillow reads only
def test_a_picture_needs_an_ending_that_names_its_format(tmp_path, monkeypatch, ending):
    from umdev_cli import client

    frame = {"width": 1, "height": 1, "depth": 32, "rows": bytes(4)}
    monkeypatch.setattr(client, "query", lambda _uuid, _name: frame)
    with pytest.raises(InvalidArgument, match=r"name it as in screen\.png"):
        command.main(["UUID", str(tmp_path / f"screen{ending}")], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []
