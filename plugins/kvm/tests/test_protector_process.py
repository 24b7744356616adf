"""The protector as a process that several connect to: when it starts and ends, and what it makes of its peers."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from umdev.errors import InvalidArgument, ProtectError
from umdev.hypervisor import ProtectMode
from umdev_kvm import qemu, vm_protector_client
from umdev_kvm import vm_protector_wire as wire
from umdev_kvm.vm_protector import VmProtector
from umdev_kvm.vm_protector_vm import RemoteDevice, Vm

from .conftest import BASE, ELSEWHERE, PAGE, PAGES, SIZE

pytestmark = pytest.mark.kvm


def vanishes(pid):
    """The process ends, and is no zombie."""
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("seconds", ["soon", "-1", "inf"])
def test_a_patience_that_is_none_is_a_named_error(runtime, monkeypatch, seconds):
    monkeypatch.setenv(wire.PATIENCE_VARIABLE, seconds)
    with pytest.raises(InvalidArgument, match=f"PATIENCE={seconds}: seconds"):
        qemu.prepare_client("vfio-user")


def test_a_protector_that_is_killed_wakes_the_vmm_and_can_be_started_anew(setup, vmm, caplog, protectors):
    machine = vmm()
    protector = machine.protector(ProtectMode.TRAP)
    entered = threading.Event()
    release = threading.Event()

    def wait(_):
        entered.set()
        release.wait(5)

    protector.protect(PAGES, wait)
    machine.say("store 0 1")
    entered.wait(5)
    pid = protectors()[-1]
    os.kill(pid, signal.SIGKILL)
    assert machine.line() == "0"
    release.set()
    machine.store(1, 1)
    assert machine.word(0) == 1
    with pytest.raises(ProtectError, match="it is gone"):
        protector.protect(PAGES, wait)
    deadline = time.monotonic() + 60
    while "no longer watched" not in caplog.text:  # a thread of its own hears of it, and not after the close
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.01)
    protector.close()
    vanishes(pid)
    again = qemu.prepare_client("vfio-user")
    with pytest.raises(ProtectError, match="has lent its memory to no protector"):
        machine.protector(ProtectMode.TRAP)
    again.close()


@pytest.mark.parametrize(
    "message",
    [
        b"\xff" * 64,
        wire.HEADER.pack(0, 99),
        wire.HEADER.pack(0, wire.Operation.ARM),
        wire.HEADER.pack(0, wire.Operation.LEND),
        wire.HEADER.pack(wire.LEND.size, wire.Operation.LEND) + wire.LEND.pack(wire.VERSION, 0, 1),
        wire.HEADER.pack(wire.CLIENT.size, wire.Operation.CLIENT) + wire.CLIENT.pack(1, 1),
        wire.HEADER.pack(3, wire.Operation.STAY) + b"abc" + wire.HEADER.pack(8, wire.Operation.COLLECT) + bytes(8),
        wire.HEADER.pack(100, wire.Operation.CLIENT),
    ],
)
def test_nonsense_ends_its_own_connection_only(setup, trap, message):
    vmm, protector = trap
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.connect(str(wire.socket_path()))
        link.settimeout(60)
        link.sendall(message)
        link.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):  # with something unread behind it
            while link.recv(1 << 16):
                pass
    seen = []
    protector.protect(PAGES[:1], seen.append)
    vmm.store(0, 1)
    assert len(seen) == 1


def test_a_vmm_that_lends_something_else_hurts_nobody_else(setup, trap):
    vmm, protector = trap
    ours = os.getpid()
    with contextlib.ExitStack() as links:
        liar, device = (links.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) for _ in range(2))
        pipe = os.pipe()
        liar.connect(str(wire.socket_path()))
        liar.settimeout(60)
        wire.send(liar, wire.Operation.LEND, wire.LEND.pack(wire.VERSION, 0, 1), pipe)
        for end in pipe:
            os.close(end)
        assert wire.receive(liar, []) == (0, b"")
        device.connect(str(wire.socket_path()))
        device.settimeout(60)
        _, theirs = (links.enter_context(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        wire.send(device, wire.Operation.CLIENT, wire.CLIENT.pack(ours, 1), [theirs.fileno()])
        status, text = wire.receive(device, [])
        if status == 0:  # it is found out when memory is looked for
            file = os.fstat(vmm.ram)
            wire.send(device, wire.Operation.AREAS, wire.FILE.pack(file.st_dev, file.st_ino))
            status, text = wire.receive(device, [])
        assert status < 0
        assert b"userfaultfd" in text
    seen = []
    protector.protect(PAGES[:1], seen.append)
    vmm.store(0, 1)
    assert len(seen) == 1


def test_another_user_is_turned_away(setup, tmp_path):
    if os.getuid():
        pytest.skip(f"only root can be somebody else {ELSEWHERE}")
    path = wire.socket_path()
    program = (
        "import os, socket, sys\nos.setuid(65534)\nlink = socket.socket(socket.AF_UNIX)\nlink.connect(sys.argv[1])\n"
        "link.settimeout(60)\ntry:\n    print(link.recv(8))\nexcept ConnectionResetError:\n    print(b'')\n"
    )
    modes = [(entry, entry.stat().st_mode & 0o7777) for entry in (path, path.parent, path.parent.parent)]
    try:
        for entry, mode in modes:
            entry.chmod(mode | (0o666 if entry == path else 0o011))
        done = subprocess.run(
            [sys.executable, "-c", program, path], capture_output=True, text=True, timeout=30, check=True
        )
    finally:
        for entry, mode in modes:
            entry.chmod(mode)
    assert done.stdout == "b''\n"


def test_more_connections_than_descriptors_hurt_nobody_else(setup, trap, protectors):
    vmm, protector = trap
    seen = []
    protector.protect(PAGES[:1], seen.append)
    pid = protectors()[-1]
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
    with contextlib.ExitStack() as links:
        first, link = (links.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) for _ in range(2))
        first.connect(str(wire.socket_path()))  # the accept that waits already has a descriptor
        link.connect(str(wire.socket_path()))
        link.settimeout(0.3)
        wire.send(link, wire.Operation.STAY)
        with pytest.raises(TimeoutError):
            link.recv(1)
        vmm.store(0, 1)
        assert len(seen) == 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        link.settimeout(60)
        assert wire.receive(link, []) == (0, b""), "it is served when there are descriptors again"


def test_the_protector_ends_with_the_last_that_needs_it(runtime, protectors):
    before = protectors()
    first = qemu.prepare_client("vfio-user")
    second = qemu.prepare_client("vfio-user")
    assert qemu.prepare_client("loopback") is None
    (pid,) = set(protectors()) - set(before)
    first.close()
    assert wire.socket_path().exists()
    second.close()
    second.close()
    assert not wire.socket_path().exists()
    vanishes(pid)


def test_a_program_that_ignores_its_children_may_start_a_protector(runtime, protectors):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        ready = qemu.prepare_client("vfio-user")
        pid = protectors()[-1]
        ready.close()
        ready.close()
        vanishes(pid)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_protector_that_is_slow_to_accept_keeps_its_place(setup, runtime, monkeypatch, protectors):
    """Nobody can connect while as many wait as may; that it runs is not in doubt."""
    monkeypatch.setattr(qemu, "START_SECONDS", 0.2)
    monkeypatch.setattr(vm_protector_client.Connection.__init__, "__defaults__", (0.2,))
    path = wire.socket_path()
    before = path.stat().st_ino, protectors()
    pid = protectors()[-1]
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)  # all of its threads
    try:
        with contextlib.ExitStack() as links:
            with contextlib.suppress(BlockingIOError):
                while True:
                    link = links.enter_context(socket.socket(socket.AF_UNIX))
                    link.setblocking(False)
                    link.connect(str(path))
            with pytest.raises(BlockingIOError):
                qemu.prepare_client("vfio-user")
            with pytest.raises(ProtectError, match="takes no connection: Resource temporarily"):
                vm_protector_client.RemoteGuest(path, os.getpid()).client(ProtectMode.TRAP, None, None)
            (row,) = [row for row in qemu.doctor() if row.check == "QEMU protector"]
            assert row.ok is None
            assert "takes no connection" in row.text
            assert (path.stat().st_ino, protectors()) == before
            # One that has time waits for its turn.
            monkeypatch.undo()
            monkeypatch.setenv("UMDEV_RUNTIME_DIR", str(runtime))
            later = threading.Timer(0.1, os.kill, (pid, signal.SIGCONT))
            later.start()
            qemu.prepare_client("vfio-user").close()
            later.join()
            assert protectors() == before[1]
    finally:
        os.kill(pid, signal.SIGCONT)


def test_no_descriptor_for_a_connection_is_no_reason_for_a_second_protector(setup, monkeypatch, protectors):
    before = protectors()

    def refuse(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(vm_protector_client.socket, "socket", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            qemu.prepare_client("vfio-user")
    assert wire.socket_path().exists()
    assert protectors() == before


def test_a_device_that_gets_no_descriptor_of_its_own_leaves_none(monkeypatch):
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def refuse(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with ours, monkeypatch.context() as patch:
        patch.setattr(os, "eventfd", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            RemoteDevice(Vm(os.getpid(), (), errno.EPERM, 0), ProtectMode.TRAP, theirs.detach(), ours)
        ours.settimeout(60)
        assert ours.recv(1) == b"", "nobody has the other end any more"


def test_a_connection_that_no_thread_can_serve_ends_and_the_next_one_is_served(runtime, monkeypatch, caplog):
    runtime.mkdir(mode=0o700)
    path = runtime / "protector"
    with contextlib.ExitStack() as stack:
        listener, first, refused, third = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(4))
        listener.bind(str(path))
        listener.listen()
        served = threading.Thread(target=VmProtector(listener, path).run)
        served.start()
        for link in (first, refused, third):
            link.settimeout(60)
        first.connect(str(path))
        wire.send(first, wire.Operation.STAY)
        assert wire.receive(first, []) == (0, b"")
        with monkeypatch.context() as patch:

            def refuse(_):
                raise RuntimeError("can't start new thread")

            patch.setattr(threading.Thread, "start", refuse)
            refused.connect(str(path))
            assert refused.recv(1) == b""
        third.connect(str(path))
        wire.send(third, wire.Operation.STAY)
        assert wire.receive(third, []) == (0, b"")
        for link in (first, third):  # one after the other: the last one ends it
            link.shutdown(socket.SHUT_WR)
            assert link.recv(1) == b""
        served.join(60)
        assert not served.is_alive()
    assert "can't be served: can't start new thread" in caplog.text


def test_a_request_that_fails_disarms_nothing_that_was_armed_before(trap):
    vmm, protector = trap
    seen = []
    protector.protect(PAGES[:2], lambda write: seen.append(write.address))
    client = protector._client
    armed = min(protector._armed)
    many = [
        armed + number * PAGE for number in range(SIZE // PAGE)
    ] * 257  # more than one batch, if they come in batches
    assert client.arm([*many, PAGE]) == (errno.EFAULT, PAGE)
    assert protector.pages == 2
    vmm.store(0, 1)
    vmm.store(1, 1)
    vmm.store(2, 1)
    assert seen == PAGES[:2]


def test_more_pages_than_a_request_holds_are_a_named_error(trap, monkeypatch):
    _, protector = trap
    monkeypatch.setattr(wire, "PAGES_MAX", 2)
    with pytest.raises(ProtectError, match="3 pages to arm: the VM's protector takes 2"):
        protector.protect(PAGES[:3], print)
    protector.protect(PAGES[:2], print)
    protector.protect(PAGES[2:4], print)
    protector.unprotect(PAGES[:4])
    assert protector.pages == 0


def test_a_child_that_a_devices_process_forks_ends_and_leaves_the_pages_armed(vmm, child, tmp_path):
    machine = vmm()
    script = tmp_path / "forks.py"
    script.write_text(
        "import os, signal, sys, warnings\n"
        "from umdev.hypervisor import *\n"
        "from umdev.errors import ProtectError\n"
        "from umdev_kvm.qemu import prepare_client\n"
        "from umdev_kvm.vm_protector_client import RemoteGuest\n"
        "from umdev_kvm import vm_protector_wire as wire\n"
        "warnings.simplefilter('ignore', DeprecationWarning)  # forking beside threads is what this is about\n"
        "pid, ram = int(sys.argv[1]), int(sys.argv[2])\n"
        "ready = prepare_client('vfio-user')\n"
        f"memory = AddressSpace(); memory.map({BASE}, {SIZE}, descriptor=ram)\n"
        "protector = UserfaultProtector(RemoteGuest(wire.socket_path(), pid), memory, ProtectMode.TRAP)\n"
        f"protector.protect([Iova({BASE})], lambda write: print('told', flush=True))\n"
        "forked = os.fork()\n"
        "if forked == 0:\n"
        "    signal.alarm(60)\n"
        "    try:\n"
        f"        protector.protect([Iova({BASE + PAGE})], print)\n"
        "    except ProtectError as error:\n"
        "        print(error, flush=True)\n"
        "    protector.close()\n"
        "    ready.close()\n"
        "    sys.exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]), protector.pages, flush=True)\n"
        "sys.stdin.read()\n"
    )
    forks = child([sys.executable, script, machine.pid, machine.ram], pass_fds=[machine.ram])
    assert "knows the process that forked this one, and not this one" in forks.line()
    assert forks.line() == "7 1"
    machine.store(0, 1)
    assert forks.line() == "told"
