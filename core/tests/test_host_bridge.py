"""BARs behind a host bridge: where they are, and what the hypervisor is told in which order."""

import logging

import pytest
from umdev.bus import HostBridge, PluggedFunction
from umdev.device import Block, Device, IoBar, MemoryBar, PciId, Register
from umdev.errors import Conflict, HypervisorError, InvalidArgument, NotFound
from umdev.loopback import bus

log = logging.getLogger("umdev.test")


class Registers(Block["Card"]):
    value = Register(0)


class Card(Device):
    pci = PciId(vendor=1, device=2, class_code=0)
    bar0 = MemoryBar(0, Registers, size=0x1000)
    bar1 = MemoryBar(1, Registers, size=0x1000)
    bar4 = IoBar(4, Registers, size=16)


class Bridge(HostBridge[PluggedFunction]):
    """Remembers what it was told."""

    def __init__(self):
        super().__init__("rack", log)
        self.told = []
        self.routed = []
        self.failing = None

    def route(self, plugged):
        self.routed.append(plugged.slot)

    def taken(self, *, io):
        return [(0x3F8, 0x400)] if io else [(0x10_0000, 0x20_0000)]

    def may_fail(self, step):
        if self.failing == step:
            self.failing = None
            raise HypervisorError("not now")

    def take_down(self, placement):
        self.may_fail("take_down")
        self.told.append(f"- {placement}")

    def publish(self, placements):
        self.may_fail("publish")
        self.told.append([placement.address for placement in placements])

    def put_up(self, placement):
        self.may_fail("put_up")
        self.told.append(f"+ {placement}")

    def news(self):
        told, self.told = self.told, []
        return told


@pytest.fixture
def bridge():
    return Bridge()


@pytest.fixture
def plug(bridge):
    """`plug(slot)`: the driver's view of a card in the slot."""
    opened = []

    def go(slot):
        card = Card()
        function = bus.open_function(card)
        opened[:0] = [function, card]
        bridge.plugged[slot] = PluggedFunction(slot, function.attachment)
        return function

    yield go
    for each in opened:
        each.close()


@pytest.fixture
def function(plug):
    return plug(3)


def place(function, bridge, **registers):
    for name, value in registers.items():
        function.config.write(int(name[1:], 16), value.to_bytes(4, "little"))
    bridge.settle()
    return bridge.news()


def test_what_decodes_is_placed_and_follows(function, bridge):
    assert place(function, bridge, x10=0x20_0000, x14=0x20_1000, x20=0xC000) == [], "nothing decodes yet"
    assert place(function, bridge, x04=2) == [
        [0x20_0000, 0x20_1000],
        "+ slot 3: BAR 0 at 0x200000",
        "+ slot 3: BAR 1 at 0x201000",
    ]
    assert place(function, bridge, x04=3)[1:] == ["+ slot 3: BAR 4 at 0xc000"]
    assert place(function, bridge, x10=0x30_0000) == [
        "- slot 3: BAR 0 at 0x200000",
        [0x20_1000, 0xC000, 0x30_0000],
        "+ slot 3: BAR 0 at 0x300000",
    ]
    assert place(function, bridge) == []
    assert {(p.region, p.address, p.end, p.io) for p in bridge.placements} == {
        (0, 0x30_0000, 0x30_1000, False), (1, 0x20_1000, 0x20_2000, False), (4, 0xC000, 0xC010, True),
    }  # fmt: skip
    assert len(place(function, bridge, x04=0)) == 4


@pytest.mark.parametrize(
    "registers",
    [
        {"x10": 0},
        {"x10": 0x10_0000},  # taken
        {"x10": 0x1F_F000},
        {"x14": 0x20_0000, "x10": 0x20_0000},  # the first of two stays
        {"x20": 0x3F0},
        {"x20": 0x1_0000},  # no port has this number
    ],
)
def test_what_can_not_be_there_is_counted_once_and_comes_when_it_can(function, bridge, caplog, registers):
    place(function, bridge, x10=0x20_0000, x14=0x30_0000, x20=0xC000, x04=3)
    place(function, bridge, **registers)
    place(function, bridge)
    assert bridge.bad_placements == 1
    assert len(bridge.placements) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    place(function, bridge, x10=0x20_0000, x14=0x30_0000, x20=0xC000)
    assert len(bridge.placements) == 3


