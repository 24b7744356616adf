"""`NativeDevice`: accesses, the lock, gates, overlays, the burn-down list, races."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest
from umdev._native import ffi, lib
from umdev.device.arrays import RegisterArray
from umdev.device.blocks import Block
from umdev.device.dispatch import NativeDevice, Unmodelled
from umdev.device.registers import (
    RC,
    RESERVED,
    RO,
    RW,
    W1C,
    W1S,
    WO,
    Access,
    Register,
    Register8,
    Register16,
    Register64,
)
from umdev.errors import InvalidArgument, StateError

from .conftest import make

KINDS = {1: Register8, 2: Register16, 4: Register, 8: Register64}


def stored(kind: Access, old: int, value: int) -> int:
    """What one byte becomes when `value` is written to it."""
    return {RW: value, WO: value, W1C: old & ~value & 0xFF, W1S: old | value}.get(kind, old)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", list(Access))
def test_every_kind_width_and_split(kind: Access, width: int, size: int) -> None:
    """Two neighbours of a kind under an access of each size at each offset: bytes are independent of each other."""
    first, second = (KINDS[width](16 + n * width, kind) for n in (0, 1))
    native, block = make(type("Pair", (Block,), {"first": first, "second": second}))
    value = bytes((0xC6 + 17 * n) & 0xFF for n in range(size))
    for at in range(max(0, 2 * width - size + 1)):
        cells = bytearray((0x35 + 29 * n) & 0xFF for n in range(2 * width))
        block.first.value = int.from_bytes(cells[:width], "little")
        block.second.value = int.from_bytes(cells[width:], "little")
        native.write(0, 16 + at, value)
        for n in range(size):
            cells[at + n] = stored(kind, cells[at + n], value[n])
        assert block.first.value | block.second.value << 8 * width == int.from_bytes(cells, "little")
        hidden = kind in (WO, RESERVED)
        assert native.read(0, 16 + at, size) == (bytes(size) if hidden else bytes(cells[at : at + size]))
        if kind is RC:
            cells[at : at + size] = bytes(size)
        assert block.first.value | block.second.value << 8 * width == int.from_bytes(cells, "little")


class Simple(Block[Any]):
    plain = Register(0, reset=5)
    handled = Register(4)
    nested = Register(8)

    @handled.on_write
    def wrote(self, value: int) -> None:
        assert self.host.native.held  # type: ignore[attr-defined]  # the region

    @nested.on_read
    def get(self) -> int:
        return int.from_bytes(self.host.native.read(0, self.plain.value, 4), "little")  # type: ignore[attr-defined]


@pytest.mark.parametrize("sizes", [(4,), (4, 8), (1, 2, 4), (8,)])
def test_only_legal_sizes_reach_registers(sizes: tuple[int, ...]) -> None:
    native, block = make(Simple, sizes=sizes)
    for size in range(1, 17):
        before = native.counters["illegal"]
        native.write(0, 0, bytes(size))
        assert (native.counters["illegal"] == before) == (size in sizes)
        assert (block.plain.value == 5) == (size not in sizes)
        block.plain.value = 5
        assert (native.read(0, 0, size) == b"\xff" * size) == (size not in sizes)


def test_out_of_range_is_aborted() -> None:
    native, _ = make(Simple)
    for region, offset, length in [(0, 0xFFFD, 4), (0, 0x10000, 1), (0, (1 << 64) - 1, 4), (3, 0, 4), (99, 0, 4)]:
        assert native.read(region, offset, length) == b"\xff" * length
        native.write(region, offset, bytes(length))
    assert native.counters["aborted"] == 10
    assert native.read(0, 0, 0) == b""
    for offset in (-1, 1 << 64):
        with pytest.raises(InvalidArgument, match="no 64-bit number"):
            native.read(0, offset, 4)
    for length in (-1, (1 << 20) + 1):
        with pytest.raises(InvalidArgument, match="an access of"):
            native.read(0, 0, length)
    with pytest.raises(InvalidArgument, match="an access of"):
        native.write(0, 0, bytes((1 << 20) + 1))


def test_gates_close_regions_and_the_device() -> None:
    native, block = make(Simple)
    native.set_region_enabled(0, enabled=False)
    native.write(0, 0, bytes(4))
    assert (native.read(0, 0, 4), block.plain.value) == (b"\xff" * 4, 5)
    native.set_region_enabled(0, enabled=True)
    assert native.read(0, 0, 4) == b"\5\0\0\0"
    native.add_callback_region(7, 256, lambda offset, length: bytes([offset]) * length, lambda offset, data: None)
    native.set_region_enabled(7, enabled=False)  # configuration space can't be closed
    assert native.read(7, 9, 3) == b"\t\t\t"
    native.set_gone(gone=True)
    assert native.read(7, 0, 4) == native.read(0, 0, 4) == b"\xff" * 4
    native.set_gone(gone=False)
    assert native.read(0, 0, 4) == b"\5\0\0\0"
    native.close()
    native.close()
    assert native.read(0, 0, 4) == b"\xff" * 4
    with pytest.raises(InvalidArgument, match="region 5"):
        native.set_region_enabled(5, enabled=True)
    with pytest.raises(InvalidArgument, match=r"region 0 .* given twice"):
        native.add_region(0, 4096)


def test_the_lock_is_not_recursive() -> None:
    native, block = make(Simple)
    with native.locked():
        assert native.held
        with pytest.raises(StateError, match="test device: this thread holds the device lock already"), native.locked():
            pass
        assert native.read(0, 0, 4) == b"\5\0\0\0"  # needs no lock
        with pytest.raises(StateError, match="write to region 0 at 0x4 needs the device lock"):
            native.write(0, 4, bytes(4))
    assert not native.held
    native.write(0, 4, bytes(4))
    block.plain.value = 0
    assert native.read(0, 8, 4) == bytes(4)  # a handler may read what needs no lock
    block.plain.value = 8
    with pytest.raises(StateError, match="read of region 0 at 0x8"):  # but not itself
        native.read(0, 8, 4)


def test_waiting_for_the_lock_lets_others_run() -> None:
    native, block = make(Simple)
    done = []

    def write() -> None:
        native.write(0, 4, b"\1\0\0\0")
        done.append(1)

    thread = threading.Thread(target=write)
    with native.locked():
        thread.start()
        thread.join(0.05)
        assert (done, block.handled.value) == ([], 0)
    thread.join()
    assert (done, block.handled.value) == ([1], 1)


def test_who_is_interrupted_while_it_waits_for_the_lock_does_not_keep_it() -> None:
    """Python raises what a signal brings when C has come back, and C has the lock by then."""
    native, _ = make(Simple)
    taken = threading.Event()

    def interrupt(*_: object) -> None:
        raise InterruptedError

    def hold() -> None:
        with native.locked():
            taken.set()
            time.sleep(0.1)  # the other thread is likely to wait by now; if not, less is tested
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    thread = threading.Thread(target=hold)
    try:
        with pytest.raises(InterruptedError):  # noqa: PT012 - where it comes is left open
            thread.start()
            taken.wait()
            with native.locked():
                pass
            time.sleep(60)
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert not native.held
    with native.locked():
        assert native.held


def test_overlays_of_python_functions() -> None:
    native, block = make(Simple)
    log: list[Any] = []

    def read(offset: int, length: int) -> bytes:
        if offset == 8:
            raise ValueError("on purpose")
        return b"short" if offset == 12 else bytes(range(offset, offset + length))

    native.add_callback_overlay(0, 0x100, 16, read, lambda offset, data: log.append((offset, data)))
    native.write(0, 0x104, b"abc")
    assert (native.read(0, 0x102, 6), log) == (b"\2\3\4\5\6\7", [(4, b"abc")])
    with pytest.raises(ValueError, match="on purpose"):
        native.read(0, 0x108, 4)
    with pytest.raises(Exception, match="a read of 4 bytes was answered with 5"):
        native.read(0, 0x10C, 4)
    native.raise_faults = False
    native.on_fault(lambda error, path: log.append(path))
    assert native.read(0, 0x108, 4) == b"\xff" * 4
    assert log[-1] == "region 0 at 0x100"
    for offset in (0, 0xFF, 0x10F):
        with pytest.raises(InvalidArgument, match="overlaps"):
            native.add_callback_overlay(0, offset, 2, read, lambda offset, data: None)
    with pytest.raises(InvalidArgument, match="out of range"):
        native.add_callback_overlay(0, 0xFFFF, 2, read, lambda offset, data: None)
    assert block.plain.value == 5


def test_burn_down_names_what_is_not_modelled() -> None:
    native, block = make(Simple)
    block.plain.value = 0
    assert native.read(0, 0x104, 4) == bytes(4)
    native.write(0, 0x104, b"\x34\x12\0\0")
    native.write(0, 0x100, b"\1\0")
    native.read(0, 8 + 2, 4)  # half of it is a register
    assert native.burn_down() == [
        Unmodelled(0, 0xC, 2, reads=1, writes=0, value=0),
        Unmodelled(0, 0x100, 2, reads=0, writes=1, value=1),
        Unmodelled(0, 0x104, 4, reads=1, writes=1, value=0x1234),
    ]
    assert native.counters == {"reads": 3, "writes": 2, "unhandled": 3, "aborted": 0, "faulted": 0, "illegal": 0}
    for n in range(5000):
        native.read(0, 0x200 + n, 1)
    assert (len(native.burn_down()), native.burn_down_lost) == (4096, 5003 - 4096)
    native.forget_burn_down()
    assert (native.burn_down(), native.burn_down_lost) == ([], 0)


def test_faults_outside_accesses_are_counted() -> None:
    native = NativeDevice()
    error = ValueError()
    native.count_fault(error)
    assert native.counters["faulted"] == 1
    assert native.last_fault is error


def test_api_table_is_complete() -> None:
    api = lib.umdev_get_api()
    assert (api.header.size, api.header.major) == (ffi.sizeof("umdev_api"), 1)
    for name, _ in ffi.typeof("umdev_api").fields:
        assert getattr(api, name) is not None
        assert name == "header" or getattr(api, name) != ffi.NULL
    native, _ = make(Simple)
    data = ffi.new("uint8_t[4]")
    assert api.access(native.pointer, 0, 0, data, 4, 0, 0, 0) == lib.UMDEV_OK
    assert bytes(data) == b"\5\0\0\0"
    assert api.trylock(native.pointer) == 1
    assert api.trylock(native.pointer) == 0
    api.unlock(native.pointer)


# Races: C threads run without the GIL inside one cffi call each.


class Racing(Block[Any]):
    bytes_ = Register64(0)
    events = Register(8, W1S)
    total = Register64(0x10)
    add = RegisterArray(0x20, Register, WO, count=4)
    ready = Register(0x40, RO)

    @add.on_write
    def added(self, index: int, value: int) -> None:
        self.total.value += value  # two steps: the device lock makes them one


def test_four_driver_threads_lose_no_update() -> None:
    native, block = make(Racing)
    rounds = 2000

    def drive(number: int) -> None:
        one = b"\1\0\0\0"
        for n in range(rounds):
            native.write(0, number, bytes([n & 0xFF]))
            native.write(0, 8, (1 << number).to_bytes(4, "little"))
            native.write(0, 0x20 + 4 * number, one, posted=True)

    def model() -> None:
        for n in range(rounds):
            block.bytes_.update(0xFF << 56, (n & 0xFF) << 56)
            with native.locked():
                block.total.value += 1

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(4)] + [threading.Thread(target=model)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = (rounds - 1) & 0xFF
    assert block.bytes_.value == last * 0x01000000_01010101
    assert block.events.value == 0xF
    assert block.total.value == 5 * rounds
    assert native.counters["writes"] == 12 * rounds
