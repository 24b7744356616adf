"""The trace ring: records per thread, overwriting, decoding by register name."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from umdev.device import Device, PciId, trace
from umdev.device.bars import MemoryBar
from umdev.device.blocks import Block
from umdev.device.dispatch import NativeDevice
from umdev.device.events import NAMES_LIMIT, Events
from umdev.device.region import Region
from umdev.device.registers import Flag, Register
from umdev.device.trace import Follower, Ring, Trace
from umdev.errors import InvalidArgument, StateError
from umdev.pci import RegionIndex


class Status(Register):
    busy = Flag(0)


class Registers(Block[Any]):
    status = Status(0x20)
    broken = Register(0x24)

    @broken.on_read
    def fail(self) -> int:
        raise ValueError


@pytest.fixture
def native() -> NativeDevice:
    device = NativeDevice()
    device.on_fault(lambda error, path: None)
    return device


@pytest.fixture
def region(native: NativeDevice) -> Region:
    bar: Any = MemoryBar(0, Registers, size=4096)
    bar.name = "bar0"
    return Region(native, 0, bar, None)


def test_records_say_what_happened(native: NativeDevice, region: Region) -> None:
    native.read(0, 0x20, 4)  # before the trace
    with Trace() as traced:
        native.write(0, 0x20, b"\1\0\0\0", posted=True, initiator=3, space=9)
        native.read(0, 0x20, 2)
        native.read(0, 0x24, 4)
        native.read(0, 0x80, 4)
        native.read(5, 0, 1)
    native.read(0, 0x20, 4)  # after it
    records = traced.read()
    assert [(r.sequence, r.region, r.offset, r.length, r.value, r.write, r.outcome) for r in records] == [
        (1, 0, 0x20, 4, 1, True, "ok"),
        (2, 0, 0x20, 2, 1, False, "ok"),
        (3, 0, 0x24, 4, 0xFFFF_FFFF, False, "fault"),
        (4, 0, 0x80, 4, 0, False, "unhandled"),
        (5, 5, 0, 1, 0xFF, False, "abort"),
    ]
    assert (records[0].initiator, records[0].space, records[0].flags) == (3, 9, 3)
    assert {record.device for record in records} == {native.id}
    assert {record.thread for record in records} == {threading.get_native_id()}
    assert all(a.time + a.duration <= b.time for a, b in itertools.pairwise(records))


def test_lines_name_registers_and_fields(native: NativeDevice, region: Region) -> None:
    with Trace() as traced:
        native.write(0, 0x20, b"\1\0\0\0")
        native.read(0, 0x80, 4)
        native.read(7, 0, 4)
    lines = list(trace.lines(traced.read(), {native.id: ("card", {0: region})}))
    assert lines[0].startswith("    0.000000 card write bar0.status=0x1 busy (4 bytes, ")
    assert " card read  bar0+0x80=0x0 (4 bytes, " in lines[1]
    assert lines[1].endswith(" us, unhandled)")
    assert " read  config+0x0=0xffffffff (4 bytes, " in lines[2]
    assert lines[2].endswith(", abort)")
    assert " device " in next(trace.lines(traced.read(), {}))


class Card(Device):
    pci = PciId(vendor=0x1234, device=5, class_code=0xFF0000)
    bar0 = MemoryBar(0, Registers, size=4096)


def test_configuration_space_has_names() -> None:
    places = (0x00, 0x04, 0x10, 0x12, 0x14, 0x3D)
    with Card() as card:
        with Trace() as traced:
            for offset in places:
                card.native.read(RegionIndex.CONFIG, offset, 1)
        records = traced.read()
        names = [trace.name(record, card.regions, card.trace, card.config) for record in records]
        assert names == [
            "config.vendor", "config.command", "config.bar0", "config.bar0", "config+0x14", "config.interrupt_pin"
        ]  # fmt: skip
        assert trace.line(records[0], card.regions, card.trace, card.config).startswith("read  config.vendor=0x34 (1")
        assert trace.name(records[1], card.regions) == "config+0x4"  # of a device that is only known in part


def test_each_thread_has_a_ring_that_overwrites(native: NativeDevice, region: Region) -> None:
    def drive() -> None:
        for n in range(100):
            native.write(0, 0x20, n.to_bytes(4, "little"))

    with Trace(records=10) as traced:
        drive()
        thread = threading.Thread(target=drive)
        thread.start()
        thread.join()
    snapshots = list(traced.snapshots())
    assert len(snapshots) == 2  # the thread is gone, its ring is not
    for snapshot in snapshots:
        assert snapshot.lost == 84
        assert [(record.sequence, record.value) for record in snapshot.records] == [(n + 1, n) for n in range(84, 100)]
        assert snapshot.process == os.getpid()
    assert [record.time for record in traced.read()] == sorted(record.time for record in traced.read())


def test_a_ring_reads_while_it_is_written(native: NativeDevice, region: Region) -> None:
    stop = threading.Event()

    def drive() -> None:
        n = 0
        while not stop.is_set():
            native.write(0, 0x20, (n & 0xFFFF_FFFF).to_bytes(4, "little"))
            n += 1

    with Trace(records=8) as traced:
        thread = threading.Thread(target=drive)
        thread.start()
        seen = 0
        while seen < 200:
            for snapshot in traced.snapshots():
                for record in snapshot.records:
                    assert record.value == record.sequence - 1
                    seen += 1
        stop.set()
        thread.join()


def test_another_process_reads_the_ring(native: NativeDevice, region: Region) -> None:
    with Trace() as traced:
        native.write(0, 0x20, b"\1\0\0\0")
    (descriptor,) = traced.descriptors
    program = (
        "import os, sys; from umdev.device.trace import Ring\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY); print(Ring(fd).read().records[0].offset)"
    )
    path = f"/proc/{os.getpid()}/fd/{descriptor}"
    output = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True, timeout=60
    )
    assert output.stdout == "32\n"
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(descriptor, 0)


def test_mistakes_have_names(tmp_path: Any, native: NativeDevice) -> None:
    for records in (0, (1 << 24) + 1):
        with pytest.raises(InvalidArgument, match="records per thread"):
            Trace(records)
    with Trace(), pytest.raises(StateError, match="running already"), Trace():
        pass
    for content in (b"", bytes(8192)):
        path = tmp_path / "ring"
        path.write_bytes(content)
        with path.open("rb") as file, pytest.raises(InvalidArgument, match="is no trace ring"):
            Ring(file.fileno())


def test_rings_go_with_the_next_trace(native: NativeDevice, region: Region) -> None:
    def descriptors() -> int:
        gc.collect()  # what earlier tests left
        return len(list(Path("/proc/self/fd").iterdir()))

    with Trace():
        native.read(0, 0x20, 4)
    before = descriptors()
    for _ in range(20):
        with Trace() as traced:
            native.read(0, 0x20, 4)
        assert len(traced.descriptors) == 1
    assert descriptors() == before


def test_a_follower_reads_what_is_new(native: NativeDevice, region: Region) -> None:
    with Trace(records=16) as traced:
        native.read(0, 0x20, 4)
        follower = Follower(traced)
        native.write(0, 0x20, b"\1\0\0\0")
        thread = threading.Thread(target=native.read, args=(0, 0x20, 4))
        thread.start()
        thread.join()
        records, lost = follower.read()
        assert ([record.write for record in records], lost) == ([True, False], 0)
        assert follower.read() == ([], 0)
        for _ in range(50):  # more than the ring holds
            native.read(0, 0x20, 4)
        records, lost = follower.read()
        assert (len(records), lost) == (16, 34)
        assert follower.read() == ([], 0)
        follower.close()
    traced.close()
    assert traced.descriptors == []


class TestEvents:
    def test_they_stand_among_the_accesses(self, native: NativeDevice, region: Region) -> None:
        events = Events(native)
        assert not events.wanted
        events.tell("engine", "BEFORE")
        with Trace() as traced:
            assert events.wanted
            native.read(0, 0x20, 4)
            events.tell("engine", "NOOP", 0x10, address=0x2000, length=8)
            native.read(0, 0x20, 4)
            events.tell("", "idle", -1)
        lines = [trace.line(record, {0: region}, events) for record in traced.read()]
        assert [record.event for record in traced.read()] == [False, True, False, True]
        assert lines[1] == "event engine.NOOP=0x10 at 0x2000 (8 bytes)"
        assert lines[3] == "event idle=0xffffffffffffffff at 0x0"
        assert trace.name(traced.read()[1], {}) == "event 1"
        assert trace.name(traced.read()[0], {0: region}) == "bar0.status"

    def test_names_are_bounded(self, native: NativeDevice) -> None:
        events = Events(native)
        with Trace(8) as traced:
            for number in range(2 * NAMES_LIMIT):
                events.tell("", f"name {number}")
            events.tell("", "name 0")
        names = [events.name(record.initiator) for record in traced.read()]
        assert names == ["other"] * 7 + ["name 0"]
        assert events.name(1 << 31) == "other"
