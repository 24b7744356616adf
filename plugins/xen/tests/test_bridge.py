"""A domain's slots and BARs, where what Xen and the C loop are told is noted down."""

import pytest
from umdev.errors import Conflict, HypervisorError
from umdev.loopback import bus
from umdev_edu import Edu
from umdev_mtty import Mtty1
from umdev_xen import bridge as bridges
from umdev_xen.bridge import Bridge, Plugged


class Calls:
    """The C loop and the ioreq server: functions and ranges that they have."""

    def __init__(self):
        self.functions, self.slots, self.ranges, self.published = {}, set(), set(), []
        self.failing = None
        self.drained = []
        """The functions of slots as processors were waited for."""

    def set_bridge(self, *, present):
        assert present

    def set_function(self, slot, device):
        self.functions[slot] = device

    def drain(self):
        self.drained.append(dict(self.functions))

    def publish(self, ranges):
        if self.failing == "publish":
            raise Conflict("there is no memory")
        self.published = [each[0] for each in ranges]

    def map_function(self, slot):
        if self.failing == "map_function":
            raise HypervisorError("no room")
        self.slots.add(slot)

    def unmap_function(self, slot):
        self.slots.remove(slot)

    def map_range(self, start, length, *, io):
        self.ranges.add((start, length, io))

    def unmap_range(self, start, length, *, io):
        self.ranges.remove((start, length, io))


class Interrupts:
    """In place of the function's wires."""

    made: list

    def __init__(self, attachment, native, slot, *, intx):
        self.closed = False
        Interrupts.made.append(self)

    def synchronise(self):
        pass

    def close(self):
        self.closed = True


@pytest.fixture
def calls():
    return Calls()


@pytest.fixture
def edu():
    with Edu() as device, bus.open_function(device) as function:
        yield function


def test_beside_another_device_model_slots_are_taken_from_the_top(calls):
    bridge = Bridge(calls, calls, host_bridge=False, others=True)
    assert bridge.free_slot(None) == 31
    bridge.plugged[31] = bridge.plugged[30] = Plugged(31, None)
    assert bridge.free_slot(None) == 29
    assert bridge.free_slot(4) == 4
    bridge.plugged.update(dict.fromkeys(range(1, 32), bridge.plugged[31]))
    with pytest.raises(Conflict, match="all 31 slots of the domain are taken"):
        bridge.free_slot(None)
    assert Bridge(calls, calls, host_bridge=False, others=False).free_slot(None) == 1


def test_no_bar_lies_over_the_ports_of_configuration_space(calls):
    bridge = Bridge(calls, calls, host_bridge=True, others=False)
    assert calls.ranges == {(0xCF8, 4, True)}
    with Mtty1() as card, bus.open_function(card) as function:
        bridge.plugged[1] = Plugged(1, function.attachment)
        function.config.write(0x10, (0xCF8).to_bytes(4, "little"))
        function.config.write(4, b"\1\0")
        bridge.synchronise(1)
        assert (bridge.bad_placements, calls.published) == (1, [])
        function.config.write(0x10, (0xD00).to_bytes(4, "little"))
        bridge.synchronise(1)
        assert calls.published == [0xD00]


@pytest.mark.parametrize("failing", ["map_function", "publish"])
def test_what_can_not_be_plugged_leaves_its_slot_free(calls, edu, monkeypatch, failing):
    monkeypatch.setattr(bridges, "FunctionInterrupts", Interrupts)
    Interrupts.made = []
    bridge = Bridge(calls, calls, host_bridge=False, others=False)
    edu.config.write(0x10, (0xF000_0000).to_bytes(4, "little"))
    edu.config.write(4, b"\2\0")
    calls.failing = failing
    with pytest.raises((Conflict, HypervisorError)):
        bridge.plug(edu.attachment, 1, None, intx=True)
    assert (calls.functions[1], calls.slots, calls.ranges, bridge.functions) == (0, set(), set(), [])
    assert all(each.closed for each in Interrupts.made)
    assert calls.drained == [{1: 0}], "no processor is inside it any more"
    calls.failing = None
    bridge.plug(edu.attachment, 1, None, intx=True)
    assert (calls.functions[1] != 0, calls.slots, calls.ranges) == (True, {1}, {(0xF000_0000, 1 << 20, False)})
    assert calls.published == [0xF000_0000]
