"""What a server notices while its loop is inside the device, and in what state exceptions and signals leave it."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import umdev
from cffi import FFI
from umdev.device import Block, Device, MemoryBar, Native, PciId, Register
from umdev.errors import Disconnected, StateError, TransportError
from umdev_vfio_user import bus

from .conftest import ACCESS, HEADER, WAIT, Served

RESET = 13


def eventually(check: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


SLOW = """
#include "umdev.h"
int later(void *device, const umdev_access *access, uint64_t *value)
{
    (void)device, (void)access;
    *value = 77;
    return UMDEV_PENDING;
}
"""


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Device]:
    """A device with a register whose reads nobody ever completes."""
    builder = FFI()
    builder.cdef(
        "typedef struct umdev_access umdev_access;int later(void *device, const umdev_access *access, uint64_t *value);"
    )
    builder.set_source("umdev_test_later", SLOW)
    source, target = tmp_path / "later.c", tmp_path / "later.so"
    builder.emit_c_code(str(source))
    includes = [f"-I{umdev.get_include()}", f"-I{sysconfig.get_path('include')}"]
    subprocess.run(["gcc", "-shared", "-fPIC", *includes, str(source), "-o", str(target)], check=True)
    spec = importlib.util.spec_from_file_location("umdev_test_later", target)
    assert spec is not None
    sys.modules["umdev_test_later"] = importlib.util.module_from_spec(spec)

    class Registers(Block["Later"]):
        ident = Register(0, reset=7)
        later = Register(4, native=Native("umdev_test_later", "later"))

    class Later(Device):
        pci = PciId(vendor=1, device=2, class_code=0xFF0000)
        bar = MemoryBar(0, Registers, size=0x1000)

    with Later() as device:
        yield device
    del sys.modules["umdev_test_later"]


def test_the_end_of_a_client_ends_what_it_waits_for(waiting: Device, tmp_path: Path) -> None:
    served = Served(waiting, tmp_path / "s")
    for number in (1, 2):
        raw = served.connect()
        raw.enable()
        raw.put(9, ACCESS.pack(4, 0, 4))
        raw.put(9, ACCESS.pack(4, 0, 4))  # waits behind it
        raw.close()
        eventually(lambda: served.server.attachment.state.value == "attached")
        assert served.server.clients == number
    served.close()


def test_stop_ends_what_a_client_waits_for(waiting: Device, tmp_path: Path) -> None:
    served = Served(waiting, tmp_path / "s")
    raw = served.connect()
    raw.enable()
    reads = waiting.native.counters["reads"]
    raw.put(9, ACCESS.pack(4, 0, 4))
    eventually(lambda: waiting.native.counters["reads"] > reads)
    served.close()
    raw.close()


def test_a_handler_that_detaches_ends_the_connection(serve, device, memfd: int, monkeypatch) -> None:
    """The next client must get nothing that this one maps or connects afterwards."""
    served = serve()
    monkeypatch.setattr(type(device), "store", lambda device, value: served.server.attachment.detach())
    raw = served.connect()
    raw.enable()
    raw.write32(0, 0x1C, 1)
    assert served.server.attachment.state.value == "detached"
    assert raw.map(0, 0x1000, memfd) == errno.ENODEV
    with pytest.raises(EOFError):
        raw.get()
    raw.close()
    eventually(lambda: served.server.attachment.state.value == "attached")
    assert device.address_space.mappings == []
    again = served.connect()
    again.enable()
    assert again.read32(0, 0) == 0x5A3B1E
    again.close()


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("where", ["on_reset", "on_unmap"])
def test_no_exception_of_a_model_ends_a_server_thread(serve, device, memfd, monkeypatch, kind, where) -> None:
    served = serve()
    raw = served.connect()
    raw.enable()
    assert raw.map(0, 0x1000, memfd) == 0

    def fail(*_: object) -> None:
        raise kind("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(type(device), where, fail)
        assert (raw.unmap(0, 0x1000) if where == "on_unmap" else raw.call(RESET)[0]) == errno.EIO
        raw.close()
        eventually(lambda: served.server.attachment.state.value == "attached")
    again = served.connect()
    again.enable()
    assert again.read32(0, 0) == 0x5A3B1E
    again.close()


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_what_a_model_raises_keeps_no_map_of_a_lost_client(serve, device, memfd, monkeypatch, kind) -> None:
    served = serve()
    raw = served.connect()
    raw.enable()
    for page in range(3):
        assert raw.map(page << 16, 0x1000, memfd) == 0

    def fail(*_: object) -> None:
        raise kind("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(type(device), "on_unmap", fail)
        raw.close()
        eventually(lambda: served.server.attachment.state.value == "attached")
    assert device.address_space.mappings == []
    again = served.connect()
    again.enable()
    assert again.read32(0, 0) == 0x5A3B1E
    again.close()


def test_close_in_a_handler_is_refused(serve, device, monkeypatch) -> None:
    served = serve()
    said: list[str] = []

    def close(_: Device, value: int) -> None:
        try:
            served.server.close()
        except StateError as error:
            said.append(str(error))
        served.server.stop()

    monkeypatch.setattr(type(device), "store", close)
    raw = served.connect()
    raw.enable()
    raw.put(10, ACCESS.pack(0x1C, 0, 4) + bytes(4))
    served.thread.join(WAIT)
    assert not served.thread.is_alive()
    assert "call stop() here" in said[0]
    raw.close()


SERVE = """
import os, signal, sys
sys.path[:0] = {path!r}
from umdev.plugins import plugins
from umdev.device import Block, Device, MemoryBar, PciId, Register
class Regs(Block):
    plain = Register(0, reset=7)
    interrupts = Register(4)
    @interrupts.on_write
    def interrupted(self, value):
        os.kill(os.getpid(), signal.SIGINT)
