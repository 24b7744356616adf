"""`Device`: declarations, resets, save and restore, queries, life."""

import contextlib
import copy
import functools
import operator
import time
import uuid

import pytest
from umdev.device import (
    RO,
    Block,
    DeclarationError,
    Device,
    Flag,
    Interrupts,
    ManualClock,
    MemoryBar,
    NotFound,
    PciId,
    Register,
    ResetKind,
    SaveError,
    State,
    StateError,
    Window,
    query,
)
from umdev.device.parent import DeviceContext
from umdev.loopback import bus

COMMAND, STATUS, TICKS, BYTES = 0x00, 0x04, 0x08, 0x1000


class Control(Register):
    go = Flag(0)
    done = Flag(1, RO)


class TimerRegisters(Block["Timer"]):
    control = Control(COMMAND)
    ticks = Register(TICKS, RO)
    bytes = Window(BYTES, 4096)
    history: State[list[int]] = State(list)

    @control.on_write
    def start(self, value):
        if self.control.go:
            self.device.after(1, self.tick, period=1)

    def tick(self):
        self.ticks.value += 1
        self.history.append(self.ticks.value)
        self.device.interrupts.raise_()


class Timer(Device):
    pci = PciId(vendor=0x1234, device=1, class_code=0x088000)
    interrupts = Interrupts(msi=1, intx=True)
    bar0 = MemoryBar(0, TimerRegisters, size=8192)
    resets: State[list[ResetKind]] = State(list, save=False)
    calls: State[list[str]] = State(list, save=False)
    serial = State(lambda: 1, keep=True)

    def on_open(self):
        self.calls.append("open")

    def on_reset(self, kind):
        self.resets.append(kind)

    def on_close(self):
        self.calls.append("close")

    @query
    def sum(self, *, plus: int = 0) -> int:
        """The ticks, and more."""
        return self.bar0.ticks.value + plus

    def secret(self):
        raise AssertionError("not a query")


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def timer(clock):
    with Timer(DeviceContext(clock=clock)) as device:
        yield device


@pytest.fixture
def driver(timer):
    with bus.open_function(timer) as function:
        function.enable()
        yield function


def test_opened_then_reset(timer):
    assert timer.calls == ["open"]
    assert timer.resets == [ResetKind.POWER_ON]


def test_a_handler_defers_work(driver, clock):
    driver.bars[0].write32(COMMAND, 1)
    clock.advance(3)
    assert driver.bars[0].read32(TICKS) == 3


@pytest.mark.parametrize("kind", list(ResetKind))
def test_a_reset_ends_the_old_life(timer, driver, clock, kind):
    with driver.enable_interrupts("intx") as interrupts:
        driver.bars[0].write32(COMMAND, 1)
        clock.advance(1)
        timer.serial = 5
        driver.map_area(0).write(0, b"pixels")
        assert interrupts.wait(timeout=1) == 1
        timer.reset(kind)
        interrupts.acknowledge()
        clock.advance(10)
        assert interrupts.wait(timeout=0.02) == 0
    assert timer.resets[-1] is kind
    assert (timer.bar0.ticks.value, timer.bar0.control.value, timer.bar0.history) == (0, 0, [])
    assert timer.serial == (1 if kind is ResetKind.POWER_ON else 5)
    lost = kind in {ResetKind.POWER_ON, ResetKind.CLIENT_LOST}
    assert bytes(timer.bar0.bytes.view[:6]) == (bytes(6) if lost else b"pixels")
    assert timer.work.pending == []


def test_function_level_reset_from_the_driver(timer, driver, clock):
    driver.bars[0].write32(COMMAND, 1)
    driver.function_level_reset()
    clock.advance(5)
    assert timer.resets[-1] is ResetKind.FLR
    assert timer.bar0.ticks.value == 0


