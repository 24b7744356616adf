"""Two vGPUs on one GPU: shares of the engines by weight, on a clock that the test moves, so that shares are exact."""

import pytest
from umdev.device import ManualClock
from umdev_intel_gvt import IntelGpu

from .conftest import BLITTER, RENDER, Driver, batch_start, flush

BATCH = 0x10_0000
STEP = 0.0001
BUDGET = 0.001


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def gpu(clock):
    gpu = IntelGpu(clock)
    yield gpu
    gpu.close()


@pytest.fixture
def make(gpu, loopback_function):
    """`make(weight=2)`: a vGPU and its driver."""
    drivers = []

    def make(**attributes):
        vgpu = gpu.create("i915-GVTg_V5_8", attributes={name: str(value) for name, value in attributes.items()})
        drivers.append(Driver(loopback_function(vgpu)))
        return vgpu, drivers[-1]

    yield make
    for driver in drivers:
        driver.close()


def hog(driver, base=RENDER):
    """Submit a batch that never ends."""
    table, batch = driver.table(), driver.page()
    table.map(BATCH, batch)
    for number, dword in enumerate(batch_start(BATCH)):
        driver.save(batch + 4 * number, dword)
    context = driver.context(base, table)
    context.emit(batch_start(BATCH))
    driver.submit(context)
    return context


def latencies(clock, driver, count):
    """Clock time from the tail's write to the breadcrumb, of one submission after the other."""
    bus, graphics = driver.status[BLITTER]
    context = driver.context(BLITTER)
    found = []
    for number in range(1, count + 1):
        context.emit(flush(graphics + 0x200, number))
        driver.submit(context)
        steps = 0
        while driver.load(bus + 0x200) != number:
            clock.advance(STEP)
            steps += 1
            assert steps < 1000
        while not any(status & 8 for status, _ in driver.events(BLITTER)):
            clock.advance(STEP)
        found.append(steps * STEP)
    return sorted(found)


@pytest.mark.parametrize(("weights", "share"), [((2, 2), 0.5), ((2, 4), 1 / 3), ((1, 16), 1 / 17)])
def test_endless_batches_share_by_weight(clock, make, weights, share):
    (first, one), (second, other) = (make(weight=weight) for weight in weights)
    hog(one)
    hog(other)
    clock.advance(0.2)
    assert first.client.busy_ns / (first.client.busy_ns + second.client.busy_ns) == pytest.approx(share, abs=0.05)


def test_an_endless_batch_of_one_delays_the_other_by_two_budgets_at_most(clock, make):
    (_, one), (_, other) = make(), make()
    alone = latencies(clock, other, 50)
    hog(one)
    beside = latencies(clock, other, 50)
    assert beside[-1] <= alone[-1] + 2 * BUDGET + STEP


def test_the_other_s_reset_takes_the_endless_batch_away(clock, make):
    (vgpu, one), (_, other) = make(), make()
    context = hog(one)
    clock.advance(0.01)
    used = vgpu.client.busy_ns
    assert used > 0
    assert one.mmio.read32(RENDER + 0x238) == context.identity
    one.reset_engine(RENDER)
    one.events(RENDER)
    clock.advance(0.01)
    assert vgpu.client.busy_ns == used
    assert latencies(clock, one, 3)
    assert latencies(clock, other, 3)


def test_a_cap_holds_when_nobody_else_wants_the_engine(clock, make):
    vgpu, driver = make(cap=25)
    hog(driver)
    clock.advance(0.4)
    assert vgpu.client.busy_ns / 0.4e9 == pytest.approx(0.25, abs=0.05)


def test_time_is_accounted_by_engine(clock, make):
    vgpu, driver = make()
    hog(driver, RENDER)
    clock.advance(0.01)
    shown = vgpu.query("engine_state")
    assert shown["engines"]["render"]["busy_ns"] == shown["busy_ns"] == pytest.approx(0.01e9, rel=0.2)
    assert shown["engines"]["blitter"]["busy_ns"] == 0


def test_no_work_is_done_while_the_guest_s_time_stands_still(clock, make):
    vgpu, driver = make()
    hog(driver)
    clock.advance(0.005)
    vgpu.clock.pause()
    used = vgpu.client.busy_ns
    assert used > 0
    clock.advance(0.005)
    assert vgpu.client.busy_ns == used
    vgpu.clock.resume()
    clock.advance(0.005)
    assert vgpu.client.busy_ns > used
