"""`umdev run`: it ends when it is told to, at whatever moment, and says what to do where KVM can't go on."""

import os
import pty
import subprocess
import sysconfig
import termios
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from umdev.errors import HypervisorError
from umdev_kvm import Machine, OutcomeKind, boot_linux
from umdev_kvm.command import command
from umdev_kvm.ending import Ending
from umdev_kvm.probe import why_partial
from umdev_testkit import kernels
from umdev_testkit.payloads import assemble
from umdev_testkit.serial_initramfs import build_serial

from .conftest import small_kernel

pytestmark = pytest.mark.kvm

UMDEV = Path(sysconfig.get_path("scripts")) / "umdev"
SPIN = "again: jmp again"
REBOOT = "mov al, 0xfe\n out 0x64, al\n again: jmp again"
IRET = "pushfd\n push 0x10\n push offset after\n iretd\nafter: exit 7"
SECONDS = 150
"""That nothing takes unless it hangs."""


@pytest.fixture
def kernel(make_machine, tmp_path):
    """A bzImage of a few instructions: `kernel(source)`."""
    make_machine(memory=1 << 20).close()  # asked for what it skips on

    def make(source):
        path = tmp_path / "kernel"
        path.write_bytes(small_kernel(source))
        return path

    return make


@pytest.fixture
def environment(tmp_path):
    return {**os.environ, "UMDEV_RUNTIME_DIR": str(tmp_path / "run"), "UMDEV_CONFIG_DIR": str(tmp_path / "etc")}


@pytest.fixture
def run(environment):
    """`umdev run` with a kernel; killed at the test's end."""
    started = []

    def start(kernel, *words, stdin=subprocess.DEVNULL):
        line = [UMDEV, "run", "--kernel", kernel, "--memory", "16", "--limit", str(SECONDS), *words]
        pipes = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(line, env=environment, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process):
    """Its exit status and the last line that it told people."""
    _, errors = process.communicate(timeout=SECONDS)
    assert "Traceback" not in errors
    return process.returncode, errors.splitlines()[-1]


def test_what_the_guest_says_is_the_status(kernel, run):
    assert ended(run(kernel("exit 3"), "edu", "edu", "mtty/mtty-1")) == (
        3,
        "the machine ended: exit 0x3 by processor 0",
    )


def test_stop_ends_a_machine_that_reboots_for_ever(kernel, run, environment):
    process = run(kernel(REBOOT), "edu")
    uuid = process.stderr.readline().split()[2]
    stopping = subprocess.run(
        [UMDEV, "stop", "-u", uuid], env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert (stopping.returncode, stopping.stderr) == (0, "")
    assert ended(process) == (0, "the machine ended: stopped")


@pytest.mark.parametrize("keys", [0, 6000], ids=["at-once", "behind-keys-that-the-guest-does-not-take"])
def test_a_key_ends_it(kernel, run, keys):
    mine, its = pty.openpty()
    try:
        process = run(kernel(SPIN), stdin=its)
        deadline = time.monotonic() + SECONDS
        while termios.tcgetattr(mine)[3] & termios.ICANON:  # what comes before it is raw is thrown away
            assert time.monotonic() < deadline
            time.sleep(0.01)
        left = b"x" * keys + b"\x1d"
        while left:
            left = left[os.write(mine, left) :]
        assert ended(process) == (0, "the machine ended: stopped")
    finally:
        os.close(mine)
        os.close(its)


def called(kernel, monkeypatch, ends, limit=20):
    """The command in this process, which hosts nothing: its status; `ends` gets what others end it by."""

    @contextmanager
    def hosted(_devices, _bus, end):
        ends.append(end)
        yield []

    monkeypatch.setattr("umdev_cli.hosted.hosted", hosted)
    return command.callback(
        devices=(), kernel=str(kernel), initrd=None, append="", memory=16, cpus=1, limit=limit, reboot=True
    )


def test_an_end_while_the_kernel_is_loaded(kernel, monkeypatch):
    ends = []

    def load(*words):
        boot_linux(*words)
        ends[0]()

    monkeypatch.setattr("umdev_kvm.linux.boot_linux", load)
    assert called(kernel(SPIN), monkeypatch, ends) == 0


def test_an_end_while_the_machine_is_reset(kernel, monkeypatch):
    ends, resets = [], []
    reset = Machine.reset

    def slow(machine):
        resets.append(threading.Thread(target=ends[0]))
        stops = machine.stop
        stopped = threading.Event()
        monkeypatch.setattr(machine, "stop", lambda: (stops(), stopped.set()))
        resets[-1].start()
        assert stopped.wait(SECONDS)
        reset(machine)

    monkeypatch.setattr(Machine, "reset", slow)
    assert called(kernel(REBOOT), monkeypatch, ends) == 0
    assert len(resets) == 1
    resets[0].join()


def test_an_end_when_a_run_is_about_to_begin(machine, monkeypatch):
    """It is stopped as soon as it has begun."""
    machine.load(assemble(SPIN))
    ending = Ending()
    asking = threading.Thread(target=ending.ask)
    stopped = threading.Event()
    run, stop = machine.run, machine.stop

    def late(limit):
        asking.start()
        assert stopped.wait(SECONDS)
        return run(limit)

    monkeypatch.setattr(machine, "run", late)
    monkeypatch.setattr(machine, "stop", lambda: (stop(), stopped.set()))
    with ending.of(machine):
        assert ending.run(machine, 20).kind is OutcomeKind.STOPPED
        assert ending.run(machine, 20).kind is OutcomeKind.STOPPED
        assert asking.is_alive(), "who asks waits for the block"
    asking.join()


def test_the_limit(kernel, monkeypatch):
    assert called(kernel(SPIN), monkeypatch, [], limit=0.1) == 124


def test_where_kvm_runs_no_operating_system_the_command_says_what_to_do(kernel, monkeypatch):
    if why_partial() is None:
        assert called(kernel(IRET), monkeypatch, []) == 7
        return
    with pytest.raises(HypervisorError) as caught:
        called(kernel(IRET), monkeypatch, [])
    (note,) = caught.value.__notes__
    assert "VT-x or AMD-V" in note
    assert "umdev serve" in note


@pytest.mark.complete_kvm
@pytest.mark.timeout(900)
def test_linux_with_devices(make_machine, tmp_path):
    make_machine(memory=1 << 20).close()  # asked for what it skips on
    initrd = tmp_path / "initrd"
    initrd.write_bytes(build_serial("cat /sys/bus/pci/devices/0000:00:0[12].0/uevent; reboot -f"))
    with subprocess.Popen(
        [
            *(UMDEV, "run", "--kernel", kernels.kernel("cloud").image),
            *("--initrd", initrd, "--append", "console=ttyS0 quiet", "--memory", "256", "--limit", "700"),
            *("--no-reboot", "edu", "mtty/mtty-1"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        slots = [process.stderr.readline().split() for _ in range(2)]
        assert [slot for slot, *_ in slots] == ["0000:00:01.0", "0000:00:02.0"]
        asked = [UMDEV, "show", slots[1][2], "--query", "terminals"]
        shown = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=False)
        out, err = process.communicate(timeout=800)
    assert "/dev/pts/" in shown.stdout, shown.stdout + shown.stderr
    assert "PCI_ID=1234:11E8" in out, out + err
    assert "PCI_ID=4348:3253" in out
    assert "the machine ended: reset" in err
    assert process.returncode == 0
