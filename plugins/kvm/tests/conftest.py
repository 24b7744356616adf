"""What several test files here use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from umdev.addresses import Iova

HERE = Path(__file__).parent
PAGE = 4096
SIZE = 1 << 20
"""Bytes of a VMM's memory."""
BASE = 0x4000_0000
"""Where devices have it."""
PAGES = [Iova(BASE + number * PAGE) for number in range(SIZE // PAGE)]
ELSEWHERE = "(the same tests run inside a TCG guest: test_in_guest.py)"
"""Why it is no loss that this machine skips a test."""


class Process:
    """A child that answers one line for each line it gets; killed at the end."""

    def __init__(self, command, **options):
        self._child = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
        )
        self.pid = self._child.pid
        self.stderr = self._child.stderr

    def line(self):
        line = self._child.stdout.readline()
        assert line, f"process {self.pid} has ended: {self._child.wait(10)}"
        return line.rstrip("\n")

    def say(self, line):
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()

    def ask(self, line):
        self.say(line)
        return self.line()

    def kill(self):
        self._child.kill()
        return self.close()

    def wait(self):
        """Its exit status, once it has ended by itself."""
        return self._child.wait(20)

    def close(self):
        """End it by the end of its input; its exit status."""
        if self._child.poll() is None:
            try:
                self._child.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                self._child.kill()
        self._child.stdin.close()
        self._child.stdout.close()
        if self.stderr is not None:
            self.stderr.close()
        return self._child.wait(10)


class Vmm(Process):
    """A process with guest memory; `store` and its like are commands."""

    def __init__(self, program, environment, *more, command=()):
        self.ram = os.memfd_create("ram", os.MFD_CLOEXEC)
        os.ftruncate(self.ram, SIZE)
        super().__init__(
            [*command, program, self.ram, SIZE, *more], env=os.environ | dict(environment), pass_fds=[self.ram]
        )
        assert self.line() == "ready"
        from umdev.hypervisor import AddressSpace

        self.memory = AddressSpace()
        self.memory.map(BASE, SIZE, descriptor=self.ram)

    def protector(self, mode, pid=None):
        from umdev.hypervisor import UserfaultProtector
        from umdev_kvm import vm_protector_wire as wire
        from umdev_kvm.vm_protector_client import RemoteGuest

        guest = RemoteGuest(wire.socket_path(), self.pid if pid is None else pid)
        guest.on_close = self.memory.on_unmap(lambda _: guest.forget(), late=True)
        return UserfaultProtector(guest, self.memory, mode)

    def store(self, page, value):
        self.ask(f"store {page * PAGE} {value}")

    def word(self, page, index=0):
        return int.from_bytes(self.memory.read(BASE + page * PAGE + index * 4, 4), "little")

    def close(self):
        status = super().close()
        if self.ram >= 0:
            self.memory.close()
            os.close(self.ram)
            self.ram = -1
        return status


class Watcher:
    """A process with one device (watcher.py)."""

    def __init__(self, socket, hypervisor):
        self.socket = socket
        self._process = Process([sys.executable, HERE / "watcher.py", socket, hypervisor])
        self.pid = json.loads(self._process.line())["result"]

    def __getattr__(self, name):
        def call(*arguments):
            self.send(name, *arguments)
            return self.receive()

        return call

    def send(self, name, *arguments):
        self._process.say(json.dumps([name, *arguments]))

    def receive(self):
        answer = json.loads(self._process.line())
        assert "error" not in answer, answer
        return answer["result"]

    def refused(self, name, *arguments):
        """The error's type and text."""
        self.send(name, *arguments)
        answer = json.loads(self._process.line())
        assert "error" in answer, answer
        return answer["error"], answer["text"]

    def kill(self):
        self._process.kill()

    def close(self):
        return self._process.close()


def running_protectors():
    """The protectors that this process has started and that run, by process id; the latest is the last."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            parent, started = [int((folder / "stat").read_text().rpartition(") ")[2].split()[at]) for at in (1, 19)]
        except OSError:
            continue  # it has ended
        if parent == os.getpid() and b"umdev_kvm.vm_protector" in command:
            found.append((started, int(folder.name)))
    return [pid for _, pid in sorted(found)]


@pytest.fixture
def protectors():
    """`protectors()`: those that this process has started and that run, by process id; the latest is the last."""
    return running_protectors


@pytest.fixture
def runtime(monkeypatch):
    """A runtime directory; at the end nothing may be left in it."""
    with TemporaryDirectory(prefix="umdev-") as folder:  # short: the path of a socket has at most 107 bytes
        path = Path(folder) / "run"
        monkeypatch.setenv("UMDEV_RUNTIME_DIR", str(path))
        monkeypatch.setenv("UMDEV_PROTECTOR_LOG", str(Path(folder) / "protector.log"))
        yield path
        log = Path(folder) / "protector.log"
        if log.exists():
            print(f"--- protector\n{log.read_text()}")
        deadline = time.monotonic() + 60
        while path.exists() and list(path.iterdir()):  # the last one to leave turns off the light
            assert time.monotonic() < deadline, list(path.iterdir())
            time.sleep(0.01)
        for thread in [thread for thread in threading.enumerate() if thread.name == "umdev protector"]:
            thread.join(60)  # the next test may count threads


@pytest.fixture
def setup(runtime):
    """A protector, and what a VMM needs in its environment."""
    from umdev.errors import NotSupported
    from umdev.hypervisor import open_userfault
    from umdev_kvm.qemu import prepare_client

    try:
        os.close(open_userfault().descriptor)
    except NotSupported as error:
        pytest.skip(f"{error} {ELSEWHERE}")
    ready = prepare_client("vfio-user")
    yield ready
    ready.close()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Compile a C program of native/ for this machine, once."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is needed: apt-get install gcc libc6-dev")

    @cache
    def build(name, *flags):
        target = tmp_path_factory.mktemp("build") / name
        source = HERE / "native" / f"{name}.c"
        subprocess.run(["gcc", "-O1", "-Wall", "-Wextra", "-pthread", *flags, source, "-o", target], check=True)
        return target

    return build


@pytest.fixture
def watcher(tmp_path):
    """Start a process with a device: `watcher("a")`."""
    started = []

    def start(name, hypervisor="kvm"):
        with_folder = TemporaryDirectory(prefix="umdev-")
        started.append((Watcher(Path(with_folder.name) / name, hypervisor), with_folder))
        return started[-1][0]

    yield start
    for process, folder in started:
        process.close()
        folder.cleanup()


@pytest.fixture
def vmm(setup, compiled):
    """Start a VMM in little."""
    program = compiled("vmm")
    started = []

    def start(*more, **options):
        started.append(Vmm(program, setup.environment, *more, **options))
        return started[-1]

    yield start
    for process in started:
        process.close()


@pytest.fixture
def trap(vmm):
    """A VMM and a TRAP protector of it."""
    from umdev.hypervisor import ProtectMode

    machine = vmm()
    protector = machine.protector(ProtectMode.TRAP)
    yield machine, protector
    protector.close()


@pytest.fixture
def child():
    """Start another process that answers lines."""
    started = []

    def start(command, **options):
        started.append(Process(command, **options))
        return started[-1]

    yield start
    for process in started:
        process.close()
