"""nouveau's exact sequence with no VM, on every bus: memory, semaphores, registers and messages are looked at."""

import numpy as np
import pytest

from .conftest import (
    COPY,
    FAULT,
    FIFO_INTR,
    GRAPHICS,
    LARGE_PAGE,
    NON_STALL,
    PAGE,
    PITCH_LAUNCH,
    REMAP,
    SECONDS,
    acquire,
    bind_copy,
    copy,
    interrupt,
    methods,
    release,
    remap,
)

SYSTEM, VRAM, FENCE = 0x2000_0000, 0x4000_0000, 0x6000_0000
WIDTH, HEIGHT = 100, 40
PITCH = 128


@pytest.fixture
def work(driver):
    """A channel that sees sixteen pages of the system's memory, as many of video memory, and a page of fences."""
    return prepare(driver)


def prepare(driver, number=0, runlist=COPY):
    channel = driver.channel(number, runlist)
    channel.system, channel.fence = driver.pages(16), driver.page()
    channel.video = driver.vram(16 * PAGE)
    channel.tables.map(SYSTEM, channel.system, 16, system=True)
    channel.tables.map(VRAM, channel.video, 16)
    channel.tables.map(FENCE, channel.fence, system=True)
    driver.invalidate(channel.tables)
    return channel


def finish(driver, channel, payload=1):
    """A fence and its interrupt, waited for."""
    channel.go(*release(FENCE, payload), *interrupt())
    seen = 0
    assert driver.interrupts.wait(timeout=SECONDS)
    while not seen & NON_STALL:
        seen |= driver.serve_interrupt()
        if not seen & NON_STALL:
            assert driver.interrupts.wait(timeout=SECONDS)
    assert driver.word(channel.fence) == payload


def test_a_copy_to_video_memory_and_back(driver, work):
    image = np.random.default_rng(1).integers(0, 256, 8 * PAGE, dtype="u1")
    driver.poke(work.system, image.tobytes())
    work.emit(*bind_copy(), *copy(SYSTEM, VRAM, PAGE, 8, source_pitch=PAGE, target_pitch=PAGE))
    work.emit(*copy(VRAM, SYSTEM + 8 * PAGE, 8 * PAGE))
    finish(driver, work)
    assert driver.peek(work.system + 8 * PAGE, 8 * PAGE) == image.tobytes()
    assert [driver.load(work.video + at) for at in (0, 4)] == image[:8].view("<u4").tolist()


def test_pitches_move_a_rectangle(driver, work):
    rng = np.random.default_rng(2)
    source = rng.integers(0, 256, (HEIGHT, PITCH), dtype="u1")
    before = rng.integers(0, 256, (HEIGHT, 2 * PITCH), dtype="u1")
    driver.poke(work.system, source.tobytes())
    driver.poke(work.system + 8 * PAGE, before.tobytes())
    work.emit(
        *bind_copy(),
        *copy(SYSTEM + 3, SYSTEM + 8 * PAGE + 5, WIDTH, HEIGHT, source_pitch=PITCH, target_pitch=2 * PITCH),
    )
    finish(driver, work)
    expected = before.copy()
    expected[:, 5 : 5 + WIDTH] = source[:, 3 : 3 + WIDTH]
    assert driver.peek(work.system + 8 * PAGE, before.nbytes) == expected.tobytes()


