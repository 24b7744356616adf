"""Who ends a run, that nothing of it is lost, and what the next payload finds."""

import fcntl
import math
import signal
import struct
import threading
import time
from pathlib import Path

import pytest
from umdev.bus import AttachmentState
from umdev.device import Block, Device, IoBar, MemoryBar, PciId, Register, State
from umdev.errors import HypervisorError, InvalidArgument, StateError
from umdev_kvm import Machine, OutcomeKind
from umdev_kvm._fast import lib
from umdev_testkit.payloads import assemble

pytestmark = pytest.mark.kvm

SET_VCPU_EVENTS = 0x4040_AEA0
"""linux/kvm.h: KVM_SET_VCPU_EVENTS."""


def in_thread(work):
    """Start it; the thread, and a list that will have its result or error."""
    said = []

    def go():
        try:
            said.append(work())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            said.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    return thread, said


def test_a_run_that_still_collects_its_processors_is_under_way(machine, monkeypatch):
    collect, reached, go_on = machine._processors._collect, threading.Event(), threading.Event()

    def held():
        collect()
        reached.set()
        assert go_on.wait(60)

    monkeypatch.setattr(machine._processors, "_collect", held)
    machine.load(assemble("exit 5"))
    running, said = in_thread(lambda: machine.run(60))
    assert reached.wait(60)
    assert machine.running
    with pytest.raises(StateError, match="not running"):
        machine.reset()
    closing, closed = in_thread(machine.close)
    while not machine._processors._stop:
        time.sleep(0.002)
    assert closing.is_alive(), "it waits for the run"
    with pytest.raises(StateError, match="closed"):
        machine._processors.enter()  # no run begins meanwhile
    go_on.set()
    running.join(60)
    closing.join(60)
    assert closed == [None]
    assert said[0].kind is OutcomeKind.STOPPED, "the guest's own end would be told by the next run"
    assert not machine.running


def test_closing_ends_the_run_of_another_thread(machine):
    machine.load(assemble("mov byte ptr [0x9000], 1\nagain: jmp again"))
    running, said = in_thread(lambda: machine.run(120))
    while running.is_alive() and not machine.ram.read(0x9000, 1)[0]:
        pass
    machine.close()
    running.join(60)
    assert said[0].kind is OutcomeKind.STOPPED
    with pytest.raises(StateError, match="closed"):
        machine.run(1)


def test_a_stop_between_runs_is_for_the_next_one(machine):
    machine.load(assemble("exit 5"))
    machine.stop()
    machine.stop()
    machine.reset()
    assert machine.run(60).kind is OutcomeKind.STOPPED
    assert machine.run(60).value == 5


def test_processors_that_end_at_once_are_told_one_after_the_other(make_machine):
    machine = make_machine(memory=1 << 20, vcpus=2)
    machine.load(
        assemble(
            "lock inc dword ptr [0x9000]\nwait: cmp dword ptr [0x9000], 2\n jne wait\n"
            "lea eax, [edi + 1]\n out 0xf4, eax\npark: jmp park"
        )
    )
    ends = [machine.run(60), machine.run(60)]
    assert sorted((end.value, end.vcpu) for end in ends) == [(1, 0), (2, 1)]
    assert machine.run(0).kind is OutcomeKind.TIME_LIMIT


def test_what_two_processors_meet_at_once_is_raised_twice(make_machine, sample, monkeypatch):
    machine = make_machine(memory=1 << 20, vcpus=2)
    machine.plug(sample)
    both = threading.Barrier(2)

    def fail(slot):
        both.wait(60)
        raise HypervisorError(f"on purpose, slot {slot}")

    machine.load(assemble("mov word ptr [0xb0008004], 7\npark: jmp park"))
    with monkeypatch.context() as patch:
        patch.setattr(machine.bridge, "synchronise", fail)
        for _ in range(2):
            with pytest.raises(HypervisorError, match="on purpose, slot 1"):
                machine.run(60)
    assert machine.run(0).kind is OutcomeKind.TIME_LIMIT


def test_an_end_in_the_last_moment_is_the_outcome(machine, monkeypatch):
    processors, ended, over = machine._processors, threading.Event(), threading.Event()
    until_end, collect = processors._until_end, processors._collect

    def late(index):
        end = until_end(index)
        ended.set()
        assert over.wait(60)
        return end

    def collected():
        assert ended.wait(60)
        over.set()
        collect()

    monkeypatch.setattr(processors, "_until_end", late)
    monkeypatch.setattr(processors, "_collect", collected)
    machine.load(assemble("exit 3\n exit 4"))
    assert machine.run(-1).value == 3
    assert machine.run(60).value == 4