def test_gates(timer, driver, clock):
    driver.bars[0].write32(COMMAND, 1)
    driver.enable(memory=False)
    assert driver.bars[0].read32(COMMAND) == 0xFFFF_FFFF
    driver.bars[0].write32(COMMAND, 0)
    driver.enable()
    assert driver.bars[0].read32(COMMAND) == 1
    with driver.enable_interrupts("msi") as interrupts:
        driver.enable(bus_master=False)
        clock.advance(1)
        assert interrupts.wait(timeout=0.02) == 0, "no message without bus mastering"
        driver.enable()
        clock.advance(1)
        assert interrupts.wait(timeout=1) == 1


def test_d3hot_resets(timer, driver):
    driver.bars[0].write32(COMMAND, 1)
    power = driver.config.find_capability(0x01)
    driver.config.write16(power + 4, 3)
    assert driver.bars[0].read32(COMMAND) == 0xFFFF_FFFF
    driver.config.write16(power + 4, 0)
    assert timer.resets[-1] is ResetKind.D3HOT
    driver.enable()
    assert driver.bars[0].read32(COMMAND) == 0


def test_save_and_restore_by_name(timer, driver, clock):
    driver.bars[0].write32(COMMAND, 1)
    clock.advance(2.5)
    driver.map_area(0).write(0, b"pixels")
    saved = timer.save()
    assert saved["regions"]["bar0"]["ticks"] == 2
    assert saved["work"] == [{"owner": "bar0", "method": "tick", "in_ns": 500_000_000, "period_ns": 1_000_000_000}]
    other_clock = ManualClock()
    with Timer(DeviceContext(clock=other_clock)) as other:
        other.restore(saved)
        assert other.bar0.history == [1, 2]
        assert bytes(other.bar0.bytes.view[:6]) == b"pixels"
        assert other.config.command == timer.config.command
        assert other_clock.now == 2.5
        other_clock.advance(0.5)
        assert other.bar0.ticks.value == 3
        assert other.save()["work"] == [
            {"owner": "bar0", "method": "tick", "in_ns": 1_000_000_000, "period_ns": 1_000_000_000}
        ]


class Beating(Device):
    """It starts by itself, as a device with a heartbeat does."""

    pci = PciId(vendor=0x1234, device=3, class_code=0x088000)
    bar0 = MemoryBar(0, Block, size=4096)
    beats = State(int)

    def on_reset(self, kind):
        self.after(1, self.beat, period=1)

    def beat(self):
        self.beats += 1


def test_what_a_power_on_starts_does_not_stay_beside_what_was_saved():
    clock = ManualClock()
    with Beating(DeviceContext(clock=clock)) as device:
        clock.advance(2.5)
        saved = device.save()
        for _ in range(3):
            device.restore(saved)
        assert device.save() == saved
        clock.advance(1)
        assert device.beats == 3
        with pytest.raises(SaveError):
            device.restore({**saved, "version": 7})
        clock.advance(1)
        assert device.beats == 1  # a device that has been powered on


def test_an_undeclared_attribute_is_refused(timer):
    timer.scratch = 1
    with pytest.raises(SaveError, match=r"Timer\.scratch .*State"):
        timer.save()
    del timer.scratch
    timer.bar0.cache = {}
    with pytest.raises(SaveError, match=r"TimerRegisters\.cache \(bar0\.cache\)"):
        timer.save()


def test_work_without_a_name_is_refused(timer):
    timer.after(1, lambda: None)
    with pytest.raises(SaveError, match="lambda"):
        timer.save()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema": 99}, "schema 99"),
        ({"model": "Clock"}, "state of a Clock"),
        ({"version": 2}, "version 2"),
        ({"regions": {}}, "bar0"),
        ({"work": [{"owner": "bar0", "method": "gone", "in_ns": 0, "period_ns": 0}]}, "gone"),
    ],
)
def test_a_refused_restore_leaves_a_power_on_device(timer, change, text):
    saved = {**timer.save(), **change}
    timer.bar0.ticks.value = 9
    with pytest.raises(SaveError, match=text):
        timer.restore(saved)
    assert timer.bar0.ticks.value == 0


def test_upgrade_reads_an_older_version():
    class Timer2(Timer):
        version = 2

        def upgrade(self, saved_state, version):
            assert version == 1
            return {**saved_state, "state": {**saved_state["state"], "serial": 42}}

    with Timer() as old, Timer2() as new:
        new.restore({**old.save(), "model": "Timer2"})
        assert new.serial == 42


