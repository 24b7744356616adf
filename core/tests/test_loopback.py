"""The loopback bus: the driver's view, and the seven services on it."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from umdev.device import (
    Block,
    BusMasterDisabled,
    Device,
    Interrupts,
    MemoryBar,
    NotMapped,
    PciId,
    ProtectMode,
    Register,
    ServiceUnavailable,
    Window,
)
from umdev.errors import InvalidArgument, StateError
from umdev.loopback import bus

PAGE = 4096


class Ram(Block["Plain"]):
    ram = Window(0, 4 * PAGE)


class Registers(Block["Plain"]):
    value = Register(0)


class Plain(Device):
    pci = PciId(vendor=1, device=2, class_code=0)
    interrupts = Interrupts(intx=True, msi=4, msix=4, msix_bar=4)
    bar0 = MemoryBar(0, Registers, size=4096)
    bar2 = MemoryBar(2, Ram, size=4 * PAGE)
    bar4 = MemoryBar(4, Block, size=4096)


@pytest.fixture
def device():
    with Plain() as device:
        yield device


@pytest.fixture
def function(device):
    with bus.open_function(device) as function:
        function.enable()
        yield function


needs_userfaultfd = pytest.mark.skipif(
    not Path("/dev/userfaultfd").exists(), reason="no /dev/userfaultfd: needs a kernel with CONFIG_USERFAULTFD"
)


@pytest.mark.parametrize("kind", ["msi", "msix"])
def test_each_vector_reaches_its_eventfd(device, function, kind):
    with function.enable_interrupts(kind, 4) as interrupts:
        for vector in (2, 0, 3, 1):
            device.interrupts.signal(vector)
            assert [interrupts.wait(v, timeout=1 if v == vector else 0) for v in range(4)] == [
                int(v == vector) for v in range(4)
            ]


def test_a_masked_msix_vector_pends_and_is_delivered(device, function):
    with function.enable_interrupts("msix", 4) as interrupts:
        interrupts.mask(1)
        device.interrupts.signal(1)
        assert interrupts.wait(1, timeout=0.02) == 0
        assert interrupts.pending(1)
        interrupts.unmask(1)
        assert interrupts.wait(1, timeout=1) == 1


def test_bars_are_probed_and_assigned(function):
    probed = function.probe_bars()
    assert {index: bar.size for index, bar in probed.items()} == {0: 4096, 2: 4 * PAGE, 4: 4096}
    addresses = function.assign_bars()
    assert all(address % probed[index].size == 0 for index, address in addresses.items())


def test_dma_both_ways(device, function):
    data = random.randbytes(3 * PAGE)
    with function.allocate(4 * PAGE) as buffer:
        buffer.write(100, data)
        assert device.memory.read(buffer.address + 100, len(data)) == data
        device.memory.write(buffer.address, data[::-1])
        assert buffer.read(0, len(data)) == data[::-1]


def test_page_zero_is_not_mapped(device, function):
    with pytest.raises(NotMapped):
        device.memory.read(0, 4)


def test_dma_needs_bus_mastering(device, function):
    with function.allocate(PAGE) as buffer:
        function.enable(bus_master=False)
        with pytest.raises(BusMasterDisabled):
            device.memory.write(buffer.address, b"x")
        assert buffer.read(0, 1) == b"\0"


@needs_userfaultfd
def test_trap_tells_before_the_store_lands(device, function):
    seen = []
    with function.allocate(2 * PAGE) as buffer:
        buffer.write(0, b"old")
        device.memory.protect(
            ProtectMode.TRAP,
            [buffer.address],
            lambda write: seen.append((write.address, device.memory.read(buffer.address, 3), device.native.held)),
        )
        buffer.write(PAGE, b"beside")
        assert seen == []
        buffer.write(0, b"new")
        assert seen == [(buffer.address, b"old", True)]
        buffer.write(0, b"now")
        assert len(seen) == 1, "writable until armed again"
        assert device.memory.read(buffer.address, 3) == b"now"


@needs_userfaultfd
def test_a_store_lands_and_is_counted_when_its_notification_fails(device, function, caplog):
    def fail(write):
        raise RuntimeError("on purpose")

    with function.allocate(PAGE) as buffer:
        device.memory.protect(ProtectMode.TRAP, [buffer.address], fail)
        buffer.write(0, b"new")
        assert device.memory.read(buffer.address, 3) == b"new"
    assert device.counters == device.native.counters
    assert device.counters["faulted"] == 1
    assert str(device.last_fault) == "on purpose"
    assert "the notification of a page write failed" in caplog.text


@needs_userfaultfd
def test_track_reports_every_stored_page(device, function):
    with function.allocate(64 * PAGE) as buffer:
        pages = [buffer.address + n * PAGE for n in range(64)]
        buffer.write(0, bytes(64 * PAGE))
        device.memory.protect(ProtectMode.TRACK, pages)
        for _ in range(3):
            chosen = sorted(random.sample(range(64), 9))
            for n in chosen:
                buffer.write(n * PAGE + 7, random.randbytes(8))
            assert list(device.memory.collect()) == [pages[n] for n in chosen]
        assert list(device.memory.collect()) == []


def test_emulate_is_refused_with_a_reason(device, function):
    with function.allocate(PAGE) as buffer, pytest.raises(ServiceUnavailable, match="read-only memory"):
        device.memory.protect(ProtectMode.EMULATE, [buffer.address])


def test_buffers_end_and_are_zeroed(function):
    first = function.allocate(PAGE)
    first.write(0, b"secret")
    address = first.address
    first.free()
    second = function.allocate(PAGE)
    assert second.address == address
    assert second.read(0, 6) == bytes(6)


def test_closed_functions_say_so(device):
    function = bus.open_function(device)
    function.close()
    function.close()
    for call in (lambda: function.region_read(0, 0, 4), lambda: function.allocate(1), function.reset):
        with pytest.raises(StateError, match="closed"):
            call()
    with bus.open_function(device) as again:
        assert again.config.vendor_id == 1


FORKED = """
import os, sys, warnings
from umdev.device import Block, Device, MemoryBar, PciId, Window
from umdev.loopback import bus
warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is what this is about
class Ram(Block):
    ram = Window(0, 4096)
