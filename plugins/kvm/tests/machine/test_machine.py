"""Runs: modes, ends, limits, stops, resets, and guests that go wrong."""

import gc
import threading
import time
from pathlib import Path

import pytest
from umdev.errors import Conflict, HypervisorError, InvalidArgument, NotMapped, NotSupported, StateError
from umdev_kvm import Machine, OutcomeKind
from umdev_kvm.vm import failure, open_failure
from umdev_testkit.payloads import assemble

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize("mode", ["protected", "long"])
def test_a_payload_runs_and_exits(machine, mode):
    machine.load(assemble("mov eax, edi\n add eax, 0x41\n out 0xf4, eax", mode), mode)
    outcome = machine.run(10)
    assert (outcome.kind, outcome.value, outcome.vcpu) == (OutcomeKind.EXIT, 0x41, 0)


def test_real_mode_reaches_every_address(plugged):
    source = f"mov ebx, {plugged.firmware.address(1, 0):#x}\n mov eax, [ebx]\n out 0xf4, eax"
    plugged.load(assemble(source, "real", 0x7C00), "real")
    assert plugged.run(10).value == 0x5A3B1E


def test_a_run_goes_on_after_an_exit(machine):
    machine.load(assemble("exit 1\n exit 2"))
    assert [machine.run(10).value, machine.run(10).value] == [1, 2]


def test_a_spinning_processor_meets_the_time_limit(machine):
    machine.load(assemble("again: inc ecx\n cmp byte ptr [0x9000], 0\n je again\n exit 3"))
    outcome = machine.run(0.2)
    assert outcome.kind is OutcomeKind.TIME_LIMIT
    assert "rip=0x100" in outcome.where
    machine.ram.write(0x9000, b"\1")
    assert machine.run(10).value == 3


def test_a_triple_fault_is_an_outcome(machine):
    machine.load(assemble("lidt [zero]\n ud2\n zero: .quad 0"))
    outcome = machine.run(10)
    assert outcome.kind is OutcomeKind.TRIPLE_FAULT
    assert "rip=" in outcome.where


def test_the_keyboard_controller_and_the_power_port(machine):
    machine.load(assemble("mov al, 0xfe\n out 0x64, al"))
    assert machine.run(10).kind is OutcomeKind.RESET
    machine.reset()
    machine.load(assemble("mov dx, 0x604\n mov ax, 0x2000\n out dx, ax"))
    assert machine.run(10).kind is OutcomeKind.POWER_OFF


def test_stop_from_another_thread(machine):
    machine.load(assemble("again: jmp again"))
    timer = threading.Timer(0.2, machine.stop)
    timer.start()
    assert machine.run(20).kind is OutcomeKind.STOPPED
    timer.join()
    machine.stop()  # harmless


def test_processors_know_their_numbers(make_machine):
    machine = make_machine(memory=1 << 20, vcpus=2)
    machine.load(
        assemble(
            "mov byte ptr [0x9000 + edi], 1\n"
            "test edi, edi\n jnz park\n"
            "wait: cmp word ptr [0x9000], 0x0101\n jne wait\n exit 5\n"
            "park: jmp park"
        )
    )
    assert machine.run(20).value == 5


def test_reset_starts_over(plugged, run, sample):
    source = "inc dword ptr [0x9000]\n mov dword ptr [bar0 + 4], 7\n mov eax, [bar0 + 8]\n out 0xf4, eax"
    assert run(source) == 1
    plugged.reset()
    assert sample.resets[-1] == "BUS"
    assert plugged.bridge.placements == []
    plugged.firmware.enable(1)
    assert plugged.run(10).value == 1, "the device was reset, the payload loaded again"
    assert plugged.ram.read(0x9000, 1) == b"\2", "memory stays"


def test_a_reset_that_fails_leaves_the_machine_as_it_was(plugged, run, sample, monkeypatch):
    assert run("mov dword ptr [bar0 + 4], 7\n exit 1") == 1

    def refuse(*_):
        raise failure("KVM_CREATE_VM", -12)

    with monkeypatch.context() as patch:
        patch.setattr("umdev_kvm.machine.Vm", refuse)
        with pytest.raises(HypervisorError, match="KVM_CREATE_VM"):
            plugged.reset()
    assert run("mov dword ptr [bar0 + 4], 7\n mov eax, [bar0 + 8]\n out 0xf4, eax") == 2