def test_queries(timer):
    assert timer.queries == {"sum": "The ticks, and more."}
    assert timer.query("sum", plus=2) == 2
    with pytest.raises(NotFound, match="sum"):
        timer.query("secret")


def test_a_closed_device_says_so(clock):
    device = Timer(DeviceContext(clock=clock))
    device.close()
    device.close()
    assert device.calls == ["open", "close"]
    for call in (device.save, lambda: bus.open_function(device), lambda: device.query("sum")):
        with pytest.raises(StateError, match="closed"):
            call()


def test_an_attached_device_is_not_closed(timer, driver):
    with pytest.raises(StateError, match="attached to loopback"):
        timer.close()


def test_a_failing_handler_reads_all_ones_and_is_counted(caplog):
    class Bad(Block["BadDevice"]):
        boom = Register(0)

        @boom.on_read
        def explode(self):
            raise ZeroDivisionError

    class BadDevice(Device):
        pci = PciId(vendor=1, device=1, class_code=0)
        bar0 = MemoryBar(0, Bad, size=4096)

    with BadDevice() as device, bus.open_function(device) as function:
        function.enable()
        assert function.bars[0].read32(0) == 0xFFFF_FFFF
        assert device.native.counters["faulted"] == 1
        assert "bar0.boom" in caplog.text


def test_failing_work_is_logged_and_counted(caplog):
    with Timer() as device:
        device.after(0, lambda: 1 / 0)
        deadline = time.monotonic() + 5
        while not device.native.counters["faulted"]:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert "ZeroDivisionError" in caplog.text


def test_declarations_are_checked():
    with pytest.raises(DeclarationError, match="first and second both claim BAR 1"):

        class Clash(Device):
            first = MemoryBar(0, TimerRegisters, size=8192, width=64)
            second = MemoryBar(1, TimerRegisters, size=8192)

    class Nobody(Device):
        pass

    with pytest.raises(DeclarationError, match="PciId"):
        Nobody()


def test_the_name_says_which_device(timer):
    assert str(timer) == f"Timer {timer.context.uuid}"
    assert isinstance(timer.context.uuid, uuid.UUID)


def places(state, path=()):
    """Every place in saved state, as keys from the top."""
    for key, value in state.items() if isinstance(state, dict) else enumerate(state):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def test_damaged_state_is_a_named_error_and_leaves_a_device_that_works(clock):
    """What is restored may come from a file or a peer: every place of it is spoilt, one after another."""
    with Timer(DeviceContext(clock=clock)) as timer:
        timer.after(1, timer.bar0.tick, period=1)
        saved = timer.save()
        for place in places(saved):
            for value in (None, -1, 1 << 70, "x", b"zz", [], {}, [None], 1.5):
                spoilt = copy.deepcopy(saved)
                holder = functools.reduce(operator.getitem, place[:-1], spoilt)
                holder[place[-1]] = value
                with contextlib.suppress(SaveError):  # some values are as good as any
                    timer.restore(spoilt)
        timer.restore(saved)
        assert timer.save() == saved


@pytest.mark.parametrize(
    ("owner", "method"),
    [("", "__init__"), ("", "pci"), ("", "bar0"), ("", "nothing"), ("bar0", "close"), ("", "close"), ("", "_release"),
     ("", "end_work"), ("", "on_close"), ("bar0", "__init_subclass__"), ("bar0", "ticks")],
)  # fmt: skip
def test_saved_work_names_methods_of_the_model_only(timer, owner, method):
    saved = timer.save()
    with pytest.raises(SaveError, match="is no method of the model"):
        timer.restore({**saved, "work": [{"owner": owner, "method": method, "in_ns": 0, "period_ns": 0}]})
    assert not timer.closed


def test_work_that_is_no_method_of_the_model_is_not_saved(timer):
    for job in (timer.on_close, functools.partial(timer.bar0.tick), lambda: None):
        work = timer.after(1, job)
        with pytest.raises(SaveError, match="can't be saved: give `after` a method of the model's own"):
            timer.save()
        work.cancel()