def test_a_new_payload_forgets_ends_that_nobody_was_told(machine):
    machine.load(assemble("exit 3"))
    machine._processors._ends.append(HypervisorError("of the old payload"))
    machine.load(assemble("exit 4"))
    assert machine.run(60).value == 4


def test_a_handler_that_does_not_return_ends_no_wait_with_it(machine, monkeypatch):
    monkeypatch.setattr("umdev_kvm.processors.JOIN_TIMEOUT", 0.1)
    entered, let_go = threading.Event(), threading.Event()

    def hang():
        entered.set()
        let_go.wait(120)

    with Held() as device:
        device.does = hang
        machine.firmware.enable(machine.plug(device))
        machine.load(assemble(f"mov eax, [{machine.firmware.address(1, 0):#x}]\n exit 7"))
        running, said = in_thread(lambda: machine.run(120))
        assert entered.wait(60)
        machine.stop()
        running.join(60)
        try:
            assert isinstance(said[0], StateError)
            with pytest.raises(StateError, match="not running"):
                machine.reset()
            with pytest.raises(StateError, match="not returned"):
                machine.close()
        finally:
            let_go.set()
        monkeypatch.undo()
        machine.close()


def test_a_resume_while_a_run_begins_lets_time_pass(plugged, monkeypatch):
    run, states = plugged._processors.run, []
    attachment = plugged.bridge.functions[0].attachment

    def resumed(deadline):
        plugged.resume()
        states.append(attachment.state)
        return run(deadline)

    monkeypatch.setattr(plugged._processors, "run", resumed)
    plugged.load(assemble("exit 1"))
    plugged.pause()
    assert plugged.run(60).value == 1
    assert states == [AttachmentState.RUNNING]
    assert attachment.state is AttachmentState.QUIESCED


def test_limits(machine):
    machine.load(assemble("exit 1\n exit 2"))
    assert machine.run(math.inf).value == 1
    assert machine.run(1e300).value == 2
    with pytest.raises(InvalidArgument, match="seconds"):
        machine.run(math.nan)


# The next payload.


class Slow(Block["Held"]):
    data = Register(0x00)
    edge = Register(0xFFC)
    beyond = Register(0x1000)

    @data.on_read
    def read(self) -> int:
        self.device.does()
        return 0x5A5A

    @edge.on_write
    def written(self, value: int) -> None:
        self.device.does()


class SlowPorts(Block["Held"]):
    data = Register(0x00)

    @data.on_read
    def read(self) -> int:
        self.device.does()
        return 0x5A5A


class Held(Device):
    """Does what a test says in the middle of an access."""

    pci = PciId(vendor=0x1234, device=0xAC8, class_code=0xFF0000)
    bar0 = MemoryBar(0, Slow, size=0x2000, sizes=(2, 4))
    bar1 = IoBar(1, SlowPorts, size=16)
    does: State[object] = State(lambda: None, save=False)


BEFORE = """
    lidt [idtr]
    mov {a}, cr4
    or {a}, 0x200
    mov cr4, {a}
    exit 1
idtr: .word 0x77
    .quad 0x12345
"""
AFTER = "sidt [0x9000]\n mov {a}, cr0\n mov [0x9010], {a}\n mov {a}, cr4\n mov [0x9018], {a}\n exit 2"


@pytest.mark.parametrize("before", ["protected", "long"])
@pytest.mark.parametrize(
    ("mode", "control", "control4"), [("real", 0, 0), ("protected", 1, 0), ("long", 0x8000_0001, 0x220)]
)
def test_a_payload_meets_no_register_of_the_one_before_it(machine, before, mode, control, control4):
    machine.load(assemble(BEFORE.format(a="rax" if before == "long" else "eax"), before), before)
    assert machine.run(60).value == 1
    machine.ram.write(0x9000, bytes(32))
    machine.load(assemble(AFTER.format(a="rax" if mode == "long" else "eax"), mode, 0x7C00), mode, address=0x7C00)
    assert machine.run(60).value == 2
    limit, base, cr0, cr4 = struct.unpack("<HQ6xQQ", machine.ram.read(0x9000, 32))
    assert (limit, base) == (0xFFFF, 0)
    assert (cr0 & 0x8000_0001, cr4) == (control, control4)


