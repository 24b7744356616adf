"""Attachments: states, services, what is given back."""

import gc
import os
import threading
from pathlib import Path

import pytest
from umdev.attach import Attachment, AttachmentState
from umdev.device import Block, Device, Interrupts, MemoryBar, PciId, ProtectMode, Register, ResetKind, State, Window
from umdev.errors import ServiceUnavailable, StateError
from umdev.loopback import bus
from umdev.plugins import plugins

PAGE = 4096


class Registers(Block["Simple"]):
    value = Register(0)


class Ram(Block["Simple"]):
    low = Window(0, 4096)
    secret = Window(4096, 4096, passthrough=False)


class Simple(Device):
    pci = PciId(vendor=1, device=2, class_code=0)
    interrupts = Interrupts(intx=True, msi=4)
    bar0 = MemoryBar(0, Registers, size=4096)
    bar2 = MemoryBar(2, Ram, size=8192)
    unmapped: State[list[int]] = State(list, save=False)

    def on_unmap(self, mapping):
        assert self.native.held
        self.unmapped.append(mapping.length)


def descriptors():
    gc.collect()  # what earlier tests left
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def device():
    with Simple() as device:
        yield device


@pytest.fixture
def attachment(device):
    attachment = Attachment(device, "loopback")
    yield attachment
    if attachment.state is not AttachmentState.REMOVED:
        attachment.remove()


def test_the_life_of_an_attachment(attachment):
    states = []
    for verb in ("attach", "run", "quiesce", "resume", "detach", "remove"):
        getattr(attachment, verb)()
        states.append(attachment.state.value)
    assert states == ["attached", "running", "quiesced", "running", "detached", "removed"]
    attachment.remove()


FITTING = {
    "attach": {"detached"},
    "run": {"attached"},
    "quiesce": {"running"},
    "resume": {"quiesced"},
    "detach": {"attached", "running", "quiesced"},
}
PATHS = {
    "detached": [],
    "attached": ["attach"],
    "running": ["attach", "run"],
    "quiesced": ["attach", "run", "quiesce"],
    "removed": ["remove"],
}


@pytest.mark.parametrize("verb", FITTING)
@pytest.mark.parametrize("state", PATHS)
def test_a_call_in_the_wrong_state_names_it(attachment, state, verb):
    for step in PATHS[state]:
        getattr(attachment, step)()
    if state in FITTING[verb]:
        getattr(attachment, verb)()
        return
    with pytest.raises(StateError, match=f"is {state}"):
        getattr(attachment, verb)()
    assert attachment.state.value == state


def test_one_attachment_at_a_time(device, attachment):
    attachment.attach()
    with pytest.raises(StateError, match="already attached to loopback"):
        Attachment(device, "loopback").attach()


def test_only_passthrough_windows_are_areas(attachment):
    attachment.attach()
    assert [(area.offset, area.length) for area in attachment.regions[2].areas] == [(0, 4096)]
    assert attachment.irq_counts[:3] == (1, 4, 0)


def test_services_say_how(attachment):
    attachment.attach()
    named = attachment.services.mechanisms
    assert {"trap[0]", "trap[2]", "trap[7]", "passthrough[2+0x0]", "interrupt", "map"} <= set(named)
    attachment.services.pinner()
    assert "mlock" in attachment.services.mechanisms["pin"]
    assert attachment.services.pinner() is attachment.services.pinner()


def test_a_refusal_names_who_and_why(attachment):
    attachment.attach()
    with pytest.raises(ServiceUnavailable, match=r"loopback.*emulated") as caught:
        attachment.services.protector(ProtectMode.EMULATE)
    assert [reason for _, reason in caught.value.reasons]
    assert attachment.services.refused


def test_detached_services_are_closed(device, attachment):
    attachment.attach()
    services = attachment.services
    attachment.detach()
    with pytest.raises(StateError, match="detached"):
        services.pinner()
    with pytest.raises(StateError, match="not attached"):
        device.memory.collect()


