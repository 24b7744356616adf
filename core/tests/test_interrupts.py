"""The interrupt port: what a model raises, what a bus connects, what a reset leaves."""

import contextlib
import ctypes
import errno
import gc
import os
import resource
import select
import time
from pathlib import Path

import pytest
from umdev._native import ffi, lib
from umdev.errors import DeclarationError, InvalidArgument, SaveError, StateError, TransportError
from umdev.pci import InterruptPort, Interrupts, InterruptState, IrqIndex, Msi, Msix, VectorState

MASTER = InterruptState.BUS_MASTER
MSI = InterruptState.MSI_ENABLED | MASTER
MSIX = InterruptState.MSIX_ENABLED | MASTER


@pytest.fixture
def event():
    descriptor = os.eventfd(0, os.EFD_NONBLOCK)
    yield descriptor
    os.close(descriptor)


def take(descriptor):
    """How often it was signalled since the last look."""
    try:
        return os.eventfd_read(descriptor)
    except BlockingIOError:
        return 0


def make_port(**declared):
    return InterruptPort(Interrupts(**declared))


def unmask_entry(port, vector):
    control = ffi.new("uint32_t *", 0)
    lib.umdev_irq_msix_table(port.pointer, 16 * vector + 12, control, 4, lib.UMDEV_WRITE)


def test_the_declaration_becomes_capabilities():
    declared = Interrupts(msi=3, msix=5, intx=True, msix_bar=2, msix_table_offset=0x800, msi_masking=True, pin=2)
    assert declared.capabilities() == (Msi(3, masking=True), Msix(5, 2, 0x800))
    port = InterruptPort(declared)
    assert port.capabilities == declared.capabilities()
    assert [port.vectors(index) for index in IrqIndex] == [1, 4, 5, 1, 1], "MSI asks for a power of two"
    assert port.vectors(-1) == port.vectors(5) == port.vectors(1 << 40) == 0
    assert port.pin == 2
    assert make_port(msi=1).pin == 0


@pytest.mark.parametrize(
    ("declared", "text"),
    [
        ({"msi": 33}, "33 vectors"),
        ({"msi": -1}, "-1 vectors"),
        ({"msix": 4}, "msix needs msix_bar"),
        ({"msix": 2049, "msix_bar": 0}, "2049 vectors"),
        ({"msix": 1, "msix_bar": 7}, "bar=7"),
        ({"intx": True, "pin": 5}, "pin=5"),
    ],
)
def test_bad_declarations_are_named(declared, text):
    with pytest.raises(DeclarationError, match=text):
        Interrupts(**declared)


def test_the_descriptor_gives_declaration_and_port():
    class Model:
        interrupts = Interrupts(msi=1)

        def __init__(self):
            self._interrupt_port = InterruptPort(type(self).interrupts)

    class Early:
        interrupts = Interrupts()

    assert Model.interrupts == Interrupts(msi=1)
    model = Model()
    assert model.interrupts is model._interrupt_port
    with pytest.raises(StateError, match=r"Early has interrupts from Device.__init__ on"):
        _ = Early().interrupts


def test_a_function_without_interrupts_has_a_port_without_vectors():
    port = make_port()
    assert port.mode is None
    assert port.pending == ()
    assert not port.level
    for call in (port.raise_, port.lower, port.signal):
        with pytest.raises(InvalidArgument, match="declares no interrupts"):
            call()


def test_intx_is_a_level(event):
    port = make_port(intx=True)
    assert port.mode == "intx"
    port.connect(IrqIndex.INTX, 0, event)
    port.raise_()
    port.raise_(7)
    assert (take(event), port.level, port.pending) == (1, True, (0, 7))
    port.lower()
    port.unmask(IrqIndex.INTX, 0)
    assert take(event) == 1
    port.lower(7)
    port.unmask(IrqIndex.INTX, 0)
    assert (take(event), port.level, port.pending) == (0, False, ())
    assert port.signal() is False, "there is no message to send"
    with pytest.raises(InvalidArgument, match="0 to 63"):
        port.raise_(64)
    with pytest.raises(InvalidArgument, match="vector -1"):
        port.lower(-1)


