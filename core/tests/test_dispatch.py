"""`NativeDevice`: accesses, the lock, gates, overlays, the burn-down list, native handlers, races."""

from __future__ import annotations

import gc
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from cffi import FFI
from umdev._native import ffi, lib
from umdev.device.arrays import RegisterArray
from umdev.device.bars import MemoryBar
from umdev.device.blocks import Block
from umdev.device.dispatch import NativeDevice, Unmodelled
from umdev.device.native import Native, give_way
from umdev.device.region import Region
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
from umdev.errors import DeclarationError, InvalidArgument, StateError

KINDS = {1: Register8, 2: Register16, 4: Register, 8: Register64}
INCLUDE = Path(__file__).parent.parent / "src" / "umdev" / "include"


def make(block: type[Block[Any]], **options: Any) -> tuple[NativeDevice, Any]:
    bar: Any = MemoryBar(0, block, size=0x10000, **options)
    bar.name = "bar0"
    native = NativeDevice("test device")
    native.raise_faults = True
    return native, Region(native, 0, bar, None).block


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


# Handlers written in C.

SOURCE = """
#include <pthread.h>
#include "umdev.h"
int doubled(void *device, const umdev_access *access, uint64_t *value)
{
    if (access->flags & UMDEV_WRITE)
        return UMDEV_OK;
    *value = *value * 2 + access->index;
    return UMDEV_OK;
}
int later(void *device, const umdev_access *access, uint64_t *value)
{
    *value = 77;
    return UMDEV_PENDING;
}
int declines(void *device, const umdev_access *access, uint64_t *value) { return UMDEV_UNHANDLED; }
int wrong(int a) { return a; }
static void *reads(void *argument)
{
    uintptr_t *wish = argument;
    const umdev_api *api = (const umdev_api *)wish[0];
    for (uintptr_t i = 0; i < wish[2]; i++) {
        uint32_t value;
        api->access((umdev_device *)wish[1], 0, 0, &value, sizeof value, 0, 0, 0);
    }
    return NULL;
}
void reads_by_a_thread(uintptr_t api, uintptr_t device, uintptr_t count)
{
    uintptr_t wish[] = {api, device, count};
    pthread_t thread;
    if (pthread_create(&thread, NULL, reads, wish) == 0)
        pthread_join(thread, NULL);
}
int (*chosen)(void *, const umdev_access *, uint64_t *) = doubled;
"""


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A third party's C module."""
    folder = tmp_path_factory.mktemp("fast")
    builder = FFI()
    builder.cdef(
        """
        typedef struct umdev_access umdev_access;
        int doubled(void *device, const umdev_access *access, uint64_t *value);
        int later(void *device, const umdev_access *access, uint64_t *value);
        int declines(void *device, const umdev_access *access, uint64_t *value);
        int wrong(int a);
        void reads_by_a_thread(uintptr_t api, uintptr_t device, uintptr_t count);
        """
    )
    builder.set_source("umdev_test_fast", SOURCE)
    source, library = folder / "fast.c", folder / "fast.so"
    builder.emit_c_code(str(source))
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: install gcc")
    includes = [f"-I{INCLUDE}", f"-I{sysconfig.get_path('include')}"]
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", *includes, str(source), "-o", str(library)], check=True)
    spec = importlib.util.spec_from_file_location("umdev_test_fast", library)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["umdev_test_fast"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["umdev_test_fast"]


@pytest.mark.parametrize("lockless", [False, True])
def test_native_handlers(fast: Any, lockless: bool) -> None:
    doubled = Native("umdev_test_fast", "doubled", lockless=lockless)

    class Doubling(Block[Any]):
        one = Register(0, native=doubled)
        many = RegisterArray(0x10, Register16, count=4, native=doubled)
        gone = Register(0x20, native=Native("umdev_test_fast", "declines"))

    native, block = make(Doubling)
    native.write(0, 0, b"\x15\0\0\0")
    assert (native.read(0, 0, 4), block.one.value) == (b"\x2a\0\0\0", 0x15)
    block.many[3].value = 10
    assert native.read(0, 0x16, 2) == b"\x17\0"
    assert native.read(0, 0x20, 4) == bytes(4)
    assert [entry.offset for entry in native.burn_down()] == [0x20]
    with native.locked():
        if lockless:
            assert native.read(0, 0, 4) == b"\x2a\0\0\0"
        else:
            with pytest.raises(StateError, match="needs the device lock"):
                native.read(0, 0, 4)


def test_pending_accesses_wait_for_their_completion(fast: Any) -> None:
    class Later(Block[Any]):
        slow = Register(0, native=Native("umdev_test_fast", "later"))

    native, _ = make(Later)
    answers = []

    def complete() -> None:
        while not native.complete(77, 0x1234):
            pass

    for finish in (complete, native.abort_pending, native.close):
        thread = threading.Thread(target=lambda: answers.append(native.read(0, 0, 4)))
        thread.start()
        while not finish_when_pending(native, finish):
            pass
        thread.join()
    assert answers == [b"\x34\x12\0\0", b"\xff" * 4, b"\xff" * 4]


def finish_when_pending(native: NativeDevice, finish: Any) -> bool:
    """Ends the access once its thread sleeps: aborting or closing any earlier would be a different test."""
    started = native.counters["reads"] >= 1 and threading.active_count() > 1
    if not started:
        return False
    threading.Event().wait(0.02)
    finish()
    return True


@pytest.mark.parametrize(
    ("module", "symbol", "message"),
    [
        ("umdev_no_such_module", "x", "can't be imported"),
        ("umdev_test_fast", "missing", "missing"),
        ("umdev_test_fast", "wrong", "not int"),
        ("json", "loads", "json"),
    ],
)
def test_native_mistakes_are_declaration_errors(fast: Any, module: str, symbol: str, message: str) -> None:
    block = type("Wrong", (Block,), {"a": Register(0, native=Native(module, symbol))})
    with pytest.raises(DeclarationError, match=message):
        make(block)


def test_a_thread_of_c_has_one_python_thread_for_all_its_accesses(fast: Any) -> None:
    """A new one for each access would cost microseconds, and lose what the handler's libraries keep by thread."""
    kept, seen = threading.local(), []

    class Counting(Block[Any]):
        count = Register(0)

        @count.on_read
        def counts(self) -> int:
            kept.count = getattr(kept, "count", 0) + 1
            seen.append((threading.get_ident(), kept.count))
            return kept.count  # type: ignore[no-any-return]  # of a threading.local

    native, _ = make(Counting)
    api = int(ffi.cast("uintptr_t", lib.umdev_get_api()))
    for _ in range(2):
        seen.clear()
        fast.lib.reads_by_a_thread(api, native.address, 3)
        assert [count for _, count in seen] == [1, 2, 3]
        assert len({thread for thread, _ in seen} | {threading.get_ident()}) == 2


def test_a_failed_handler_keeps_its_traceback_and_the_access_ends_though_the_listener_fails_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing(Block[Any]):
        a = Register(0)

        @a.on_write
        def wrote(self, value: int) -> None:
            raise ValueError(value)

    native, _ = make(Failing)
    with pytest.raises(ValueError, match="7") as caught:
        native.write(0, 0, b"\7\0\0\0")
    assert caught.traceback[-1].name == "wrote"
    native.raise_faults = False
    native.on_fault(lambda error, path: 1 // 0)  # type: ignore[arg-type, return-value]  # on purpose
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: unraisable.append(found.exc_type))
    native.write(0, 0, b"\7\0\0\0")
    assert unraisable == [ZeroDivisionError]
    assert native.counters["faulted"] == 2
    native.write(0, 4, b"\0\0\0\0")
    assert native.counters["faulted"] == 2


def test_bound_handlers_keep_no_device_alive() -> None:
    class Answering(Block[Any]):
        a = Register(0)

        @a.on_read
        def get(self) -> int:
            return 1 << 64 | 9  # the low 64 bits count

    native, block = make(Answering)
    assert native.read(0, 0, 4) == b"\x09\0\0\0"
    alive = weakref.ref(block)
    del native, block
    gc.collect()
    assert alive() is None


def test_a_thread_that_computes_gives_way_to_a_handler() -> None:
    """Handlers wait while this thread keeps the interpreter; when it has given way, they have had it."""
    entered: list[int] = []

    class Registers(Block[Any]):
        register = Register(0)

        @register.on_read
        def enter(self) -> int:
            entered.append(1)
            return 0

    native, _ = make(Registers)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # nobody takes the interpreter from this thread
    rounds = first = 0
    try:
        while rounds < 20:
            entered.clear()
            thread = threading.Thread(target=native.read, args=(0, 0, 4))
            thread.start()
            while not lib.umdev_python_wanted() and not entered:
                time.sleep(0)
            if not entered:
                rounds += 1
                give_way()
                first += bool(entered)
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert first > 1  # not all: the machine may have no time for the other thread; without it none, seldom one


def test_native_and_python_handlers_exclude_each_other() -> None:
    with pytest.raises(DeclarationError, match="which has a native handler"):

        class Both(Block[Any]):
            a = Register(0, native=Native("m", "s"))

            @a.on_write
            def wrote(self, value: int) -> None: ...


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


def test_a_message_loop_takes_the_interrupt_of_a_handler() -> None:
    """C called the handler and goes on; who runs the loop raises what came, in its own thread and once."""
    native = NativeDevice()
    native.report(KeyboardInterrupt(), "bar0.value")
    taken: list[object] = []
    other = threading.Thread(target=lambda: taken.append(native.take_interrupt()))
    other.start()
    other.join()
    assert taken == [None]
    assert isinstance(native.take_interrupt(), KeyboardInterrupt)
    assert native.take_interrupt() is None
    native.report(ValueError(), "bar0.value")
    assert native.take_interrupt() is None
