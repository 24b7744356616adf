"""A machine that is paused: processors, clocks, rings, and who may ask for it."""

import threading
import time

import pytest
from umdev.device import Block, Device, MemoryBar, PciId, Register, State
from umdev.errors import StateError
from umdev_testkit.payloads import assemble

pytestmark = pytest.mark.kvm


class Registers(Block["Acting"]):
    act = Register(0x00)

    @act.on_write
    def acts(self, value: int) -> None:
        self.device.entered.set()
        assert self.device.go_on.wait(60)
        self.device.does()


class Acting(Device):
    """Does what a test says while its lock is held."""

    pci = PciId(vendor=0x1234, device=0xAC7, class_code=0xFF0000)
    bar0 = MemoryBar(0, Registers, size=0x1000)
    entered: State[threading.Event] = State(threading.Event, save=False)
    go_on: State[threading.Event] = State(threading.Event, save=False)
    does: State[object] = State(lambda: None, save=False)


def until(check) -> None:
    deadline = time.monotonic() + 60
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.002)


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
    thread = threading.Thread(target=lambda: outcomes.append(plugged.run(30)))
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while plugged.ram.read(0x9000, 4) == bytes(4) and time.monotonic() < deadline:
            time.sleep(0.01)
        plugged.pause()
        plugged.pause()
        before, clock = plugged.ram.read(0x9000, 4), sample.clock.now
        time.sleep(0.05)
        assert (plugged.ram.read(0x9000, 4), sample.clock.now) == (before, clock)
        plugged.resume()
        assert plugged.ram.read(0x9000, 4) == before
        plugged.resume()
        while plugged.ram.read(0x9000, 4) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert plugged.ram.read(0x9000, 4) != before
        plugged.ram.write(0x9004, b"\1")
    finally:
        thread.join(30)
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