def test_unmask_by_eventfd(event):
    port = make_port(intx=True)
    unmask = os.eventfd(0)
    port.connect(IrqIndex.INTX, 0, event)
    port.connect_unmask(IrqIndex.INTX, 0, unmask)
    port.raise_()
    assert take(event) == 1
    ready = select.poll()
    ready.register(event, select.POLLIN)
    os.eventfd_write(unmask, 1)
    assert ready.poll(20_000), "the level is still high"
    assert take(event) == 1
    port.connect_unmask(IrqIndex.INTX, 0, -1)
    os.close(unmask)
    with pytest.raises(InvalidArgument, match="interrupt index 1 has 0 vectors"):
        port.connect_unmask(IrqIndex.MSI, 0, event)


def test_msi_sends_messages(event):
    port = make_port(msi=2, intx=True)
    port.connect(IrqIndex.MSI, 0, event)
    port.set_state(MSI)
    assert port.mode == "msi"
    port.raise_()
    port.raise_()
    assert port.signal()
    assert (take(event), port.level) == (3, False)
    port.lower()
    port.set_state(InterruptState.MSI_ENABLED)
    assert not port.signal(), "no bus mastering, no message"
    port.set_state(MSI)
    assert take(event) == 0
    port.set_msi(2, 0b01)
    port.raise_()
    port.raise_(1)
    assert (port.pending, port.msi_pending) == ((0, 1), 0b11), "vector 0 is masked, nobody listens to vector 1"
    port.set_msi(2, 0)
    assert take(event) == 1
    assert port.counters == {"sent": 4, "pended": 2, "dropped": 1}


def test_msix_has_a_table(event):
    port = make_port(msix=2, msix_bar=0)
    assert port.mode is None, "no pin, and messages are off"
    port.connect(IrqIndex.MSIX, 1, event)
    port.set_state(MSIX)
    assert port.mode == "msix"
    port.raise_(1)
    assert (take(event), port.pending) == (0, (1,))
    unmask_entry(port, 1)
    assert (take(event), port.pending) == (1, ())
    with pytest.raises(InvalidArgument, match="0 to 1"):
        port.raise_(2)
    mixed = make_port(msix=2, msix_bar=0, intx=True)
    mixed.set_state(MSIX)
    with pytest.raises(InvalidArgument, match="MSI-X has 2 vectors"):
        mixed.raise_(5)
    with pytest.raises(InvalidArgument, match="MSI-X has 2 vectors"):
        mixed.signal(5)


def test_a_client_may_own_the_vectors(event):
    port = make_port(msix=2, msix_bar=0)
    port.set_policy(VectorState.CLIENT)
    port.set_state(MASTER)
    port.connect(IrqIndex.MSIX, 0, event)
    port.raise_()
    assert take(event) == 1, "the table here was never written"
    port.disable(IrqIndex.MSIX)
    assert port.mode is None


def test_error_and_release_go_to_their_own_descriptors(event):
    port = make_port()
    assert not port.report_error()
    port.connect(IrqIndex.ERR, 0, event)
    assert port.report_error()
    assert take(event) == 1
    assert not port.request_release()
    port.connect(IrqIndex.REQ, 0, event)
    assert port.request_release()
    assert take(event) == 1


def test_the_client_can_test_its_descriptor(event):
    port = make_port(msi=1)
    assert port.trigger(IrqIndex.MSI, 0) is False
    port.connect(IrqIndex.MSI, 0, event)
    assert port.trigger(IrqIndex.MSI, 0) is True
    assert take(event) == 1


def test_bad_connections_are_named(event, tmp_path):
    port = make_port(msi=1, intx=True)
    with (tmp_path / "file").open("wb") as file, pytest.raises(InvalidArgument, match=f"{file.fileno()} is no eventfd"):
        port.connect(IrqIndex.MSI, 0, file.fileno())
    with pytest.raises(InvalidArgument, match="no eventfd"):
        port.connect_unmask(IrqIndex.INTX, 0, 1 << 20)
    for index, vector in ((IrqIndex.MSI, 1), (IrqIndex.MSIX, 0), (5, 0), (-1, 0), (0, -1), (1 << 40, 0)):
        for call in (port.mask, port.unmask, port.trigger):
            with pytest.raises(InvalidArgument, match=f"interrupt index {int(index)} has"):
                call(index, vector)
        with pytest.raises(InvalidArgument):
            port.connect(index, vector, event)
    for index in (5, -1):
        with pytest.raises(InvalidArgument, match="no interrupt index"):
            port.disable(index)