def test_a_guest_can_not_flood_the_log(function, bridge, caplog):
    place(function, bridge, x04=2)
    for number in range(50):
        place(function, bridge, x10=0x10_0000 + 0x1000 * number)
    assert bridge.bad_placements > 50
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == bridge.WARNINGS


def test_what_fails_is_done_by_the_next(function, bridge):
    place(function, bridge, x10=0x20_0000, x14=0x20_1000, x04=2)
    for step, then in (
        ("take_down", ["- slot 3: BAR 0 at 0x200000"]),
        ("publish", []),
    ):
        bridge.failing = step
        with pytest.raises(HypervisorError):
            place(function, bridge, x10=0x30_0000)
        before = bridge.news()
        assert [p.address for p in bridge.placements if p.region == 0] == ([0x20_0000] if not before else [])
        after = place(function, bridge)
        assert before + after == [
            "- slot 3: BAR 0 at 0x200000",
            [0x20_1000, 0x30_0000],
            "+ slot 3: BAR 0 at 0x300000",
        ]
        assert after[: len(then)] == then
        place(function, bridge, x10=0x20_0000)


def test_a_table_that_only_lost_something_is_published_by_the_next(function, bridge):
    place(function, bridge, x10=0x20_0000, x14=0x20_1000, x04=2)
    bridge.failing = "publish"
    with pytest.raises(HypervisorError):
        place(function, bridge, x04=0)
    assert len(bridge.news()) == 2
    assert place(function, bridge) == [[]]


def test_a_bar_that_can_not_be_put_up_keeps_no_other_from_it(function, bridge):
    bridge.failing = "put_up"
    with pytest.raises(HypervisorError):
        place(function, bridge, x10=0x20_0000, x14=0x20_1000, x04=2)
    assert bridge.news() == [[0x20_0000, 0x20_1000]]
    assert place(function, bridge)[-1] == "+ slot 3: BAR 1 at 0x201000"
    assert place(function, bridge, x10=0x30_0000)[0] == "- slot 3: BAR 0 at 0x200000"


def test_a_function_goes_and_all_are_placed_anew(plug, bridge):
    first, second = plug(1), plug(2)
    place(first, bridge, x10=0x20_0000, x04=2)
    place(second, bridge, x10=0x30_0000, x04=2)
    bridge.forget_placements()
    assert place(first, bridge)[0] == [0x20_0000, 0x30_0000]
    assert bridge.withdraw(1).slot == 1
    assert [p.slot for p in bridge.placements] == [2]
    with pytest.raises(NotFound, match="slot 9 is empty"):
        bridge.withdraw(9)


def test_slots(plug, bridge):
    plug(1)
    assert bridge.free_slot(None) == 2
    assert bridge.free_slot(31) == 31
    with pytest.raises(InvalidArgument, match="a rack has slots 1 to 31, on bus 0"):
        bridge.free_slot(0)
    with pytest.raises(Conflict, match="slot 1 has "):
        bridge.free_slot(1)
    bridge.plugged.update(dict.fromkeys(range(1, 32), bridge.plugged[1]))
    with pytest.raises(Conflict, match="all 31 slots of the rack are taken"):
        bridge.free_slot(None)


def test_interrupts_follow_the_slot_that_was_written_to(plug, bridge):
    first, second = plug(3), plug(9)
    first.config.write(0x10, (0x20_0000).to_bytes(4, "little"))
    first.config.write(4, b"\2\0")
    bridge.synchronise(9)
    assert bridge.news()[-1] == "+ slot 3: BAR 0 at 0x200000", "BARs are the bridge's, whoever moves one"
    assert bridge.routed == [9]
    second.config.write(4, b"\2\0")
    bridge.synchronise()
    assert bridge.routed == [9, 3, 9]
    bridge.synchronise(5)
    assert bridge.routed == [9, 3, 9], "nobody is there"