def test_a_remap_fills(driver, work):
    work.emit(
        *bind_copy(),
        *remap((4, 5), 4, constant_a=0xC0FF_EE01, constant_b=0x1234_5678),
        *copy(0, VRAM, 12, HEIGHT, target_pitch=PITCH, flags=PITCH_LAUNCH | REMAP),
        *copy(VRAM, SYSTEM, HEIGHT * PITCH),
    )
    finish(driver, work)
    expected = np.zeros((HEIGHT, PITCH // 4), "<u4")
    expected[:, 0:24:2], expected[:, 1:24:2] = 0xC0FF_EE01, 0x1234_5678
    assert driver.peek(work.system, expected.nbytes) == expected.tobytes()


def test_a_remap_moves_components(driver, work):
    pixels = np.random.default_rng(3).integers(0, 256, (HEIGHT, 16, 4), dtype="u1")
    driver.poke(work.system, pixels.tobytes())
    driver.poke(work.system + 8 * PAGE, b"\x77" * HEIGHT * 16 * 4)
    work.emit(
        *bind_copy(),
        *remap((2, 1, 4, 6), 1, sources=4, constant_a=0xAB),
        *copy(SYSTEM, SYSTEM + 8 * PAGE, 16, HEIGHT, source_pitch=64, target_pitch=64, flags=PITCH_LAUNCH | REMAP),
    )
    finish(driver, work)
    expected = np.full_like(pixels, 0x77)
    expected[..., 0], expected[..., 1], expected[..., 2] = pixels[..., 2], pixels[..., 1], 0xAB
    assert driver.peek(work.system + 8 * PAGE, expected.nbytes) == expected.tobytes()


def test_large_pages_and_both_runlists(driver, work):
    block = driver.vram(LARGE_PAGE)
    work.tables.map(0x8000_0000, block, large=True)
    driver.invalidate(work.tables)
    driver.poke(work.system, b"large pages too!" * 16)
    work.emit(*bind_copy(), *copy(SYSTEM, 0x8000_0000 + LARGE_PAGE - 256, 256))
    finish(driver, work)
    assert driver.load(block + LARGE_PAGE - 256) == int.from_bytes(b"larg", "little")
    other = prepare(driver, 1, GRAPHICS)
    finish(driver, other, 0x5555)


def test_small_pages_beside_large_ones(loopback_driver):
    driver = loopback_driver
    work = prepare(driver)
    large, small = driver.vram(LARGE_PAGE), driver.vram(2 * PAGE)
    work.tables.map(0x8000_0000, large, large=True)
    work.tables.map(0x8000_0000 + LARGE_PAGE, small, 2)
    work.tables.map(0x8000_0000 + 2 * LARGE_PAGE, large, large=True)
    driver.invalidate(work.tables)
    driver.poke(work.system, bytes(range(256)) * 48)
    work.emit(*bind_copy(), *copy(SYSTEM, 0x8000_0000 + LARGE_PAGE - PAGE, 3 * PAGE))
    work.emit(*copy(0x8000_0000 + 3 * LARGE_PAGE - PAGE, SYSTEM + 8 * PAGE, PAGE))
    finish(driver, work)
    for place in (large + LARGE_PAGE - PAGE, small, small + PAGE):
        assert driver.load(place + 4) == 0x0706_0504
    assert driver.peek(work.system + 8 * PAGE, PAGE) == bytes(range(256)) * 16


def test_releases_have_a_time_and_order(driver, work):
    work.emit(*release(FENCE + 16, 7, words=4), *methods(0x240, *_split(FENCE + 32), 9, subchannel=4))
    work.emit(*methods(0x300, 2 << 3))
    finish(driver, work)
    host, engine = (np.frombuffer(driver.peek(work.fence + at, 16), "<u4") for at in (16, 32))
    assert host[:2].tolist() == [7, 0]
    assert engine[:2].tolist() == [9, 0]
    assert 0 < host[2:].view("<u8")[0] <= engine[2:].view("<u8")[0]


@pytest.mark.parametrize(
    ("operation", "old", "payload", "result"),
    [(0, 5, 3, 3), (1, 5, 3, 5), (2, 5, 3, 6), (3, 5, 3, 1), (4, 5, 3, 7), (5, 5, 0xFFFF_FFFF, 4), (6, 5, 5, 0),
     (6, 4, 5, 5), (7, 0, 5, 5), (7, 3, 5, 2), (0, 5, 0xFFFF_FFFF, 0xFFFF_FFFF)],
)  # fmt: skip
def test_reductions(loopback_driver, operation, old, payload, result):
    driver = loopback_driver
    work = prepare(driver)
    driver.poke(work.fence + 64, old.to_bytes(4, "little") * 2)
    work.emit(*methods(0x10, *_split(FENCE + 64), payload, 16 | operation << 27, subchannel=0))
    work.emit(*bind_copy(), *methods(0x240, *_split(FENCE + 68), payload))
    work.emit(*methods(0x300, 1 << 3 | 1 << 19 | operation << 14))
    finish(driver, work)
    assert [driver.word(work.fence + at) for at in (64, 68)] == [result, result]


@pytest.mark.parametrize(("mode", "happens"), [(0, 0), (1, 1), (2, 1), (3, 0), (4, 1)])
def test_a_condition_decides_about_the_copy_and_not_about_its_semaphore(loopback_driver, mode, happens):
    driver = loopback_driver
    work = prepare(driver)
    driver.poke(work.fence + 64, b"\1" + bytes(15) + b"\2")
    driver.poke(work.system, b"moved")
    work.emit(*bind_copy(), *methods(0x254, *_split(FENCE + 64), mode), *methods(0x240, *_split(FENCE + 128), 9))
    work.emit(*copy(SYSTEM, SYSTEM + PAGE, 5, flags=PITCH_LAUNCH | 1 << 3))
    finish(driver, work)
    assert driver.peek(work.system + PAGE, 5) == (b"moved" if happens else bytes(5))
    assert driver.word(work.fence + 128) == 9


def test_blocks_and_back(loopback_driver):
    driver = loopback_driver
    work = prepare(driver)
    image = np.random.default_rng(4).integers(0, 256, (HEIGHT, PITCH), dtype="u1")
    driver.poke(work.system, image.tobytes())
    blocks = 1 << 12 | 1 << 4
    work.emit(*bind_copy(), *methods(0x70C, blocks, PITCH, 48, 1, 0, 0), *methods(0x728, blocks, PITCH, 48, 1, 0, 0))
    work.emit(*copy(SYSTEM, VRAM, PITCH, HEIGHT, source_pitch=PITCH, flags=0x82))
    work.emit(*copy(VRAM, SYSTEM + 8 * PAGE, PITCH, HEIGHT, target_pitch=PITCH, flags=0x102))
    finish(driver, work)
    assert driver.peek(work.system + 8 * PAGE, image.nbytes) == image.tobytes()
    # The first 64 bytes of row 1 follow those of row 0 in the gob's own order (two sectors of 16 bytes by 2 rows).
    gob = b"".join(driver.load(work.video + at).to_bytes(4, "little") for at in range(0, 64, 4))
    assert gob[:16] == image[0, :16].tobytes()
    assert gob[16:32] == image[1, :16].tobytes()


def test_the_timer_s_alarm(loopback_driver):
    driver = loopback_driver
    mmio = driver.mmio
    mmio.write32(0x9140, 1)
    before = mmio.read32(0x9400)
    mmio.write32(0x9420, before + 1_000_000)
    assert driver.interrupts.wait(timeout=SECONDS)
    assert mmio.read32(0x100) & 1 << 20
    assert (mmio.read32(0x9400) - before) & 0xFFFF_FFFF >= 1_000_000
    mmio.write32(0x9100, 1)
    assert not mmio.read32(0x100) & 1 << 20


def test_an_acquire_waits_for_another_channel(driver, work):
    other = prepare(driver, 1)
    other.tables.map(FENCE + PAGE, work.fence, system=True)
    driver.invalidate(other.tables)
    work.go(*acquire(FENCE + 64, 3, 4), *release(FENCE, 1))
    other.go(*release(FENCE + PAGE + 64, 2))
    other.wait_idle()
    assert driver.word(work.fence) == 0
    other.go(*release(FENCE + PAGE + 64, 3))
    driver.wait_until(lambda: driver.word(work.fence) == 1, "the acquired channel's fence")


def test_a_page_fault_kills_the_channel_and_the_next_one_works(driver, work):
    work.go(*bind_copy(), *copy(0x7F00_0000, SYSTEM, 16), *release(FENCE, 1), *interrupt())
    driver.wait_until(lambda: driver.mmio.read32(0x2100) & FAULT, "the fault")
    mmio = driver.mmio
    assert mmio.read32(0x259C) == 1 << 0x1B
    shown = [mmio.read32(0x2800 + 0x1B0 + at) for at in (0, 4, 8, 12)]
    assert shown == [work.instance >> 12, 0x7F00_0000, 0, 0x19 << 8 | 0x40]
    mmio.write32(0x2630, 1)
    mmio.write32(0x800004, 0x800)
    mmio.write32(0x259C, 1 << 0x1B)
    assert not mmio.read32(0x2100) & FAULT
    driver.listed[COPY].remove(0)
    driver.submit_runlist(COPY)
    mmio.write32(0x262C, 1)
    mmio.write32(0x2630, 0)
    assert driver.word(work.fence) == 0
    finish(driver, prepare(driver, 1))
    assert driver.word(work.fence) == 0


def test_a_channel_is_stopped_and_bound_again(driver, work):
    for payload in range(1, 4):
        finish(driver, work, payload)
        work.stop()
        work.put = work._fill = 0
        work.start()


def submit_groups(driver, runlist, *words):
    """A runlist as it is: its entries' first words."""
    for number, word in enumerate(words):
        driver.save(driver.runlists[runlist] + 8 * number, word)
        driver.save(driver.runlists[runlist] + 8 * number + 4, 0)
    driver.mmio.write32(0x2270, driver.runlists[runlist] >> 12)
    driver.mmio.write32(0x2274, runlist << 20 | len(words))


def test_channels_of_groups_run_and_are_preempted_with_their_group(vgpu, loopback_driver):
    driver = loopback_driver
    channels = [prepare(driver, number) for number in range(4)]

    def group(number, count):
        return count << 26 | 128 << 18 | 3 << 14 | 1 << 13 | number

    submit_groups(driver, COPY, group(7, 2), 0, 1, group(9, 1), 2, 3)
    for payload, channel in enumerate(channels, 1):
        finish(driver, channel, payload)
    known = vgpu.registers.fifo.channels.known
    assert [known[number].group for number in range(4)] == [7, 7, 9, None]

    preempted = []
    for channel in known.values():
        channel.preempt = lambda number=channel.number: preempted.append(number)
    for asked, expected in ((1 << 24 | 7, [0, 1]), (1 << 24 | 9, [2]), (1 << 24 | 3, []), (3, [3])):
        driver.mmio.write32(0x2634, asked)
        assert preempted == expected
        preempted.clear()
    submit_groups(driver, COPY, group(8, 63), 3)  # more than there are
    finish(driver, channels[3], 9)
    assert [known[number].runlists for number in range(4)] == [set(), set(), set(), {COPY}]
    assert known[3].group == 8


def test_an_interrupt_that_comes_before_its_predecessor_s_acknowledgement_is_not_lost(loopback_driver):
    driver = loopback_driver
    mmio = driver.mmio
    work = prepare(driver)
    work.go(*interrupt())
    driver.wait_until(lambda: mmio.read32(FIFO_INTR) & NON_STALL, "the interrupt")
    work.go(*release(FENCE, 2), *interrupt())
    driver.wait_until(lambda: work.get == work.put, "the second one")
    mmio.write32(FIFO_INTR, NON_STALL)
    assert mmio.read32(FIFO_INTR) & NON_STALL
    mmio.write32(FIFO_INTR, NON_STALL)
    assert not mmio.read32(FIFO_INTR) & NON_STALL


def test_a_thousand_kicks_around_the_ring(loopback_driver):
    driver = loopback_driver
    channel = prepare(driver)
    for number in range(1, 1001):
        channel.go(*release(FENCE, number))
        driver.wait_until(lambda wanted=number: driver.word(channel.fence) == wanted)
    channel.wait_idle()


def _split(value):
    return value >> 32, value & 0xFFFF_FFFF
