"""TRAP: who is told of a store, when, and what may happen meanwhile."""

import threading

import pytest
from umdev.addresses import PAGE_SIZE, Iova
from umdev.errors import StateError
from umdev.memory import AddressSpace, UserfaultProtector
from umdev.services import PageWrite, ProtectMode

from .conftest import needs_userfault, page, trapping


@needs_userfault
def test_a_trapped_store_is_told_before_it_lands_and_once_for_each_arming(guest, memory):
    guest.store(3 * PAGE_SIZE + 8, b"old content")
    seen = []

    def notify(write: PageWrite) -> None:
        seen.append((write, memory.read(page(3) + 8, 11)))

    protector = trapping(guest, memory)
    protector.protect([page(3)], notify)
    assert protector.pages == 1
    guest.store(5 * PAGE_SIZE, b"a page that nobody watches")
    assert seen == []
    guest.store(3 * PAGE_SIZE + 8, b"new content")
    assert seen == [(PageWrite(page(3)), b"old content")]
    assert memory.read(page(3) + 8, 11) == b"new content"
    guest.store(3 * PAGE_SIZE + 8, b"not trapped")
    assert len(seen) == 1
    assert protector.pages == 0
    protector.protect([page(3)], notify)
    guest.add64(3 * PAGE_SIZE, 1)
    assert len(seen) == 2
    assert seen[1][1] == b"not trapped"
    assert guest.protector().faults == 2
    protector.close()


@needs_userfault
def test_loads_and_the_devices_own_stores_are_not_trapped(guest, memory):
    protector = trapping(guest, memory)
    protector.protect([page(1)], lambda write: pytest.fail("trapped"))
    memory.write(page(1), b"by DMA")
    assert guest.load(PAGE_SIZE, 6) == b"by DMA"
    protector.close()


@needs_userfault
def test_unprotected_and_closed_pages_are_plain_memory(guest, memory):
    seen = []
    protector = trapping(guest, memory)
    protector.protect([page(n) for n in range(8)], seen.append)
    protector.unprotect([page(2), page(3), page(40)])
    for number in (2, 3, 4):
        guest.store(number * PAGE_SIZE, b"x")
    assert seen == [PageWrite(page(4))]
    protector.close()
    protector.close()
    guest.fill(0, guest.size, 1)
    assert len(seen) == 1
    with pytest.raises(StateError, match="closed"):
        protector.protect([page(0)], seen.append)


@needs_userfault
def test_two_devices_share_the_protector_and_each_is_told_what_it_armed(guest, memory):
    other_memory = AddressSpace()
    other_memory.map(0, guest.size, descriptor=guest.descriptor)
    first, second = [], []
    one = trapping(guest, memory)
    two = UserfaultProtector(guest.protector(), other_memory, ProtectMode.TRAP)
    one.protect([page(1), page(2)], first.append)
    two.protect([Iova(2 * PAGE_SIZE), Iova(3 * PAGE_SIZE)], second.append)
    one.unprotect([page(2)])  # the other's reference keeps it armed
    for number in (1, 2, 3):
        guest.store(number * PAGE_SIZE, b"x")
    assert first == [PageWrite(page(1))]
    assert second == [PageWrite(Iova(2 * PAGE_SIZE)), PageWrite(Iova(3 * PAGE_SIZE))]
    one.protect([page(5)], first.append)
    two.protect([Iova(5 * PAGE_SIZE)], second.append)
    guest.store(5 * PAGE_SIZE, b"x")
    assert first[-1] == PageWrite(page(5))
    assert second[-1] == PageWrite(Iova(5 * PAGE_SIZE))
    one.close()
    two.close()
    other_memory.close()


@needs_userfault
def test_a_page_can_not_be_armed_by_its_own_notification_but_others_can(guest, memory):
    seen, errors = [], []
    protector = trapping(guest, memory)

    def notify(write: PageWrite) -> None:
        seen.append(write.address)
        if write.address == page(1):
            protector.protect([page(2)], notify)
        try:
            protector.protect([write.address], notify)
        except StateError as error:
            errors.append(str(error))

    protector.protect([page(1)], notify)
    guest.store(PAGE_SIZE, b"x")
    guest.store(2 * PAGE_SIZE, b"x")
    assert seen == [page(1), page(2)]
    assert len(errors) == 2
    assert "must land" in errors[0]
    protector.close()


@needs_userfault
def test_a_notification_that_raises_does_not_stop_the_guest(guest, memory, caplog):
    def notify(write: PageWrite) -> None:
        raise RuntimeError("the model is broken")

    protector = trapping(guest, memory)
    protector.protect([page(1)], notify)
    guest.store(PAGE_SIZE, b"landed")
    assert memory.read(page(1), 6) == b"landed"
    assert "the model is broken" in caplog.text
    protector.close()


@needs_userfault
def test_no_store_goes_unseen_when_many_threads_store_and_pages_are_armed_again(guest, memory):
    """Each thread counts in its own word of a shared page; re-arm, then re-read: the last value must have been seen."""
    watched = [page(n) for n in range(4)]
    changed: set[Iova] = set()
    lock = threading.Lock()
    protector = trapping(guest, memory)

    def notify(write: PageWrite) -> None:
        with lock:
            changed.add(write.address)

    seen = {address: memory.read(address, PAGE_SIZE) for address in watched}
    protector.protect(watched, notify)
    writers = [
        threading.Thread(target=lambda slot=slot: [guest.add64((i % 4) * PAGE_SIZE + slot * 8, 1) for i in range(400)])
        for slot in range(4)
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        with lock:
            again, changed = sorted(changed), set()
        for address in again:
            protector.protect([address], notify)
            seen[address] = memory.read(address, PAGE_SIZE)
        writers[0].join(0.001)
    for address in sorted(changed):
        seen[address] = memory.read(address, PAGE_SIZE)
    for address in watched:
        assert seen[address] == memory.read(address, PAGE_SIZE)
        assert [int.from_bytes(seen[address][slot * 8 : slot * 8 + 8], "little") for slot in range(4)] == [100] * 4
    protector.close()
