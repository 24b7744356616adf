"""Two vGPUs on one GPU, on a clock that the test moves: shares by policy, frames by limit, memory to each its own."""

import pytest
from umdev.device import ManualClock
from umdev_nvidia import TeslaM10

from .conftest import COPY, GRAPHICS, PAGE, Driver, bind_copy, copy, interrupt, release

TARGET, FENCE = 0x2000_0000, 0x6000_0000
LINES = 0x4000_0000
"""Of a copy that does not end before the test does."""


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def gpu(clock):
    gpu = TeslaM10(clock)
    yield gpu
    gpu.close()


@pytest.fixture
def make(gpu, loopback_function):
    """`make(scheduler=...)`: a vGPU and its driver."""
    drivers = []

    def make(**attributes):
        vgpu = gpu.create("nvidia-41", attributes=attributes)
        drivers.append(Driver(loopback_function(vgpu)).start())
        return vgpu, drivers[-1]

    yield make
    for driver in drivers:
        driver.close()


def hog(driver):
    """Submit a copy that never ends."""
    channel = driver.channel(0)
    channel.tables.map(TARGET, driver.vram(PAGE))
    driver.invalidate(channel.tables)
    channel.go(*bind_copy(), *copy(TARGET, TARGET, PAGE, LINES))
    return channel


def share(first, second):
    return first.client.busy_ns / (first.client.busy_ns + second.client.busy_ns)


@pytest.mark.parametrize("scheduler", ["best-effort", "best-effort/5", "equal-share", "fixed-share", "fixed-share/1"])
def test_two_hogs_have_the_same(clock, make, scheduler):
    (first, one), (second, other) = make(scheduler=scheduler), make()
    hog(one)
    hog(other)
    clock.advance(0.4)
    assert share(first, second) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("scheduler", "part"), [("best-effort", 1), ("equal-share", 1 / 2), ("fixed-share", 1 / 4)])
def test_what_a_hog_gets_beside_an_idle_one(clock, make, scheduler, part):
    (first, one), (_second, _) = make(scheduler=scheduler), make()
    hog(one)
    clock.advance(0.4)
    assert first.client.busy_ns / 0.4e9 == pytest.approx(part, abs=0.05)


def test_a_hog_does_not_keep_the_other_waiting(clock, make):
    (_, one), (_, other) = make(scheduler="best-effort/2"), make()
    hog(one)
    channel = other.channel(0)
    page = other.page()
    channel.tables.map(FENCE, page, system=True)
    for number in range(1, 30):
        channel.go(*release(FENCE, number))
        clock.advance(0.005)
        assert other.word(page) == number


def frames(clock, driver, runlist, seconds=1.0):
    """How many fences come back, submitted one after the other."""
    channel = driver.channel(0, runlist)
    page = driver.page()
    channel.tables.map(FENCE, page, system=True)
    driver.invalidate(channel.tables)
    done, start = 0, clock.now
    while clock.now - start < seconds:
        channel.go(*release(FENCE, done + 1), *interrupt())
        while driver.word(page) != done + 1 and clock.now - start < seconds:
            clock.advance(0.001)
        done += driver.word(page) == done + 1
    return done


def test_frames_of_the_graphics_runlist_are_limited(clock, make):
    _, driver = make()
    assert frames(clock, driver, GRAPHICS) == pytest.approx(60, abs=2)


@pytest.mark.parametrize(
    ("runlist", "attributes"),
    [
        (COPY, {}),
        (GRAPHICS, {"vgpu_params": "frame_rate_limiter=0"}),
        (GRAPHICS, {"scheduler": "equal-share/1"}),
    ],
    ids=["copies", "switched-off", "equal-share"],
)
def test_nothing_else_is_limited(clock, make, runlist, attributes):
    _, driver = make(**attributes)
    assert frames(clock, driver, runlist, 0.5) > 100


def test_no_byte_of_video_memory_crosses(clock, make):
    (first, one), (second, other) = make(), make()
    secret = one.vram(PAGE)
    one.save(secret, 0x5EC7_E700)
    before = bytes(second.vram.memory[: 64 << 20])
    channel = one.channel(0)
    channel.tables.map(TARGET, one.vram(16 * PAGE), 16)
    one.invalidate(channel.tables)
    channel.go(*bind_copy(), *copy(TARGET, TARGET + 8 * PAGE, PAGE, 8))
    clock.advance(0.01)
    assert bytes(second.vram.memory[: 64 << 20]) == before
    assert other.load(secret) == 0
    assert first.vram.memory[secret : secret + 4] == bytes.fromhex("00e7c75e")


def test_a_paused_guest_s_work_stands_still(make):
    vgpu, driver = make()
    hog(driver)
    vgpu.clock.pause()
    assert vgpu.client.paused
    vgpu.clock.resume()
    assert not vgpu.client.paused
