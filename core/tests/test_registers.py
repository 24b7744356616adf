"""Registers as a model sees them: declarations, live values, fields, handlers, faults."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
from umdev._native import ffi, lib
from umdev.device.arrays import RegisterArray
from umdev.device.bars import MemoryBar
from umdev.device.blocks import Block
from umdev.device.dispatch import NativeDevice
from umdev.device.region import Region
from umdev.device.registers import (
    RC,
    RO,
    RW,
    W1C,
    WO,
    Access,
    Field,
    Flag,
    Masks,
    Register,
    Register8,
    Register16,
    Register64,
)
from umdev.errors import DeclarationError, StateError


class Harness:
    """A device of one memory BAR, without a Device."""

    def __init__(self, block: type[Block[Any]], size: int = 1 << 16, **options: Any) -> None:
        bar: Any = MemoryBar(0, block, size=size, **options)
        bar.name = "bar0"
        self.native = NativeDevice()
        self.native.raise_faults = True
        self.region = Region(self.native, 0, bar, self)
        self.bar0: Any = self.region.block

    def read(self, offset: int, width: int = 4) -> int:
        return int.from_bytes(self.native.read(0, offset, width), "little")

    def write(self, offset: int, value: int, width: int = 4) -> None:
        self.native.write(0, offset, value.to_bytes(width, "little"))


class Status(Register):
    computing = Flag(0, RO)
    level = Field(4, 6)
    overrun = Flag(8, RC)
    done = Flag(9, W1C)
    raise_irq = Flag(31)


class Plain(Block[Any]):
    byte = Register8(0, reset=0x11)
    half = Register16(2, reset=0x2222)
    word = Register(4, reset=0x3333_3333)
    long = Register64(8, reset=0x4444_4444_4444_4444)
    status = Status(0x10)
    hidden = Register(0x14, WO)
    cleared = Register(0x18, RC)


def test_a_register_says_what_it_is_and_holds() -> None:
    assert repr(Plain.status) == "<Status status at 0x10, a declaration>"
    assert repr(Harness(Plain).bar0.half) == "<Register16 bar0.half=0x2222>"


@pytest.fixture
def plain() -> Harness:
    return Harness(Plain)


@pytest.mark.parametrize(("name", "offset", "width"), [("byte", 0, 1), ("half", 2, 2), ("word", 4, 4), ("long", 8, 8)])
def test_each_width_reads_writes_and_resets(plain: Harness, name: str, offset: int, width: int) -> None:
    register = getattr(plain.bar0, name)
    ones = (1 << 8 * width) - 1
    assert plain.read(offset, width) == register.value == register.reset_value
    plain.write(offset, ones - 5, width)
    assert register.value == ones - 5
    register.value = ~5  # cut to the width
    assert plain.read(offset, width) == ones - 5
    register.value = ones + 8
    assert register.value == 7
    plain.region.reset(windows=True)
    assert register.value == register.reset_value


def test_widths_do_not_touch_their_neighbours(plain: Harness) -> None:
    plain.bar0.byte.value = 0xFF
    plain.bar0.half.value = 0
    assert (plain.bar0.word.value, plain.bar0.long.value) == (0x3333_3333, 0x4444_4444_4444_4444)
    assert plain.read(0, 8) == 0x3333_3333_0000_00FF


def test_fields_mix_access_kinds_bit_by_bit(plain: Harness) -> None:
    status = plain.bar0.status
    plain.write(0x10, 0xFFFF_FFFF)
    assert status.value == 0xFFFF_FFFF & ~(1 | 1 << 8 | 1 << 9)
    status.computing = status.overrun = status.done = True
    assert plain.read(0x10) == 0xFFFF_FFFF
    assert not status.overrun  # the read cleared it
    plain.write(0x10, 1 << 9)
    assert status.value == 1  # done was cleared, RW bits took zeros, computing is the model's
    status.level = 13  # cut to three bits
    assert status.level == 5
    assert status.value == 0x51


def test_write_only_is_visible_to_the_model_only(plain: Harness) -> None:
    plain.write(0x14, 42)
    assert plain.read(0x14) == 0
    assert plain.bar0.hidden.value == 42


def test_update_is_one_step_and_returns_the_value_before(plain: Harness) -> None:
    assert plain.bar0.word.update(0xFF, 0x7) == 0x3333_3333
    assert plain.bar0.word.value == 0x3333_3307
    assert plain.bar0.long.update(-1, 1 << 63) == 0x4444_4444_4444_4444
    assert plain.bar0.long.value == 1 << 63


def test_text_names_fields_that_are_set(plain: Harness) -> None:
    assert plain.bar0.status.text(0x8000_0031) == "bar0.status=0x80000031 computing level=0x3 raise_irq"
    plain.bar0.status.value = 0x200
    assert plain.bar0.status.text() == "bar0.status=0x200 done"


def test_declarations_have_no_value() -> None:
    with pytest.raises(StateError, match="word is a declaration"):
        _ = Plain.word.value
    with pytest.raises(StateError, match="word is a declaration"):
        Plain.word.value = 3
    with pytest.raises(StateError, match="status is a declaration"):
        Plain.status.level = 1


def test_instances_share_the_layout_and_no_value() -> None:
    one, two = Harness(Plain), Harness(Plain)
    one.write(4, 1)
    assert two.bar0.word.value == 0x3333_3333
    assert one.region.layout is two.region.layout
    assert Harness(Plain, sizes=(4,)).region.layout is not one.region.layout


def test_live_registers_are_made_on_first_use(plain: Harness) -> None:
    assert "word" not in vars(plain.bar0)
    assert plain.bar0.word is plain.bar0.word
    with pytest.raises(AttributeError, match=r"word is a Register: assign to word\.value"):
        plain.bar0.word = 3


@pytest.mark.parametrize("access", Access)
def test_masks_of_each_kind_are_what_overlay_restores(access: Access) -> None:
    assert Masks.of(RW, 0xFF).overlay(0xF0, Masks.of(access, 0xF0)).overlay(0xF0, Masks.of(RW, 0xF0)) == Masks(rw=0xFF)


class Handled(Block[Any]):
    ident = Register(0, RO, reset=7)
    liveness = Register(4)
    old = Register64(8)
    low_first = Register64(0x10, commit="high")
    high_first = Register64(0x18, commit="low")
    mode = Register(0x20, masked=True)
    ack = Register(0x24, W1C)
    doorbells = RegisterArray(0x100, Status, WO, count=8, stride=32)
    values = RegisterArray(0x104, Register16, count=8, stride=32, reset=9)

    def log(self, *what: object) -> None:
        vars(self).setdefault("seen", []).append(what)

    @ident.on_read
    def get(self) -> int:
        return -1

    @liveness.on_write
    def invert(self, value: int) -> None:
        self.liveness.value = ~value

    @old.on_write
    def changed(self, value: int, old: int) -> None:
        self.log("old", value, old)

    @low_first.on_write
    @high_first.on_write
    @ack.on_write
    @mode.on_write
    def written(self, value: int) -> None:
        self.log(value)

    @doorbells.on_write
    def ring(self, index: int, value: int) -> None:
        self.log("ring", index, value)

    @values.on_read
    def answer(self, index: int) -> int:
        return self.values[index].value + index


@pytest.fixture
def handled() -> Harness:
    return Harness(Handled)


def test_handlers_see_what_was_written_and_may_look_at_the_old_value(handled: Harness) -> None:
    handled.write(4, 0x12345678)
    assert handled.read(4) == 0x12345678 ^ 0xFFFF_FFFF
    assert handled.read(0) == 0xFFFF_FFFF
    assert handled.bar0.ident.value == 7  # what is stored does not change by a read handler
    handled.write(8, 5, 8)
    handled.write(9, 1, 1)
    assert handled.bar0.seen == [("old", 5, 0), ("old", 0x105, 5)]


def test_a_split_access_calls_each_register_once_in_ascending_order(handled: Harness) -> None:
    handled.write(0x1E, 0x1122_3344, 4)  # the upper half of high_first, the lower half of mode
    assert handled.bar0.seen == [(0,)]  # high_first waits for its lower half; mode had no enables
    handled.write(0x22, 0x0001_0001, 4)
    assert handled.bar0.seen == [(0,), (0,), (1,)]


def test_halves_commit_as_declared(handled: Harness) -> None:
    handled.write(0x10, 0xAAAA_AAAA)
    assert handled.bar0.low_first.value == 0
    handled.write(0x14, 0xBBBB_BBBB)
    handled.write(0x1C, 0xCCCC_CCCC)
    handled.write(0x18, 0xDDDD_DDDD)
    assert handled.bar0.seen == [(0xBBBB_BBBB_AAAA_AAAA,), (0xCCCC_CCCC_DDDD_DDDD,)]
    handled.write(0x10, 1)
    handled.region.reset(windows=False)
    handled.write(0x14, 2)
    assert handled.bar0.low_first.value == 2 << 32  # a reset forgets the half that waited


def test_masked_writes_touch_enabled_bits_only(handled: Harness) -> None:
    handled.write(0x20, 0x0003_0001)
    handled.write(0x20, 0x0002_0002)
    assert handled.read(0x20) == 3
    assert handled.bar0.seen == [(1,), (3,)]


def test_untouched_w1c_bytes_are_not_written(handled: Harness) -> None:
    handled.bar0.ack.value = 0xFFFF
    handled.write(0x24, 0x0F, 1)
    assert handled.bar0.ack.value == 0xFFF0
    assert handled.bar0.seen == [(0x0F,)]


def test_arrays_pass_the_index(handled: Harness) -> None:
    handled.write(0x100 + 3 * 32, 0x51)
    assert handled.bar0.seen == [("ring", 3, 0x51)]
    assert handled.bar0.doorbells[3].level == 5
    assert handled.bar0.doorbells[3].text() == "bar0.doorbells[3]=0x50 level=0x5"  # computing is RO
    assert handled.read(0x104 + 7 * 32, 2) == 16
    assert [register.value for register in handled.bar0.values] == [9] * 8
    assert len(handled.bar0.values) == 8
    for index in (8, -1):
        with pytest.raises(IndexError, match="8 elements"):
            handled.bar0.values[index]
    with pytest.raises(StateError, match="doorbells is a declaration"):
        _ = Handled.doorbells[0]


def test_a_handler_that_raises_is_a_fault_and_is_told(handled: Harness, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Block[Any]):
        a = Register(0)
        b = RegisterArray(0x10, Register, count=4)
        fine = Register(0x40, reset=1)

        @a.on_read
        def get(self) -> int:
            raise ZeroDivisionError("on purpose")

        @a.on_write
        def put(self, value: int) -> None:
            raise ValueError(value)

        @b.on_read
        def text(self, index: int) -> int:
            return "x"  # type: ignore[return-value]  # on purpose

    device = Harness(Failing)
    with pytest.raises(ZeroDivisionError):
        device.read(0)
    with pytest.raises(ValueError, match="5"):
        device.write(0, 5)
    assert device.bar0.a.value == 5  # stored before the handler ran
    device.native.raise_faults = False
    assert device.read(0) == 0xFFFF_FFFF
    assert caplog.records[-1].name == "umdev.device"
    assert "bar0.a" in caplog.records[-1].getMessage()
    told: list[tuple[type[BaseException], str]] = []
    device.native.on_fault(lambda error, path: told.append((type(error), path)))
    assert device.read(0x18) == 0xFFFF_FFFF
    assert told == [(TypeError, "bar0.b")]
    assert isinstance(device.native.last_fault, TypeError)
    assert device.native.counters["faulted"] == 4
    assert device.read(0x40) == 1  # the device lives on


def test_an_interrupted_handler_is_never_swallowed() -> None:
    class Interrupted(Block[Any]):
        a = Register(0)

        @a.on_read
        def get(self) -> int:
            raise KeyboardInterrupt

    device = Harness(Interrupted)
    device.native.raise_faults = False
    device.native.on_fault(lambda error, path: None)
    with pytest.raises(KeyboardInterrupt):
        device.read(0)


def test_field_updates_from_threads_are_not_lost() -> None:
    class Counters(Register64):
        a = Field(0, 15)
        b = Field(16, 31)
        c = Field(32, 47)
        d = Field(48, 63)

    class Counting(Block[Any]):
        all = Counters(0)

    device = Harness(Counting)
    register = device.bar0.all

    def count(name: str) -> None:
        for n in range(1, 3001):
            setattr(register, name, n)

    def drive() -> None:
        for n in range(1, 3001):
            device.write(6, n, 2)

    threads = [threading.Thread(target=count, args=(name,)) for name in "abc"] + [threading.Thread(target=drive)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (register.a, register.b, register.c, register.d) == (3000, 3000, 3000, 3000)


def test_devices_are_collected_with_all_they_hold() -> None:
    device = Harness(Handled)
    device.write(4, 1)
    live = device.bar0.liveness
    del device
    gc.collect()
    assert live.value == 0xFFFF_FFFE  # a live register keeps its cells


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: Register(2), "not aligned to its 4 bytes"),
        (lambda: Register(-4), "not aligned"),
        (lambda: Register8(0, reset=256), "does not fit in 1 bytes"),
        (lambda: Register8(0, masked=True), "masked needs at least 16 bits"),
        (lambda: Field(3, 2), "low <= high"),
        (lambda: Flag(64), "low <= high < 64"),
        (lambda: RegisterArray(0, Register, count=0), "has 0 elements"),
        (lambda: RegisterArray(0, Register, count=2, stride=6), "no multiple of 4"),
        (lambda: RegisterArray(0, Register, count=2, commit="low"), "only 64-bit registers commit"),
    ],
)
def test_bad_declarations_are_refused(declare: Any, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        declare()


def test_bad_register_classes_are_refused() -> None:
    with pytest.raises(DeclarationError, match=r"Wide\.top lies outside the register's 8 bits"):

        class Wide(Register8):
            top = Flag(8)

    with pytest.raises(DeclarationError, match=r"Twice\.b overlaps a"):

        class Twice(Register):
            a = Field(0, 3)
            b = Field(3, 5)


def test_c_handlers_find_cells_and_the_model_s_data() -> None:
    harness = Harness(Plain)
    byte = harness.bar0.byte
    byte.value = 0x5A
    assert ffi.cast("uint8_t *", byte.address)[0] == 0x5A
    with pytest.raises(StateError, match="byte is a declaration"):
        _ = Plain.byte.address
    data = ffi.new("uint32_t *", 7)
    address = int(ffi.cast("uintptr_t", data))
    harness.native.set_user_data(data)
    del data
    gc.collect()
    found = lib.umdev_device_user_data(harness.native.pointer)
    assert int(ffi.cast("uintptr_t", found)) == address
    assert ffi.cast("uint32_t *", found)[0] == 7
