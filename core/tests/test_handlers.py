"""Handlers of registers, in C and in Python: how dispatch calls them, and what becomes of what they raise."""

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
from umdev.device.blocks import Block
from umdev.device.dispatch import NativeDevice
from umdev.device.native import Native, give_way
from umdev.device.registers import Register, Register16
from umdev.errors import DeclarationError, StateError

from .conftest import make

INCLUDE = Path(__file__).parent.parent / "src" / "umdev" / "include"

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