def test_detach_takes_the_drivers_side_away(device, attachment):
    attachment.attach()
    attachment.run()
    memory = os.memfd_create("guest")
    os.ftruncate(memory, 1 << 20)
    attachment.memory.map(0, 1 << 20, descriptor=memory)
    os.close(memory)
    gc.collect()  # what earlier tests left
    before = descriptors()
    attachment.interrupts.connect(0, 0, event := os.eventfd(0))
    assert descriptors() == before + 2
    attachment.detach()
    os.close(event)
    assert device.unmapped == [1 << 20]
    assert attachment.memory.mappings == []
    assert descriptors() <= before
    assert device.native.read(0, 0, 4) == b"\xff" * 4, "the device is gone for a driver that comes late"


class Failing(Device):
    """Raises wherever a model can while it is taken away."""

    pci = PciId(vendor=1, device=2, class_code=0)
    interrupts = Interrupts(intx=True)
    bar0 = MemoryBar(0, Registers, size=4096)

    def on_reset(self, kind):
        if kind is not ResetKind.POWER_ON:
            raise ZeroDivisionError

    def on_unmap(self, mapping):
        raise ZeroDivisionError

    def on_close(self):
        raise ZeroDivisionError


class BadService:
    mechanism = "none"

    def close(self):
        raise ZeroDivisionError


def test_a_model_that_raises_is_detached_and_closed_all_the_same(caplog):
    gc.collect()  # what earlier tests left
    before = descriptors()
    function = bus.open_function(device := Failing())
    attachment = function.attachment
    attachment.services._bound["bad"] = BadService()  # a plugin that breaks the promise of Service.close
    function.close()
    assert device.native.counters["faulted"] == 1
    assert "the handler of on_reset failed" in caplog.text
    assert "closing bad failed" in caplog.text
    assert attachment.state is AttachmentState.DETACHED
    assert attachment.memory.mappings == []
    with pytest.raises(ZeroDivisionError):
        attachment.remove()
    assert attachment.state is AttachmentState.REMOVED
    device.close()
    assert descriptors() == before
    assert device.native.read(0, 0, 4) == b"\xff" * 4


def test_an_addon_that_raises_keeps_nothing_attached(device, attachment, monkeypatch):
    attachment.attach()
    attachment.run()

    def tell(hook, **_):
        raise ExceptionGroup(hook, [ZeroDivisionError()])

    monkeypatch.setattr(plugins(), "tell", tell)
    with pytest.raises(ExceptionGroup):
        attachment.detach()
    assert attachment.state is AttachmentState.DETACHED
    assert device.attachment is None
    with pytest.raises(ExceptionGroup, match="umdev_attached"):
        Attachment(device, "loopback").attach()
    assert device.attachment is None


class Trigger(Block["Selfish"]):
    go = Register(0)

    @go.on_write
    def act(self, value):
        self.device.act()


class Selfish(Simple):
    """Takes itself away from within a handler."""

    bar0 = MemoryBar(0, Trigger, size=4096)
    act: State = State(lambda: None, save=False)


def test_detach_and_close_from_within_a_handler():
    with Selfish() as device:
        with bus.open_function(device) as function:
            function.enable()
            buffer = function.allocate(PAGE)
            device.memory.pin(buffer.address)
            device.memory.protect(ProtectMode.TRAP, [buffer.address], lambda write: None)
            device.act = function.attachment.detach
            function.region_write(0, 0, bytes(4))
            assert function.attachment.state is AttachmentState.DETACHED
        device.native.set_gone(False)
        device.native.set_region_enabled(0, True)
        device.act = device.close
        device.native.raise_faults = True
        with pytest.raises(StateError, match="lock held"):
            device.native.write(0, 0, bytes(4))


def test_a_handler_may_quiesce():
    with Selfish() as device, bus.open_function(device) as function:
        function.enable()
        device.act = function.attachment.quiesce
        device.native.raise_faults = True
        function.region_write(0, 0, bytes(4))
        assert function.attachment.state is AttachmentState.QUIESCED
        assert device.clock.paused


