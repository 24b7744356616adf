"""Stores without exits: doorbells, and posted stores that keep their order."""

import time

import pytest
from umdev_kvm import Posted

pytestmark = pytest.mark.kvm


def until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


@pytest.fixture
def plugged(sample, machine):
    machine.firmware.enable(machine.plug(sample, posted=(Posted(0, 0x20, 8),)))
    return machine


def test_a_doorbell_with_a_match(run, plugged, sample):
    run("mov dword ptr [bar0 + 0x10], 7\n exit 0")
    until(lambda: ("bell", 7) in sample.log)
    assert plugged.counters["memory_writes"] == 0
    assert plugged.counters["doorbells"] == 1
    run("mov dword ptr [bar0 + 0x10], 8\n exit 0")
    assert plugged.counters["memory_writes"] == 1, "another value is an ordinary store"
    assert ("bell", 8) in sample.log


def test_a_doorbell_for_every_value(run, plugged, sample):
    run("mov dword ptr [bar0 + 0x14], 99\n exit 0")
    until(lambda: ("every", 0) in sample.log)
    assert plugged.counters["memory_writes"] == 0


def test_a_doorbell_follows_its_bar(run, plugged, sample):
    moved = 0xD0000000
    run(
        f"mov dword ptr [0xb0008010], {moved:#x}\n mov dword ptr [{moved + 0x14:#x}], 3\n"
        "mov dword ptr [bar0 + 0x14], 3\n exit 0"
    )
    until(lambda: ("every", 0) in sample.log)
    assert plugged.counters["memory_writes"] == 2, "the configuration write, and the store where nothing is now"
    assert plugged.counters["unclaimed"] == 1


def test_posted_stores_come_in_order_and_before_what_follows(run, plugged, sample):
    source = (
        "mov dword ptr [bar0 + 0x20], 1\n mov dword ptr [bar0 + 0x24], 2\n mov dword ptr [bar0 + 0x20], 3\n"
        "mov dword ptr [bar0 + 0x10], 9\n"
        "mov dword ptr [bar0 + 0x20], 4\n exit 0"
    )
    run(source)
    assert sample.log == [("posted", 1), ("posted_too", 2), ("posted", 3), ("bell", 9), ("posted", 4)]
    assert plugged.counters["coalesced"] == 4
    assert plugged.counters["memory_writes"] == 1


def test_posted_stores_come_before_a_doorbell(run, plugged, sample):
    run("mov dword ptr [bar0 + 0x20], 1\n mov dword ptr [bar0 + 0x10], 7\n exit 0")
    until(lambda: ("bell", 7) in sample.log)
    assert sample.log == [("posted", 1), ("bell", 7)]


def test_a_full_ring_loses_nothing(run, plugged, sample):
    run("mov ecx, 1000\nagain: mov [bar0 + 0x20], ecx\n loop again\n exit 0", limit=60)
    assert [value for _, value in sample.log] == list(range(1000, 0, -1))
