"""Stores without exits: doorbells, and posted stores that keep their order."""

import threading
from contextlib import contextmanager

import pytest
from umdev.errors import InvalidArgument
from umdev_kvm import Posted, layout
from umdev_testkit.payloads import assemble

from .conftest import until

pytestmark = pytest.mark.kvm


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


@pytest.mark.parametrize(
    ("region", "offset", "length", "refused"),
    [(3, 0, 0x200, True), (3, 0, 1, True), (3, 44, 8, True), (3, 48, 16, False), (0, 0, 48, False)],
)
def test_no_part_of_the_vectors_table_is_posted(machine, sample, region, offset, length, refused):
    """A store there makes routes before it is done. The sample has three vectors of 16 bytes in region 3."""
    zone = Posted(region, offset, length)
    if refused:
        with pytest.raises(InvalidArgument, match="MSI-X table"):
            machine.plug(sample, posted=(zone,))
        assert sample.attachment is None
    else:
        machine.plug(sample, posted=(zone,))


def test_a_full_ring_loses_nothing(run, plugged, sample):
    run("mov ecx, 1000\nagain: mov [bar0 + 0x20], ecx\n loop again\n exit 0", limit=60)
    assert [value for _, value in sample.log] == list(range(1000, 0, -1))


FLAGS = 0x9000
"""In memory: the program waits for the first word, and sets the second at its end."""


@contextmanager
def a_bell_that_waits(plugged, sample, source):
    """Ring the sample, whose lock somebody has; then let the program do the rest, in the block."""
    first = plugged.firmware.address(1, 0)
    begin = f"mov dword ptr [{first + 0x14:#x}], 1\n wait: cmp dword ptr [{FLAGS}], 1\n jne wait\n"
    plugged.load(assemble(f"{begin}{source}\n mov dword ptr [{FLAGS + 4}], 1\n stay: jmp stay"))
    running = threading.Thread(target=plugged.run, args=(120,))
    try:
        with sample.locked():
            running.start()
            until(lambda: plugged.counters["doorbells"] == 1)  # it is heard, and waits for the lock
            plugged.ram.write(FLAGS, b"\1")
            yield
            assert sample.log == []
        until(lambda: sample.log == [("every", 0)])
    finally:
        plugged.stop()
        running.join()


@pytest.fixture
def other(plugged, sample):
    """Another sample, in slot 2; it outlives the machine."""
    with type(sample)() as device:
        plugged.firmware.enable(plugged.plug(device))
        yield device
        plugged.close()


def test_a_device_that_keeps_its_lock_delays_no_other_device_s_bell(plugged, sample, other):
    second = plugged.firmware.address(2, 0)
    with a_bell_that_waits(plugged, sample, f"mov dword ptr [{second + 0x14:#x}], 1"):
        until(lambda: other.log == [("every", 0)])


def test_a_configuration_write_waits_for_the_rings_of_its_own_device_alone(plugged, sample, other):
    command = layout.ECAM_BASE + (2 << 15) + 4
    with a_bell_that_waits(plugged, sample, f"mov word ptr [{command:#x}], 6"):
        until(lambda: plugged.ram.read(FLAGS + 4, 1) == b"\1")
        assert other.config["command"] & 7 == 6


def test_posted_stores_come_before_another_device_s_doorbell(plugged, sample, other):
    first, second = plugged.firmware.address(1, 0), plugged.firmware.address(2, 0)
    program = f"mov dword ptr [{first + 0x20:#x}], 1\n mov dword ptr [{second + 0x14:#x}], 7\n stay: jmp stay"
    plugged.load(assemble(program))
    running = threading.Thread(target=plugged.run, args=(120,))
    running.start()
    try:
        until(lambda: other.log == [("every", 0)])
        assert sample.log == [("posted", 1)]
    finally:
        plugged.stop()
        running.join()