def test_a_handler_can_not_wait_for_its_turn_to_detach():
    """Another thread is detaching and waits for the device lock, which this handler has."""
    with Selfish() as device, bus.open_function(device) as function:
        function.enable()
        refused = []

        def act():
            other.start()
            while (guard := function.attachment._guard).acquire(blocking=False):
                guard.release()
            for call in (function.attachment.detach, function.attachment.quiesce, function.reset):
                try:
                    call()
                except StateError as error:
                    refused.append(str(error))

        device.act = act
        other = threading.Thread(target=function.attachment.detach)
        function.region_write(0, 0, bytes(4))
        other.join(10)
        assert not other.is_alive()
        assert [text.partition(":")[0] for text in refused] == ["detach()", "quiesce()", "reset()"]
        assert function.attachment.state is AttachmentState.DETACHED


def test_detach_while_a_notification_asks_for_services():
    """The notification needs the services that detach is closing, and detach waits for the notification."""
    with Simple() as device:
        function = bus.open_function(device)
        function.enable()
        buffer = function.allocate(PAGE)
        entered, leave, ended = threading.Event(), threading.Event(), []

        def told(write):
            entered.set()
            leave.wait()
            try:
                device.memory.unprotect(ProtectMode.TRACK, [write.address])
            except StateError as error:
                ended.append(str(error))

        device.memory.protect(ProtectMode.TRAP, [buffer.address], told)
        store = threading.Thread(target=buffer.write, args=(0, b"x"))
        store.start()
        entered.wait()
        closing = threading.Thread(target=function.attachment.services.close)  # what detach does, less its own lock
        closing.start()
        while not function.attachment.services._closed:
            pass
        leave.set()
        for thread in (closing, store):
            thread.join(10)
            assert not thread.is_alive(), "they wait for each other"
        assert ended == ["protect[track]: the attachment is detached"]
        function.close()


def test_a_kept_device_keeps_its_state(device, attachment):
    attachment.attach()
    attachment.run()
    device.bar0.value.value = 7
    attachment.detach(None)
    assert device.bar0.value.value == 7
    again = Attachment(device, "loopback")
    again.attach()
    again.run()
    again.detach(ResetKind.CLIENT_LOST)
    assert device.bar0.value.value == 0


def test_plugins_hear_of_changed_memory(attachment, monkeypatch):
    told = []
    monkeypatch.setattr(plugins(), "tell", lambda hook, **arguments: told.append((hook, *arguments.values())))
    attachment.attach()
    memory = os.memfd_create("guest")
    os.ftruncate(memory, 1 << 20)
    attachment.memory.map(0, 1 << 20, descriptor=memory)
    attachment.memory.unmap(0, 1 << 20)
    attachment.memory.unmap(0, 1 << 20)  # nothing there: no change
    attachment.memory.map(0, 1 << 20, descriptor=memory)
    attachment.detach(None)
    changed = ("umdev_memory_changed", attachment)
    assert told == [("umdev_attached", attachment), *[changed] * 4, ("umdev_detached", attachment)]
    attachment.memory.map(0, 1 << 20, descriptor=memory)
    assert told[-1][0] == "umdev_detached", "nobody is attached any more"
    os.close(memory)


def test_quiesce_stops_work(attachment, device):
    attachment.attach()
    attachment.run()
    ran = []
    attachment.quiesce()
    device.after(0, lambda: ran.append(1))
    assert device.clock.paused
    assert ran == []
    attachment.resume()
    device.work.close()


def test_twenty_and_two_hundred_attachments_cost_the_same(device):
    def count():
        return descriptors(), Path("/proc/self/maps").read_text().count("\n")

    counts = []
    for turn in range(200):
        with bus.open_function(device) as function, function.allocate(4096) as buffer:
            function.enable()
            buffer.write(0, b"x")
            assert device.memory.read(buffer.address, 1) == b"x"
        if turn in {19, 199}:
            counts.append(count())
    assert counts[0][0] == counts[1][0]
    assert abs(counts[0][1] - counts[1][1]) <= 2


def test_nobody_gets_what_was_left_in_a_detached_device(device, attachment):
    """A bus that goes on filling the device after a detach leaves the next driver none of it."""
    attachment.attach()
    attachment.detach()
    secret = os.memfd_create("secret")
    os.ftruncate(secret, PAGE)
    attachment.memory.map(PAGE, PAGE, descriptor=secret)
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    attachment.interrupts.connect(1, 0, bell)
    attachment.attach()
    assert attachment.memory.mappings == []
    assert not attachment.interrupts.trigger(1, 0)
    os.close(secret)
    os.close(bell)