class Plain(Device):
    pci = PciId(vendor=1, device=2, class_code=0)
    bar0 = MemoryBar(0, Ram, size=4096)
device = Plain()
with device, bus.open_function(device) as function:
    function.enable()
    device.bar0.ram.view[:4] = b"kept"
    if not os.fork():
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
    assert function.bars[0].read(0, 4) == b"kept"
print("done")
"""


FORKED_IN_A_HANDLER = """
import os, signal, threading, warnings
from umdev.device import Block, Device, MemoryBar, PciId, Register
from umdev.loopback import bus
warnings.simplefilter("ignore", DeprecationWarning)
entered, go_on = threading.Event(), threading.Event()
class Slow(Block):
    slow = Register(0)
    @slow.on_write
    def wait(self, value):
        entered.set()
        go_on.wait()
class Held(Device):
    pci = PciId(vendor=1, device=2, class_code=0)
    bar0 = MemoryBar(0, Slow, size=4096)
with Held() as device, bus.open_function(device) as function:
    function.enable()
    thread = threading.Thread(target=function.bars[0].write32, args=(0, 1))
    thread.start()
    entered.wait()
    if not os.fork():
        signal.alarm(30)  # the handler's thread is not here, and the device lock is held for ever
        function.close()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
    go_on.set()
    thread.join()
    assert function.bars[0].read32(0) == 1
print("done")
"""


@pytest.mark.parametrize("script", [FORKED, FORKED_IN_A_HANDLER])
def test_a_forked_child_that_closes_takes_nothing_from_its_parent(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "done\n", done


@pytest.mark.parametrize("size", [0, -4096, 100, 1 << 63, 1 << 64])
def test_guest_memory_is_whole_pages(device, size):
    with pytest.raises(InvalidArgument):
        bus.open_function(device, memory=size)
    bus.open_function(device).close()


@pytest.mark.parametrize("region", [-1, 1 << 32, 1 << 70])
def test_what_is_no_number_of_a_region(function, region):
    with pytest.raises(InvalidArgument, match="no number of a region"):
        function.region_read(region, 0, 4)
    with pytest.raises(InvalidArgument, match="no number of a region"):
        function.region_write(region, 0, b"abcd")
    assert function.region_read(99, 0, 4) == b"\xff" * 4


def test_too_many_vectors(function):
    with pytest.raises(InvalidArgument, match="4 vectors"):
        function.connect_irq(1, [-1] * 5)


def test_fewer_descriptors_disconnect_the_others(device, function):
    function.connect_irq(1, [events := os.eventfd(0, os.EFD_NONBLOCK)] * 4)
    function.connect_irq(1, [-1, events])
    function.config.write16(function.config.find_capability(0x05) + 2, 0x21)  # MSI: on, four messages
    for vector in range(4):
        device.interrupts.raise_(vector)
    assert os.eventfd_read(events) == 1
    assert device.interrupts.pending == (0, 2, 3)
    os.close(events)