def test_two_processors_lose_no_update(make_machine, sample):
    machine = make_machine(memory=1 << 20, vcpus=2)
    machine.firmware.enable(machine.plug(sample))
    bar = machine.firmware.address(1, 0)
    machine.load(
        assemble(
            f"mov ecx, 2000\nagain: mov dword ptr [{bar:#x} + 4], ecx\n loop again\n"
            "lock inc dword ptr [0x9000]\nwait: cmp dword ptr [0x9000], 2\n jne wait\n"
            f"test edi, edi\n jnz park\n mov eax, [{bar:#x} + 8]\n out 0xf4, eax\npark: jmp park"
        )
    )
    assert machine.run(60).value == 4000
    assert machine.counters["memory_writes"] == 4000


def test_a_handler_that_fails_takes_no_machine_down(run, sample):
    assert run("mov dword ptr [bar0 + 0x40], 1\n mov eax, [bar0]\n out 0xf4, eax") == 0x5A3B1E
    assert isinstance(sample.native.last_fault, RuntimeError)


def test_what_nobody_claims(run, plugged):
    assert run("mov eax, [0xd0000000]\n out 0xf4, eax") == 0xFFFFFFFF
    assert run("mov dx, 0x9999\n in eax, dx\n out 0xf4, eax") == 0xFFFFFFFF
    assert plugged.counters["unclaimed"] == 2


def test_the_serial_port(machine):
    machine.load(
        assemble(
            "mov dx, 0x3f8\n mov al, 'h'\n out dx, al\n mov al, 'i'\n out dx, al\n"
            "wait: mov dx, 0x3fd\n in al, dx\n test al, 1\n jz wait\n mov dx, 0x3f8\n in al, dx\n out 0xf4, al"
        )
    )
    assert machine.send(b"Q") == 1
    assert machine.run(10).value == ord("Q")
    assert machine.console_output == b"hi"


def test_calls_that_do_not_fit(machine, sample):
    with pytest.raises(InvalidArgument, match="64 processors"):
        Machine(vcpus=65)
    with pytest.raises(InvalidArgument, match="64 KiB"):
        Machine(memory=4096)
    with pytest.raises(InvalidArgument, match="mode"):
        machine.load(b"", "virtual")
    with pytest.raises(NotMapped):
        machine.load(b"\x90" * 64, address=0xB0000)
    with pytest.raises(InvalidArgument, match="slots 1 to 31"):
        machine.plug(sample, slot=0)
    machine.plug(sample, slot=5)
    with pytest.raises(StateError, match="already attached"):
        machine.plug(sample, slot=6)
    with pytest.raises(Conflict, match="slot 5"):
        machine.bridge.free_slot(5)
    machine.unplug(5)
    machine.close()
    machine.close()
    with pytest.raises(StateError, match="closed"):
        machine.run(1)


def test_busy_calls(machine, sample):
    machine.load(assemble("again: jmp again"))
    thread = threading.Thread(target=machine.run, args=(20,))
    thread.start()
    while not machine.running:
        time.sleep(0.01)
    for call in (lambda: machine.plug(sample), machine.reset, lambda: machine.run(1), lambda: machine.load(b"")):
        with pytest.raises(StateError, match="not running"):
            call()
    machine.stop()
    thread.join(20)


def test_a_thread_that_can_not_be_started(make_machine, monkeypatch):
    machine = make_machine(memory=1 << 20, vcpus=2)
    machine.load(assemble("again: jmp again"))
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "kvm processor 1":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="start"):
        machine.run(10)
    monkeypatch.undo()
    assert not machine.running
    machine.load(assemble("exit 3"))
    assert machine.run(10).value == 3


def test_closing_leaves_nothing_open(make_machine, sample):
    def life():
        machine = make_machine(memory=1 << 20)
        machine.firmware.enable(machine.plug(sample))
        machine.load(assemble("exit 1"))
        assert machine.run(10).value == 1
        machine.close()
        gc.collect()  # what earlier tests left
        return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())

    life()
    assert life() == life()


def test_why_kvm_cannot_be_opened():
    missing, denied = open_failure("open(/dev/kvm)", -2), open_failure("open(/dev/kvm)", -13)
    assert isinstance(missing, NotSupported)
    assert "modprobe" in str(missing)
    assert "usermod" in str(denied)
    busy = open_failure("KVM_CREATE_VM", -16)
    assert isinstance(busy, HypervisorError)
    assert busy.errno == 16
    assert busy.call == "KVM_CREATE_VM"
    assert "another hypervisor" in str(busy)


def test_a_chatty_guest_fills_no_memory(machine, monkeypatch):
    monkeypatch.setattr("umdev_kvm.machine.CONSOLE_LIMIT", 100)
    machine.reset()
    machine.load(assemble("mov dx, 0x3f8\n mov ecx, 1000\nagain: out dx, al\n loop again\n exit 1"))
    assert machine.run(20).value == 1
    assert len(machine.console_output) == 100
