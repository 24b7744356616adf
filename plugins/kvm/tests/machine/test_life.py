"""Machines that are made, closed, forgotten, forked and refused: nothing is left, and nobody else's file is touched."""

import errno
import gc
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from umdev.errors import HypervisorError, InvalidArgument, StateError
from umdev_kvm import Machine
from umdev_kvm._fast import ffi, lib
from umdev_kvm.vm import check, failure
from umdev_testkit.payloads import assemble

from .conftest import ELSEWHERE
from .test_hostile import open_things
from .test_routes import msi

pytestmark = pytest.mark.kvm


def test_a_closed_machine_touches_no_file_that_has_its_numbers(make_machine, tmp_path):
    machine = make_machine(memory=1 << 20)
    machine.close()
    others = [os.memfd_create("other", os.MFD_CLOEXEC) for _ in range(16)]
    for call in (
        lambda: machine.ram.write(0, b"overwritten"),
        lambda: machine.ram.read(0, 4),
        lambda: machine.console_output,
        lambda: machine.ram.main.descriptor,
        lambda: machine.send(b"key"),
        lambda: machine.counters,
        machine.pause,
    ):
        with pytest.raises(StateError, match="closed"):
            call()
    assert [os.fstat(other).st_size for other in others] == [0] * len(others)
    for other in others:
        os.close(other)


def test_a_machine_that_can_not_be_made_leaves_nothing(make_machine, monkeypatch):
    make_machine(memory=1 << 20).close()  # skips without KVM

    def refuse(*_):
        raise failure("KVM_SET_USER_MEMORY_REGION", -errno.ENOMEM)

    before = open_things()
    with pytest.raises(InvalidArgument, match="descriptor 9999 is not open"):
        Machine(memory=1 << 20, console=9999)
    with monkeypatch.context() as patch:
        patch.setattr("umdev_kvm.slots.MemorySlots.add", refuse)
        with pytest.raises(HypervisorError, match="no memory for its page tables"):
            Machine(memory=1 << 20)
    assert open_things() == before


def test_a_machine_that_is_forgotten_warns_and_leaves_nothing(make_machine):
    make_machine(memory=1 << 20).close()  # skips without KVM
    before = open_things()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        Machine(memory=1 << 20)
        gc.collect()
    assert [str(warning.message) for warning in said if warning.category is ResourceWarning] == [
        "unclosed machine: call close(), or use it in a with statement"
    ]
    assert open_things() == before


def test_a_reset_that_fails_half_way_can_be_done_again(plugged, run, sample, monkeypatch):
    assert run("mov eax, [bar0]\n out 0xf4, eax") == 0x5A3B1E
    before = open_things()
    with monkeypatch.context() as patch:
        patch.setattr(plugged.slots, "_set", lambda *_: -errno.ENOMEM)
        with pytest.raises(HypervisorError, match="no memory for its page tables"):
            plugged.reset()
    for call in (lambda: plugged.run(1), lambda: plugged.load(b""), lambda: plugged.plug(sample)):
        with pytest.raises(StateError, match="reset it again"):
            call()
    plugged.reset()
    plugged.firmware.enable(1)
    assert plugged.run(60).value == 0x5A3B1E
    assert open_things() == before


def test_a_half_reset_machine_with_interrupt_routes_closes(plugged, run, sample, monkeypatch):
    assert run(f"{msi(sample, 0x50)} exit 3") == 3
    assert plugged.bridge._routes._routes, "the kernel has a route"
    monkeypatch.setattr(plugged.slots, "_set", lambda *_: -errno.ENOMEM)
    with pytest.raises(HypervisorError):
        plugged.reset()
    with pytest.raises(StateError, match="reset it again"):
        plugged.unplug(1)
    plugged.close()
    assert sample.attachment is None


def test_a_console_that_fails_once_is_tried_again(make_machine, tmp_path):
    path = tmp_path / "console"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    machine = make_machine(memory=1 << 20, console=writer)
    machine.load(assemble("mov dx, 0x3f8\n mov al, 'a'\nagain: out dx, al\n inc al\n out 0xf4, al\n jmp again"))
    machine.run(60)
    assert os.read(reader, 10) == b"a"
    os.close(reader)
    machine.run(60)  # nobody reads: EPIPE
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    machine.run(60)
    assert os.read(reader, 10) == b"c"
    machine.close()
    os.close(reader)
    os.close(writer)