def test_connecting_and_closing_leaks_no_descriptor(event):
    def open_descriptors():
        gc.collect()  # what earlier tests left
        return len(list(Path("/proc/self/fd").iterdir()))

    def use():
        port = make_port(msi=4, msix=16, msix_bar=0, intx=True)
        for index in IrqIndex:
            for vector in range(port.vectors(index)):
                port.connect(index, vector, event)
                port.connect(index, vector, event)
        port.connect_unmask(IrqIndex.INTX, 0, event)
        port.close()
        port.close()
        port.raise_()

    use()  # the watcher of unmask eventfds starts and stays
    before = open_descriptors()
    for _ in range(20):
        use()
    assert open_descriptors() == before
    assert take(event) == 0, "a closed port is heard by nobody"


def test_reset_ends_the_old_life_and_keeps_connections(event):
    port = make_port(msi=1, msix=1, msix_bar=0, intx=True)
    port.connect(IrqIndex.MSIX, 0, event)
    port.set_state(MSIX)
    port.raise_()
    port.reset()
    assert port.pending == ()
    unmask_entry(port, 0)
    assert take(event) == 0
    port.raise_()
    assert take(event) == 1
    port.set_state(0)
    port.raise_(3)
    assert port.level
    port.reset()
    assert not port.level


def test_save_and_restore(event):
    port = make_port(msi=2, msix=3, msix_bar=0, intx=True)
    port.raise_(9)
    port.set_state(MSIX)
    port.raise_(2)
    unmask_entry(port, 1)
    saved = port.save()
    assert saved["sources"] == [9]
    assert saved["msix_pending"] == [2]
    assert saved["msix_table"] == bytes(12) + b"\1" + bytes(3) + bytes(16) + bytes(12) + b"\1" + bytes(3)
    other = make_port(msi=2, msix=3, msix_bar=0, intx=True)
    other.raise_(1)
    other.connect(IrqIndex.MSIX, 2, event)
    other.set_state(MSIX)
    other.restore(saved)
    assert other.save() == saved
    unmask_entry(other, 2)
    assert take(event) == 1
    for change, text in (
        ({"sources": [99]}, "sources"),
        ({"msi_pending": [2]}, "msi_pending"),
        ({"msix_pending": [-1]}, "msix_pending"),
        ({"msix_table": b""}, "0 bytes for 3 vectors"),
    ):
        before = other.save()
        with pytest.raises(SaveError, match=text):
            other.restore({**saved, **change})
        assert other.save() == before


def test_install_lays_the_structures_over_the_bar():
    class Native:
        def __init__(self):
            self.overlays = []

        def overlay(self, *arguments, lockless):
            self.overlays.append((*arguments[:3], lockless))

    class Bar:
        size = 1 << 16

    native = Native()
    make_port(msix=3, msix_bar=4).install(native, {4: Bar()})
    assert native.overlays == [(4, 0xF000, 48, True), (4, 0xF030, 8, True)]
    make_port(msi=1, intx=True).install(native, {})
    assert len(native.overlays) == 2
    with pytest.raises(DeclarationError, match="BAR 4 of 0x10000 bytes"):
        make_port(msix=3, msix_bar=4, msix_table_offset=0x10000).install(native, {4: Bar()})


def test_a_bus_may_follow_the_level_of_the_pin(event):
    levels = []
    listener = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(lambda _, level: levels.append(level))
    port = InterruptPort(Interrupts(intx=True))
    port.on_level(ffi.cast("umdev_level_listener", ctypes.cast(listener, ctypes.c_void_p).value))
    port.raise_()
    port.lower()
    port.raise_()
    port.disconnect_all()
    port.lower()
    assert levels == [1, 0, 1]


def test_without_descriptors_the_error_has_its_number(event):
    port = make_port(msi=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (event + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(event))
        with pytest.raises(TransportError, match="interrupt index 1, vector 0: Too many open files") as raised:
            port.connect(IrqIndex.MSI, 0, event)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)
    assert raised.value.errno == errno.EMFILE


def test_a_ring_of_trigger_and_unmask_costs_little(event):
    """A client that connects a level to what unmasks it is signalled for ever, but not as fast as can be."""
    port = make_port(intx=True)
    port.connect(IrqIndex.INTX, 0, event)
    port.connect_unmask(IrqIndex.INTX, 0, event)
    started = time.monotonic_ns()
    port.raise_()
    time.sleep(0.2)
    port.lower()
    milliseconds = (time.monotonic_ns() - started) // 1_000_000
    assert 1 < port.counters["sent"] <= 64 * (milliseconds + 2)
    port.close()


def test_a_port_says_what_it_offers():
    assert repr(make_port(msi=2)) == f"<InterruptPort of {Interrupts(msi=2)}>"