def test_a_payload_meets_no_interrupt_of_the_one_before_it(machine):
    """One that was about to be delivered as the run ended."""
    machine.load(assemble("exit 1"))
    assert machine.run(60).value == 1
    descriptors = list(Path("/proc/self/fd").iterdir())  # one of them was the list's own
    (vcpu,) = [entry for entry in descriptors if entry.exists() and "kvm-vcpu:0" in str(entry.readlink())]
    injected = bytearray(64)  # linux/kvm.h: struct kvm_vcpu_events
    injected[8:10] = 1, 0x50  # interrupt.injected, interrupt.nr
    fcntl.ioctl(int(vcpu.name), SET_VCPU_EVENTS, bytes(injected))
    machine.load(assemble("exit 2"))
    outcome = machine.run(60)
    assert (outcome.kind, outcome.value) == (OutcomeKind.EXIT, 2), str(outcome)


@pytest.fixture
def held(machine):
    with Held() as device:
        machine.firmware.enable(machine.plug(device))

        def end():
            machine.stop()
            lib.umdev_kvm_end(machine.vm.pointer)  # now, so that the processor does not enter again

        device.does = end
        yield device
        machine.close()


def leave_in_the_middle(machine, source):
    bars = f".set bar0, {machine.firmware.address(1, 0):#x}\n.set bar1, {machine.firmware.address(1, 1):#x}\n"
    machine.load(assemble(bars + source), address=0x20000)
    assert machine.run(60).kind is OutcomeKind.STOPPED


@pytest.mark.parametrize("access", ["mov eax, [bar0]", "mov edx, bar1\n in eax, dx"])
def test_a_payload_meets_nothing_of_the_read_before_it(machine, held, access):
    leave_in_the_middle(machine, f"{access}\nagain: jmp again")
    machine.load(assemble("out 0xf4, eax"))
    outcome = machine.run(60)
    assert (outcome.kind, outcome.value) == (OutcomeKind.EXIT, 0)


def test_the_rest_of_a_store_is_done_before_the_next_payload(machine, held):
    leave_in_the_middle(machine, "mov dword ptr [bar0 + 0xffe], 0x11223344\nagain: jmp again")
    assert held.native.read(0, 0x1000, 4) == bytes(4)
    machine.load(assemble("exit 7"))
    assert held.native.read(0, 0x1000, 4) == b"\x22\x11\0\0"
    assert machine.run(60).value == 7


def test_a_run_goes_on_with_the_access_it_ended_in(machine, held):
    leave_in_the_middle(machine, "mov eax, [bar0]\n out 0xf4, eax")
    assert machine.run(60).value == 0x5A5A


def test_no_payload_while_the_machine_is_paused(machine):
    machine.pause()
    with pytest.raises(StateError, match="not paused"):
        machine.load(assemble("exit 7"))
    machine.resume()


# The signal.


@pytest.fixture
def dispositions():
    """Real-time signals whose handlers a test sets: the default again at its end."""
    numbers = range(signal.SIGRTMIN, signal.SIGRTMAX - 2)
    yield numbers
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)


def test_a_thread_that_blocks_signals_has_its_limit(machine):
    machine.load(assemble("again: jmp again"))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        assert machine.run(0.1).kind is OutcomeKind.TIME_LIMIT
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_signals_of_the_program_stay_its_own(machine, dispositions):
    heard = []
    mine, ignored = dispositions[-1], dispositions[-2]
    signal.signal(mine, lambda *_: heard.append(True))
    signal.signal(ignored, signal.SIG_IGN)
    machine.load(assemble("again: jmp again"))
    assert machine.run(0.1).kind is OutcomeKind.TIME_LIMIT
    assert heard == []
    signal.raise_signal(mine)
    assert heard == [True]


def test_a_program_that_uses_every_signal_is_told_so(machine, dispositions):
    for number in dispositions:
        signal.signal(number, signal.SIG_IGN)
    machine.load(assemble("exit 1"))
    with pytest.raises(HypervisorError, match=r"sigaction.*every real-time signal"):
        machine.run(1)
    with pytest.raises(HypervisorError, match="every real-time signal"):
        Machine(memory=1 << 20)
    signal.signal(dispositions[0], signal.SIG_DFL)
    assert machine.run(60).value == 1