CHILD = """
import os, signal, threading
from umdev.device import Block, Device, MemoryBar, PciId, Register, State
from umdev.errors import StateError
from umdev_kvm import Machine
from umdev_testkit.payloads import assemble

class Registers(Block["Held"]):
    act = Register(0x00)
    bell = Register(0x10, doorbell=1)

    @act.on_write
    def acts(self, value):
        self.device.entered.set()
        assert self.device.go_on.wait(60)

    @bell.on_write
    def rung(self, value):
        pass

class Held(Device):
    pci = PciId(vendor=0x1234, device=0xAC9, class_code=0xFF0000)
    bar0 = MemoryBar(0, Registers, size=0x1000)
    entered: State[threading.Event] = State(threading.Event, save=False)
    go_on: State[threading.Event] = State(threading.Event, save=False)

def kvm_descriptors():
    names = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return [name for name in names if os.path.exists(name) and "kvm" in os.readlink(name)]

with Held() as device, Machine(memory=1 << 20) as machine:
    machine.firmware.enable(machine.plug(device))
    bar = machine.firmware.address(1, 0)
    machine.load(assemble(f"mov dword ptr [{bar + 0x10:#x}], 1\\n mov dword ptr [{bar:#x}], 1\\n exit 9"))
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(machine.run(60)))
    thread.start()
    assert device.entered.wait(60)
    guarded = threading.Event()

    def hold():  # as one does who pauses, and waits for the handler
        with machine._guard:
            guarded.set()
            assert device.go_on.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert guarded.wait(60)
    child = os.fork()
    if child == 0:  # the handler's thread is not here, and its lock is held for ever
        signal.alarm(30)
        refused = 0
        for call in (machine.pause, machine.resume, machine.stop, machine.reset, lambda: machine.run(1),
                     lambda: machine.send(b"key"), lambda: machine.counters, lambda: machine.load(b"")):
            try:
                call()
            except StateError as error:
                refused += "the process that forked this one" in str(error)
        print("refused", refused, flush=True)
        machine.close()
        os._exit(len(kvm_descriptors()))
    print("child", os.waitpid(child, 0)[1], flush=True)
    device.go_on.set()
    holder.join()
    thread.join()
    print(outcomes[0])
"""


def script(text):
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", text],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,  # the caller shows what it said
    )


def test_a_forked_child_closes_its_copy_and_the_parent_goes_on(make_machine):
    make_machine(memory=1 << 20)  # skips without KVM
    said = script(CHILD)
    assert said.stdout.splitlines() == ["refused 8", "child 0", "exit 0x9 by processor 0"], said.stderr


STRANGER = """
import os
from umdev.errors import NotSupported
from umdev_kvm import Machine

if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
if os.access("/dev/kvm", os.R_OK | os.W_OK):
    print("open to all")
else:
    try:
        Machine(memory=1 << 20)
    except NotSupported as error:
        print(error)
"""


def test_who_may_not_open_kvm_is_told_what_to_do():
    if not Path("/dev/kvm").exists():
        pytest.skip(f"there is no /dev/kvm {ELSEWHERE}")
    said = script(STRANGER)
    if said.stdout == "open to all\n":
        pytest.skip(f"everybody may open this host's /dev/kvm {ELSEWHERE}")
    assert said.stdout == "/dev/kvm may not be opened: usermod -aG kvm $USER, then log in anew\n", said.stderr


def overlap(machine, _):
    check(lib.umdev_kvm_set_slot(machine.vm.pointer, 100, 0, 4096, machine.ram.parts[0].host, 0), SET_SLOT)


def crooked(machine, _):
    check(lib.umdev_kvm_set_slot(machine.vm.pointer, 100, 0x8000_0001, 4096, machine.ram.parts[0].host, 0), SET_SLOT)


def connected_twice(machine, signal):
    machine.vm.set_irqfd(24, signal)
    machine.vm.set_irqfd(24, signal)


def no_eventfd(machine, _):
    machine.vm.set_irqfd(24, machine.ram.main.descriptor)


def two_bells(machine, _):
    for number in range(2):
        code = lib.umdev_kvm_add_doorbell(machine.vm.pointer, number, 0, 0xD000_0000, 4, 0, 1, ffi.NULL, 0, 0)
        check(code, "KVM_IOEVENTFD")


SET_SLOT = "KVM_SET_USER_MEMORY_REGION"


@pytest.mark.parametrize(
    ("wrong", "call", "number", "cause"),
    [
        (overlap, SET_SLOT, errno.EEXIST, "overlaps another memory slot"),
        (crooked, SET_SLOT, errno.EINVAL, "a crooked address"),
        (connected_twice, "KVM_IRQFD", errno.EBUSY, "connected already"),
        (no_eventfd, "KVM_IRQFD", errno.EINVAL, "no such interrupt"),
        (two_bells, "KVM_IOEVENTFD", errno.EEXIST, "a doorbell is there already"),
    ],
)
def test_what_the_kernel_refuses_has_its_name_number_and_cause(machine, wrong, call, number, cause):
    signal = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    with pytest.raises(HypervisorError, match=cause) as caught:
        wrong(machine, signal)
    assert (caught.value.call, caught.value.errno) == (call, number)
    assert str(caught.value).startswith(f"{call}: {os.strerror(number)}")
    os.close(signal)