class Tiny(Device):
    pci = PciId(1, 2, 3)
    bar = MemoryBar(0, Regs, size=4096)
device = Tiny()
server = plugins().load_bus("vfio-user").serve(device, path=sys.argv[1])
"""
TERMINATED = """
signal.signal(signal.SIGTERM, lambda *_: server.stop())
print("ready", flush=True)
server.run()
server.close()
print("done", flush=True)
"""
INTERRUPTED = """
print("ready", flush=True)
try:
    server.run()
except KeyboardInterrupt:
    server.close()
    print("interrupted", device.native.take_interrupt(), flush=True)
"""
FORKED = """
child = os.fork()
if not child:
    server.stop()
    server.close()
    os._exit(0)
os.waitpid(child, 0)
print("ready", flush=True)
server.run()
"""


@contextlib.contextmanager
def running(rest: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that serves in its main thread and has said "ready"."""
    script = SERVE.format(path=sys.path) + rest
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_sigterm_while_c_is_busy(tmp_path: Path) -> None:
    with running(TERMINATED, tmp_path / "s") as process, bus.connect(tmp_path / "s") as function:
        function.enable()
        end = function._client._socket
        posts = HEADER.pack(0, 10, 36, 0x10, 0) + ACCESS.pack(0, 0, 4) + bytes(4)
        posted = threading.Event()

        def hammer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    end.sendall(posts * 1000)
                    posted.set()

        thread = threading.Thread(target=hammer)
        thread.start()
        assert posted.wait(WAIT)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=120)
        thread.join()
        assert (out, process.returncode) == ("done\n", 0)


def test_an_interrupt_in_a_handler_ends_run(tmp_path: Path) -> None:
    with running(INTERRUPTED, tmp_path / "s") as process, bus.connect(tmp_path / "s") as function:
        function.enable()
        with contextlib.suppress(Disconnected, TransportError):
            function.bars[0].write32(4, 1)
        out, _ = process.communicate(timeout=120)
        assert (out, process.returncode) == ("interrupted None\n", 0)


def test_a_forked_process_closes_its_copy_alone(tmp_path: Path) -> None:
    with running(FORKED, tmp_path / "s"), bus.connect(tmp_path / "s") as function:
        assert function.bars[0].info.size == 4096


def test_nothing_is_left_of_a_server_without_descriptors(device, tmp_path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for left in range(3):
        held: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        try:
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.open("/dev/null", os.O_RDONLY))
            for _ in range(left):
                os.close(held.pop())
            with pytest.raises(TransportError, match="descriptor"):
                bus.serve(device, path=str(tmp_path / "s"))
            held += [os.open("/dev/null", os.O_RDONLY) for _ in range(left)]  # as many as before
        finally:
            for descriptor in held:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert list(tmp_path.iterdir()) == []
        assert device.attachment is None


def test_a_client_waits_for_a_place_no_longer_than_it_says(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(str(tmp_path / "s"))
        listening.listen(0)
        first.connect(str(tmp_path / "s"))
        with pytest.raises(TransportError, match="taken nobody in") as caught:
            bus.connect(tmp_path / "s", timeout=0.05)
        assert caught.value.errno == errno.ETIMEDOUT


def test_interrupt_vectors_of_a_failed_request_are_silent(raw) -> None:
    old, new = ([os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)] for _ in range(2))
    assert raw.irqs(0x24, 1, 0, 4, fds=old) == 0
    null = os.open("/dev/null", os.O_RDWR)
    assert raw.irqs(0x24, 1, 0, 4, fds=[new[0], null, *new[2:]]) == errno.EINVAL
    assert raw.irqs(0x21, 1, 0, 4) == 0  # trigger all
    for descriptor in (*old, *new):
        with pytest.raises(BlockingIOError):
            os.eventfd_read(descriptor)
        os.close(descriptor)
    os.close(null)
