"""Rings from a client to the device's handlers."""

from __future__ import annotations

import os
import select
import threading
import time
from pathlib import Path

import pytest
from umdev.errors import InvalidArgument, StateError
from umdev_vfio_user import bus

WAIT = 20.0


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def test_rings_are_dropped_while_decoding_is_off(raw, device, eventually) -> None:
    fds = raw.doorbells(0)[2]
    raw.write(7, 4, b"\0\0")
    for number in range(3):
        aborted = device.native.counters["aborted"]
        os.eventfd_write(fds[number], 1)
        eventually(lambda before=aborted: device.native.counters["aborted"] == before + 1)
    raw.enable()
    assert device.seen == []
    os.eventfd_write(fds[0], 1)
    eventually(lambda: device.seen == [("bell", 0)])
    close_all(fds)


def test_a_client_that_shrinks_its_memory_and_rings_harms_nobody(device, eventually, monkeypatch) -> None:
    """What the handler reads there is SIGBUS in the thread that rings."""
    monkeypatch.setattr(device, "after", lambda delay, job: job())  # at once, in the handler
    with bus.open_function(device) as function:
        function.enable()
        buffer = function.allocate(4096)
        function.bars[0].write64(0, buffer.address)
        os.ftruncate(buffer.descriptor, 0)
        function.doorbells(0)[0x1000].ring()
        eventually(lambda: device.memories == ["MappingPoisoned"])
        assert function.bars[0].read32(8) == 0


def test_messages_go_on_while_a_ring_is_handled(raw, device) -> None:
    fds = raw.doorbells(0)[2]
    os.eventfd_write(fds[3], 1)
    assert device.entered.wait(WAIT)
    raw.write32(0, 8, 5)
    assert raw.read32(0, 8) == 5
    device.go_on.set()
    close_all(fds)


def test_rings_are_no_messages(device, tmp_path: Path, eventually) -> None:
    log = tmp_path / "wire"
    with bus.open_function(device, wire_log=log) as function:
        function.assign_bars()
        function.enable()
        bells = function.doorbells(0)
        assert list(bells) == [0x1000, 0x1004, 0x1008, 0x1010]
        assert [(bell.offset, bell.width, bell.value) for bell in bells.values()] == [
            (0x1000, 4, None), (0x1004, 4, 0xCAFE), (0x1008, 8, None), (0x1010, 4, None),
        ]  # fmt: skip
        assert function.doorbells(0) is bells
        function.config.read8(0xFE)
        eventually(lambda: "offset=0xfe" in log.read_text())  # a line is written after its answer
        before = log.read_text().count("\n")
        for number in range(1, 6):
            bells[0x1000].ring()
            eventually(lambda count=number: len(device.seen) == count)
        bells[0x1004].ring()
        eventually(lambda: device.seen[5:] == [("told", 0xCAFE)])
        function.config.read32(0)
        eventually(lambda: log.read_text().count("\n") > before)
        after = log.read_text().splitlines()[before:]
        assert len(after) == 1, after  # the read that follows
        assert "REGION_READ" in after[0]
    text = log.read_text()
    assert "DEVICE_GET_REGION_IO_FDS" in text
    assert not any("REGION_WRITE" in line and "region=0 " in line for line in text.splitlines())


def test_the_last_of_ten_thousand_rings_is_seen(function, device, eventually) -> None:
    bell = function.doorbells(0)[0x1000]
    with function.allocate(4096) as buffer:
        function.bars[0].write64(0, buffer.address)
        for number in range(1, 10_001):
            buffer.write32(0, number)
            bell.ring()
        eventually(lambda: device.memories[-1:] == [10_000])
        function.bars[0].write64(0, 0)
        with device.locked():
            device.native.settle(cancel=False)  # who looks at the memory now has done so when it goes
    assert 1 <= len(device.seen) <= 10_000
    assert all(isinstance(found, int) for found in device.memories)
    assert device.memories == sorted(device.memories)


def test_four_threads_ring(function, device, eventually) -> None:
    bells = function.doorbells(2)
    assert len(bells) == 16

    def ring(offset: int) -> None:
        for _ in range(2000):
            bells[offset].ring()

    threads = [threading.Thread(target=ring, args=(4 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: {what for what, _ in device.seen} == {0, 1, 2, 3})


def test_a_ring_never_waits(function, device, eventually) -> None:
    bell = function.doorbells(0)[0x1000]
    os.set_blocking(bell.descriptor, True)
    waiting = select.poll()
    waiting.register(bell.descriptor)
    with device.locked():
        bell.ring()
        eventually(
            lambda: waiting.poll(0) == [(bell.descriptor, select.POLLOUT)]
        )  # taken; its write waits for the lock
        os.eventfd_write(bell.descriptor, (1 << 64) - 2)
        assert waiting.poll(0) == [(bell.descriptor, select.POLLIN)]
        for _ in range(3):
            bell.ring()
    eventually(lambda: len(device.seen) == 2)


def test_bad_regions(function) -> None:
    for index in (-1, 1, 9):
        with pytest.raises(InvalidArgument):
            function.doorbells(index)
    assert function.doorbells(3) == {}
    assert function.doorbells(7) == {}


def test_closing(device, descriptors, watchers) -> None:
    before = descriptors()
    for _ in range(3):
        with bus.open_function(device) as function:
            bell = function.doorbells(0)[0x1000]
            function.doorbells(2)
            kept = os.dup(bell.descriptor)
        with pytest.raises(StateError):
            bell.ring()
        with pytest.raises(StateError):
            function.doorbells(0)
        writes = device.native.counters["writes"]
        os.eventfd_write(kept, 1)
        assert watchers() == 0
        assert device.native.counters["writes"] == writes
        os.close(kept)
    assert descriptors() == before


# Clients that come and go.


def wait_until_detached(eventually, served, clients: int) -> None:
    eventually(lambda: served.server.clients == clients and served.server.attachment.state.value == "attached")


def test_a_client_that_goes_while_it_rings(serve, device, eventually, watchers) -> None:
    served = serve()
    for number in range(1, 11):
        raw = served.connect()
        raw.enable()
        fds = raw.doorbells(0)[2]
        ending = threading.Event()

        def hammer(fd: int = fds[0], stop: threading.Event = ending) -> None:
            while not stop.is_set():
                os.eventfd_write(fd, 1)
                time.sleep(0)

        thread = threading.Thread(target=hammer)
        thread.start()
        eventually(lambda: device.seen)
        raw.close()
        wait_until_detached(eventually, served, number)
        assert watchers() == 0
        device.seen.clear()
        writes = device.native.counters["writes"]
        os.eventfd_write(fds[0], 1)
        ending.set()
        thread.join()
        assert device.native.counters["writes"] == writes
        assert device.seen == []
        close_all(fds)
    again = served.connect()
    again.enable()
    fds = again.doorbells(0)[2]
    os.eventfd_write(fds[0], 1)
    eventually(lambda: device.seen == [("bell", 0)])
    close_all(fds)
    again.close()


def test_two_hundred_clients_leave_nothing(serve, eventually, descriptors, watchers) -> None:
    served = serve()
    seen = {}
    for number in range(1, 201):
        raw = served.connect()
        raw.enable()
        for index in (0, 2, 5):
            fds = raw.doorbells(index)[2]
            os.eventfd_write(fds[0], 1)
            close_all(fds)
        raw.close()
        wait_until_detached(eventually, served, number)
        seen[number] = descriptors(), watchers()
    assert seen[20] == seen[200]
    assert seen[200][1] == 0
