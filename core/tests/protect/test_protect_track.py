"""TRACK: what was stored to since the last look, by userfaultfd and by comparison."""

import pytest
from umdev.addresses import PAGE_SIZE
from umdev.errors import NotMapped, NotSupported
from umdev.memory import ComparisonProtector, GuestProtector, UserfaultProtector
from umdev.memory.userfault import open_userfault
from umdev.services import PageWrite, ProtectMode

from .conftest import BASE, PAGES, discard, needs_userfault, page, tracking, trapping


@needs_userfault
@pytest.mark.parametrize("asynchronous", [True, False])
def test_tracking_reports_each_changed_page_once_in_order(guest, memory, asynchronous):
    def opener(wanted):
        if wanted and not asynchronous:
            raise NotSupported("an old kernel")
        return open_userfault(asynchronous=wanted, user_only=True)

    shared = GuestProtector(opener)
    file = memory.mappings[0].file
    assert file is not None
    shared.add_memory(file, 0, guest.address, guest.size)
    protector = UserfaultProtector(shared, memory, ProtectMode.TRACK)
    assert ("asynchronous" in protector.mechanism) is asynchronous
    assert ("an old kernel" in protector.mechanism) is not asynchronous
    watched = [page(n) for n in range(0, PAGES, 2)]
    guest.store(8 * PAGE_SIZE, b"to be discarded")
    protector.protect(watched)
    assert list(protector.collect()) == []
    discard(guest, 8)
    assert list(protector.collect()) == [page(8)], "a removed page has changed"
    assert memory.read(page(8), 15) == bytes(15)
    assert list(protector.collect()) == []
    guest.store(8 * PAGE_SIZE, b"used again")
    assert list(protector.collect()) == [page(8)]
    for number in (6, 2, 3, 62, 2):
        guest.store(number * PAGE_SIZE + 100, b"x")
    assert list(protector.collect()) == [page(2), page(6), page(62)]
    assert list(protector.collect()) == []
    guest.store(2 * PAGE_SIZE, b"again")
    protector.protect([page(2)])  # watched already: what happened to it is not forgotten
    assert list(protector.collect()) == [page(2)]
    protector.unprotect([page(2)])
    guest.fill(0, guest.size, 7)
    assert list(protector.collect()) == [address for address in watched if address != page(2)]
    protector.close()
    shared.close()


@needs_userfault
def test_trap_beside_track_on_one_guest(guest, memory):
    tracker = tracking(guest, memory)
    tracker.protect([page(1), page(2)])
    guest.store(PAGE_SIZE, b"x")
    seen = []
    trapper = trapping(guest, memory)  # the asynchronous descriptor gives way
    trapper.protect([page(2), page(3)], seen.append)
    assert page(1) in tracker.collect()  # and perhaps page 2: what the change of descriptors did not see counts
    assert list(tracker.collect()) == []
    guest.store(2 * PAGE_SIZE, b"x")
    guest.store(3 * PAGE_SIZE, b"x")
    assert seen == [PageWrite(page(2)), PageWrite(page(3))]
    assert list(tracker.collect()) == [page(2)]
    guest.store(2 * PAGE_SIZE, b"y")
    assert list(tracker.collect()) == [page(2)]
    assert len(seen) == 2
    trapper.close()
    tracker.close()


@needs_userfault
def test_unmap_disarms_and_a_tracked_page_counts_as_changed(guest, memory):
    seen = []
    trapper, tracker = trapping(guest, memory), tracking(guest, memory)
    trapper.protect([page(1)], seen.append)
    tracker.protect([page(1), page(2)])
    memory.map(BASE, guest.size, descriptor=guest.descriptor, space=1)
    memory.unmap(BASE, guest.size, space=1)  # another space's map of the same addresses
    assert (trapper.pages, tracker.pages) == (1, 2)
    memory.unmap(BASE, guest.size)
    assert (trapper.pages, tracker.pages) == (0, 0)
    guest.store(PAGE_SIZE, b"x")
    assert seen == []
    assert list(tracker.collect()) == [page(1), page(2)]
    assert list(tracker.collect()) == []
    with pytest.raises(NotMapped):
        trapper.protect([page(1)], seen.append)
    trapper.close()
    tracker.close()


def test_comparison_reports_changes_in_order_whoever_made_them(guest, memory):
    protector = ComparisonProtector(memory)
    watched = [page(n) for n in range(10)]
    protector.protect(watched)
    assert list(protector.collect()) == []
    guest.store(7 * PAGE_SIZE, b"x")
    memory.write(page(2), b"by DMA")
    guest.store(20 * PAGE_SIZE, b"not watched")
    assert list(protector.collect()) == [page(2), page(7)]
    assert list(protector.collect()) == []
    guest.store(7 * PAGE_SIZE, b"x")  # equal content may be omitted
    assert list(protector.collect()) == []
    protector.unprotect([page(7), page(63)])
    guest.store(7 * PAGE_SIZE, b"y")
    assert list(protector.collect()) == []


def test_comparison_calls_an_unmapped_page_changed_once(guest, memory):
    protector = ComparisonProtector(memory)
    protector.protect([page(1), page(2)])
    memory.bus_master = False
    assert list(protector.collect()) == []
    memory.bus_master = True
    memory.unmap(BASE, guest.size)
    assert list(protector.collect()) == [page(1), page(2)]
    assert list(protector.collect()) == []
    with pytest.raises(NotMapped):
        protector.protect([page(3), page(4)])
    with pytest.raises(NotSupported, match="TRAP"):
        ComparisonProtector(memory, ProtectMode.TRAP)
    protector.close()
