"""Addresses that firmware gives, and takes back."""

import itertools

import pytest
from umdev.device import Block, Device, IoBar, MemoryBar, PciId, Register
from umdev.errors import NotFound, NotSupported
from umdev_kvm import layout

pytestmark = pytest.mark.kvm


class Registers(Block["Wide"]):
    """BAR 0."""

    first = Register(0)


class Ports(Block["Wide"]):
    """BAR 4."""

    first = Register(0)


class Wide(Device):
    """It takes a quarter of the window, and some."""

    pci = PciId(vendor=0x1234, device=0x51DE, class_code=0xFF0000)
    bar0 = MemoryBar(0, Registers, size=1 << 28)
    bar1 = MemoryBar(1, Registers, size=1 << 12)
    bar4 = IoBar(4, Ports, size=64)


class TooWide(Device):
    """The window has no two such aligned pieces."""

    pci = PciId(vendor=0x1234, device=0x51DF, class_code=0xFF0000)
    bar0 = MemoryBar(0, Registers, size=1 << 12)
    bar1 = MemoryBar(1, Registers, size=1 << 30)


def places(machine):
    """Start and end of every memory BAR, in order."""
    return sorted(
        (machine.firmware.address(plugged.slot, index), bar.size)
        for plugged in machine.bridge.functions
        for index, bar in plugged.attachment.device.config.bars.items()
        if bar.kind != "io"
    )


def test_a_device_that_finds_no_room_is_free_again(machine, sample):
    """Nothing of it stays: the next one has its slot and its addresses."""
    with TooWide() as device:
        with pytest.raises(NotSupported, match=r"no room for BAR 1 of .* 0x40000000 bytes"):
            machine.plug(device)
        assert device.attachment is None
        assert machine.bridge.functions == []
        assert machine.plug(sample) == 1
        with pytest.raises(NotSupported):
            machine.plug(device)
    assert [plugged.slot for plugged in machine.bridge.functions] == [1]


def test_unplug_gives_the_addresses_back(machine):
    with Wide() as device:
        found = set()
        for _ in range(20):
            slot = machine.plug(device)
            found.add((machine.firmware.address(slot, 0), machine.firmware.address(slot, 4)))
            machine.unplug(slot)
        assert len(found) == 1


def test_no_two_lie_over_each_other_whatever_goes_between(make_machine):
    machine = make_machine(memory=4 << 20)
    devices = [Wide() for _ in range(3)]
    try:
        for device in devices[:2]:
            machine.plug(device)
        with pytest.raises(NotSupported):
            machine.plug(devices[2])
        machine.unplug(1)
        assert machine.plug(devices[2]) == 1
        found = places(machine)
        assert len(found) == 4
        assert found[0][0] >= layout.MEMORY32[0]
        assert sum(found[-1]) <= layout.MEMORY32[1]
        assert all(address % size == 0 for address, size in found)
        assert all(before + size <= after for (before, size), (after, _) in itertools.pairwise(found))
    finally:
        machine.close()
        for device in devices:
            device.close()


def test_nothing_comes_where_the_guest_has_moved_a_bar(make_machine, sample):
    machine = make_machine(memory=4 << 20)
    moved = layout.MEMORY32[0] + (1 << 28)
    with Wide() as device:
        try:
            machine.firmware.enable(machine.plug(sample))
            sample.attachment.native.write(7, 0x10, moved.to_bytes(4, "little"))
            machine.bridge.synchronise(1)
            machine.firmware.enable(machine.plug(device))
            assert machine.firmware.address(2, 0) == moved + (1 << 28)
            assert machine.bridge.bad_placements == 0
        finally:
            machine.close()


def test_an_empty_slot_is_a_named_error(machine):
    for call in (lambda: machine.firmware.enable(3), lambda: machine.firmware.address(3, 0)):
        with pytest.raises(NotFound, match="slot 3 is empty"):
            call()
