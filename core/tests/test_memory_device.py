"""Memory and the device lock: who holds it when, and what a handler may do."""

import threading

import pytest
from umdev._native import ffi
from umdev.addresses import PAGE_SIZE, Iova
from umdev.device.dispatch import NativeDevice
from umdev.errors import DmaWouldDeadlock, NotMapped
from umdev.memory import AddressSpace, GuestMemory, UserfaultProtector
from umdev.services import ProtectMode

from .protect.conftest import needs_userfault

CONFIG = 7
BAR = 0


@pytest.fixture
def native():
    native = NativeDevice("under test")
    yield native
    native.close()


@pytest.fixture
def guest():
    with GuestMemory(16 * PAGE_SIZE) as guest:
        yield guest


@pytest.fixture
def memory(native, guest):
    memory = AddressSpace(native)
    memory.map(0, guest.size, descriptor=guest.descriptor)
    yield memory
    memory.close()


def test_on_unmap_runs_with_the_device_lock_whoever_unmaps(native, memory, guest):
    held = []
    memory.on_unmap(lambda mapping: held.append(native.held))
    memory.unmap(0, guest.size)
    assert not native.held
    memory.map(0, guest.size, descriptor=guest.descriptor)
    with native.locked():  # as a reset does
        memory.unmap_all()
        assert native.held
    assert held == [True, True]


def test_unmap_waits_for_a_handler_but_dma_ends_before_the_lock_is_free(native, memory, guest):
    done = threading.Event()

    def unmap():
        memory.unmap(0, guest.size)
        done.set()

    with native.locked():
        thread = threading.Thread(target=unmap)
        thread.start()
        assert not done.wait(0.05)
        memory.read(0, 64)  # the handler's own memory stays as long as it runs
    thread.join(60)
    assert done.is_set()


@needs_userfault
def test_a_page_write_is_told_with_the_device_lock_held(native, memory, guest):
    held = []
    protector = UserfaultProtector(guest.protector(), memory, ProtectMode.TRAP, native)
    protector.protect([Iova(PAGE_SIZE)], lambda write: held.append(native.held))
    guest.store(PAGE_SIZE, b"x")
    assert held == [True]
    protector.close()


@needs_userfault
def test_a_store_waits_while_a_handler_runs_and_closing_under_the_lock_ends_the_wait(native, memory, guest):
    told = []
    protector = UserfaultProtector(guest.protector(), memory, ProtectMode.TRAP, native)
    protector.protect([Iova(PAGE_SIZE), Iova(2 * PAGE_SIZE)], told.append)
    store = threading.Thread(target=guest.store, args=(PAGE_SIZE, b"first"))
    with native.locked():
        store.start()
        store.join(0.05)
        assert store.is_alive()
        assert memory.read(PAGE_SIZE, 5) == bytes(5)
        assert told == []
    store.join(60)
    assert [write.address for write in told] == [PAGE_SIZE]
    store = threading.Thread(target=guest.store, args=(2 * PAGE_SIZE, b"second"))
    with native.locked():
        store.start()
        store.join(0.05)
        protector.close()  # detach does this; the handler thread waits for the lock that we hold
        store.join(60)
        assert not store.is_alive()
    assert len(told) == 1
    assert memory.read(2 * PAGE_SIZE, 6) == b"second"


@needs_userfault
def test_a_notification_may_unmap_close_and_protect(native, memory, guest):
    protector = UserfaultProtector(guest.protector(), memory, ProtectMode.TRAP, native)

    def end(write):
        memory.unmap(0, guest.size)
        protector.close()

    protector.protect([Iova(PAGE_SIZE)], end)
    guest.store(PAGE_SIZE, b"x")
    assert memory.mappings == []
    assert guest.load(PAGE_SIZE, 1) == b"x"


def test_dma_by_message_from_a_handler_is_refused(native, memory):
    by_message = 1 << 30
    memory.map(by_message, PAGE_SIZE)
    carried = []

    @ffi.callback("int(void *, uint64_t, void *, uint64_t, int)")
    def carry(context, iova, data, length, write):
        carried.append((iova, length, write))
        with native.locked():  # it is free while the client is waited for, whoever waits
            return 0

    memory.set_messages(carry)
    answers = []

    def read(offset, length):
        try:
            memory.read(by_message, 16)
        except DmaWouldDeadlock as error:
            answers.append(error)
        memory.read(0, 16)  # mapped memory needs nobody's answer
        return bytes(length)

    def write(offset, data):
        with pytest.raises(DmaWouldDeadlock):
            memory.write(by_message, b"posted")
        answers.append("written")

    native.add_callback_region(CONFIG, 256, read, write)
    native.add_callback_region(BAR, 256, read, write)
    native.read(CONFIG, 0, 4)
    native.read(BAR, 0, 4)
    assert [answer.iova for answer in answers] == [by_message] * 2
    assert "after(0" in str(answers[0])
    native.write(BAR, 0, b"data", posted=True)
    native.write(BAR, 0, b"data")
    assert answers[2:] == ["written", "written"]
    assert carried == []
    memory.read(by_message, 16)  # no handler: deferred work
    with native.locked():
        memory.write(by_message + 8, b"1234")
        assert native.held
    assert carried == [(by_message, 16, 0), (by_message + 8, 4, 1)]
    memory.set_messages(ffi.NULL)


def test_dma_by_message_goes_in_pieces_and_looks_at_the_maps_before_each(native, memory):
    by_message = 1 << 30
    memory.map(by_message, 1 << 20)
    carried = []

    @ffi.callback("int(void *, uint64_t, void *, uint64_t, int)")
    def carry(context, iova, data, length, write):
        carried.append((iova - by_message, length))
        if len(carried) == 2:
            memory.unmap(by_message, 1 << 20)
        return 0

    memory.set_messages(carry)
    with native.locked(), pytest.raises(NotMapped) as failed:
        memory.write(by_message + 16, bytes(1 << 19))
    assert failed.value.iova == by_message + 16 + (2 << 16)
    assert carried == [(16, 1 << 16), (16 + (1 << 16), 1 << 16)]
    memory.set_messages(ffi.NULL)
