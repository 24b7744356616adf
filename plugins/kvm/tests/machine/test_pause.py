"""A machine that is paused: processors, clocks, rings, and who may ask for it."""

import threading
import time

import pytest
from umdev.device import Block, Device, Iova, MemoryBar, PciId, ProtectMode, Register, State
from umdev.errors import StateError
from umdev_kvm import Posted
from umdev_testkit.payloads import assemble

from .conftest import until

pytestmark = pytest.mark.kvm


class Registers(Block["Acting"]):
    act = Register(0x00)
    posted = Register(0x20)
    plain = Register(0x24)

    @act.on_write
    def acts(self, value: int) -> None:
        self.device.entered.set()
        assert self.device.go_on.wait(60)
        self.device.does()

    @posted.on_write
    def stored(self, value: int) -> None:
        self.device.stores += 1


class Acting(Device):
    """Does what a test says while its lock is held."""

    pci = PciId(vendor=0x1234, device=0xAC7, class_code=0xFF0000)
    bar0 = MemoryBar(0, Registers, size=0x1000)
    entered: State[threading.Event] = State(threading.Event, save=False)
    go_on: State[threading.Event] = State(threading.Event, save=False)
    does: State[object] = State(lambda: None, save=False)
    stores: State[int] = State(lambda: 0, save=False)


@pytest.fixture
def running(request):
    """Run a machine in a thread; it is stopped at the end."""
    started = []

    def start(machine, source):
        machine.load(assemble(source))
        thread = threading.Thread(target=machine.run, args=(120,))
        thread.start()
        started.append((machine, thread))

    yield start
    for machine, thread in started:
        machine.stop()
        thread.join()


def test_pause_holds_processors_and_clocks(plugged, sample):
    plugged.load(assemble("again: inc dword ptr [0x9000]\n cmp byte ptr [0x9004], 0\n je again\n exit 9"))
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(plugged.run(120)))
    thread.start()
    try:
        until(lambda: plugged.ram.read(0x9000, 4) != bytes(4))
        plugged.pause()
        plugged.pause()
        before, clock = plugged.ram.read(0x9000, 4), sample.clock.now
        time.sleep(0.05)
        assert (plugged.ram.read(0x9000, 4), sample.clock.now) == (before, clock)
        plugged.resume()
        assert plugged.ram.read(0x9000, 4) == before
        plugged.resume()
        until(lambda: plugged.ram.read(0x9000, 4) != before)
        plugged.ram.write(0x9004, b"\1")
    finally:
        thread.join(120)
    assert outcomes[0].value == 9
    with pytest.raises(StateError):
        plugged.resume()


def test_what_was_rung_before_a_pause_is_heard_before_it(plugged, sample, running):
    bar = plugged.firmware.address(1, 0)
    heard = []

    def pause():
        plugged.pause()
        heard.append(list(sample.log))

    pausing = threading.Thread(target=pause)
    with sample.locked():
        running(plugged, f"mov dword ptr [{bar + 0x14:#x}], 1\n mov dword ptr [0x9000], 1\nagain: jmp again")
        until(lambda: plugged.ram.read(0x9000, 1) == b"\1")
        pausing.start()
        until(lambda: plugged._pauses == 1)
    pausing.join()
    assert heard == [[("every", 0)]]
    plugged.resume()


def test_a_handler_that_would_wait_for_a_pause_that_waits_for_it_is_refused(machine, running):
    with Acting() as device:
        machine.firmware.enable(machine.plug(device))
        said = []

        def pause():
            try:
                machine.pause()
            except StateError as error:
                said.append(str(error))

        device.does = pause
        running(machine, f"mov dword ptr [{machine.firmware.address(1, 0):#x}], 1\nagain: jmp again")
        assert device.entered.wait(60)
        pausing = threading.Thread(target=machine.pause)
        pausing.start()
        until(lambda: machine._pauses == 1)
        device.go_on.set()
        pausing.join(60)
        assert not pausing.is_alive()
        assert len(said) == 1
        assert "wait for this handler" in said[0]
        machine.resume()
        machine.stop()
        until(lambda: not machine.running)
        machine.close()  # before the device


def test_a_paused_machine_is_not_reset(plugged, run):
    assert run("exit 1") == 1
    plugged.pause()
    vm = plugged.vm
    with pytest.raises(StateError, match="not paused"):
        plugged.reset()
    assert plugged.vm is vm, "nothing has changed"
    plugged.resume()
    plugged.reset()
    assert plugged.run(60).value == 1


@pytest.fixture
def acting(make_machine):
    """A machine of two processors with the device; what processor 1 does begins when the byte at 0x9000 is set."""
    machine = make_machine(memory=4 << 20, vcpus=2)
    with Acting() as device:
        device.go_on.set()
        machine.firmware.enable(machine.plug(device, posted=(Posted(0, 0x20, 4),)))
        yield machine, device
        machine.close()


def run_both(machine, other):
    bar = machine.firmware.address(1, 0)
    machine.load(
        assemble(
            f".set bar, {bar:#x}\n test edi, edi\n jnz other\n mov dword ptr [bar], 1\n exit 7\n"
            f"other: cmp byte ptr [0x9000], 0\n je other\n {other}\npark: jmp park"
        )
    )
    return machine.run(60)


def test_a_handler_pauses_while_posted_stores_wait_for_it(acting):
    """Who empties the ring has its mutex, and waits for the lock that the handler holds."""
    machine, device = acting
    before = []

    def pause():
        machine.ram.write(0x9000, b"\1")
        until(lambda: machine.counters["coalesced"])
        machine.pause()
        before.append(device.stores)
        machine.resume()

    device.does = pause
    assert run_both(machine, "mov dword ptr [bar + 0x20], 1\n mov eax, [bar + 0x24]").value == 7
    assert (before, device.stores) == ([0], 1)


def test_a_handler_pauses_while_a_store_waits_for_it_or_is_refused(userfault, acting, monkeypatch):
    """Some KVMs let a processor leave in the middle of a fault, others don't: the handler waits for ever with none."""
    machine, device = acting
    monkeypatch.setattr("umdev_kvm.machine.STOP_SECONDS", 1)
    device.address_space.bus_master = True
    device.memory.protect(ProtectMode.TRAP, [Iova(0x20_0000)], lambda _: None)
    said = []

    def pause():
        machine.ram.write(0x9000, b"\1")
        until(lambda: machine.protection.guest.faults)
        try:
            machine.pause()
        except StateError as error:
            said.append(str(error))
            with pytest.raises(StateError, match="not paused"):
                machine.resume()
        else:
            said.append("waits for its notification, outside of the guest")
            machine.resume()

    device.does = pause
    assert run_both(machine, "mov dword ptr [0x200000], 5").value == 7
    (text,) = said
    assert "waits for its notification" in text
