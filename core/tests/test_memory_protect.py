"""Write-protection of the loopback guest: TRAP, TRACK, sharing, unmap, close; and comparison."""

import ctypes
import gc
import mmap
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from umdev._native import lib
from umdev.addresses import PAGE_SIZE, Iova
from umdev.errors import (
    InvalidArgument,
    NotMapped,
    NotSupported,
    ProtectError,
    ProtectorBusy,
    StateError,
)
from umdev.memory import AddressSpace, ComparisonProtector, GuestMemory, GuestProtector, UserfaultProtector
from umdev.memory.userfault import open_userfault, unavailable
from umdev.services import PageWrite, ProtectMode

MISSING = unavailable()
needs_userfault = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
BASE = 0x1000_0000  # where the bus has put the guest's memory
PAGES = 64


def page(number: int) -> Iova:
    return Iova(BASE + number * PAGE_SIZE)


@pytest.fixture
def guest():
    with GuestMemory(PAGES * PAGE_SIZE, reserve=0) as guest:
        yield guest


@pytest.fixture
def memory(guest):
    memory = AddressSpace()
    memory.map(BASE, guest.size, descriptor=guest.descriptor)
    yield memory
    memory.close()


def discard(guest, number):
    """What a balloon does to a page."""
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(guest.address + number * PAGE_SIZE)
    assert libc.madvise(address, ctypes.c_size_t(PAGE_SIZE), mmap.MADV_REMOVE) == 0, os.strerror(ctypes.get_errno())


def trapping(guest, memory):
    return UserfaultProtector(guest.protector(), memory, ProtectMode.TRAP)


def tracking(guest, memory):
    return UserfaultProtector(guest.protector(), memory, ProtectMode.TRACK)


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


@needs_userfault
def test_bad_pages_are_refused_whole(guest, memory):
    protector = trapping(guest, memory)
    with pytest.raises(NotMapped) as error:
        protector.protect([page(0), page(PAGES)], print)
    assert error.value.iova == page(PAGES)
    assert protector.pages == 0
    with pytest.raises(InvalidArgument):
        protector.protect([Iova(BASE + 1)], print)
    with pytest.raises(InvalidArgument, match="notify"):
        protector.protect([page(0)])
    with pytest.raises(StateError, match="TRACK"):
        protector.collect()
    memory.map(0, 0x1000)
    with pytest.raises(NotMapped, match="message"):
        protector.protect([Iova(0)], print)
    stranger = os.memfd_create("other")
    os.ftruncate(stranger, 0x1000)
    memory.map(0x1000, 0x1000, descriptor=stranger)
    os.close(stranger)
    with pytest.raises(NotMapped, match="no mapping of the guest"):
        protector.protect([Iova(0x1000)], print)
    with pytest.raises(NotSupported, match="EMULATE"):
        UserfaultProtector(guest.protector(), memory, ProtectMode.EMULATE)
    protector.close()


@needs_userfault
def test_an_opener_that_fails_leaves_no_descriptor(memory):
    def opener(asynchronous):
        raise ProtectorBusy("somebody has it")

    guest = GuestProtector(opener)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for mode in (ProtectMode.TRACK, ProtectMode.TRAP):
        with pytest.raises(ProtectorBusy):
            UserfaultProtector(guest, memory, mode)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_second_userfaultfd_is_a_named_error(guest, memory):
    protector = trapping(guest, memory)
    second = GuestProtector()
    file = memory.mappings[0].file
    assert file is not None
    second.add_memory(file, 0, guest.address, guest.size)
    with pytest.raises(ProtectorBusy, match="another userfaultfd"):
        UserfaultProtector(second, memory, ProtectMode.TRAP)
    second.close()
    protector.close()


@needs_userfault
def test_closing_the_guests_protector_lets_blocked_stores_go_on(guest, memory):
    entered, leave = threading.Event(), threading.Event()

    def notify(write: PageWrite) -> None:
        entered.set()
        assert leave.wait(60)

    protector = trapping(guest, memory)
    protector.protect([page(1), page(2)], notify)
    first = threading.Thread(target=guest.store, args=(PAGE_SIZE, b"one"))
    second = threading.Thread(target=guest.store, args=(2 * PAGE_SIZE, b"two"))
    first.start()
    assert entered.wait(60)
    second.start()
    closer = threading.Thread(target=guest.protector().close)
    closer.start()
    leave.set()
    for thread in (first, second, closer):
        thread.join(60)
        assert not thread.is_alive()
    assert memory.read(page(1), 3) == b"one"
    assert memory.read(page(2), 3) == b"two"
    with pytest.raises(ProtectError, match="gone"):
        protector.protect([page(1)], notify)
    protector.close()


@pytest.mark.skipif(os.getuid() != 0 or MISSING is not None, reason=MISSING or "needs root, to become another user")
@pytest.mark.parametrize("mode", ["TRAP", "TRACK"])
def test_without_privilege_user_code_is_still_trapped(mode):
    script = textwrap.dedent(
        """
        import os, sys
        from umdev.addresses import Iova
        from umdev.memory import AddressSpace, GuestMemory, UserfaultProtector
        from umdev.services import ProtectMode
        os.setresuid(65534, 65534, 65534)
        guest, memory = GuestMemory(16 * 4096), AddressSpace()
        memory.map(0, guest.size, descriptor=guest.descriptor)
        protector = UserfaultProtector(guest.protector(), memory, ProtectMode[sys.argv[1]])
        seen = []
        protector.protect([Iova(4096)], lambda write: seen.append(write.address))
        guest.store(4096, b"x")
        print(seen if sys.argv[1] == "TRAP" else protector.collect(), protector.mechanism)
        """
    )
    command = [sys.executable, "-c", script, mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("[4096]"), done
    # Where the administrator lets everyone open /dev/userfaultfd, or the system call, that is used.
    assert f": {mode}" in done.stdout


@needs_userfault
def test_a_closed_protector_of_a_guest_may_still_be_spoken_to():
    with GuestMemory(PAGES * PAGE_SIZE) as guest:
        memory = AddressSpace()
        memory.map(BASE, guest.size, descriptor=guest.descriptor)
        protector = trapping(guest, memory)
        protector.protect([page(1)], lambda write: None)
        guest.store(PAGE_SIZE, b"x")
        owner = guest.protector()
        assert owner.faults == 1
        protector.close()
        del protector
        gc.collect()  # the last that has a part in it
        owner.close()
        assert owner.faults == 0
        owner.remove_memory(guest.address)
        with pytest.raises(StateError):
            owner.client(ProtectMode.TRAP, None, None)
        memory.close()


@needs_userfault
def test_a_forked_child_ends_and_leaves_its_parents_pages_armed():
    script = textwrap.dedent(
        """
        import os, signal, sys, warnings
        from umdev.addresses import Iova
        from umdev.errors import ProtectError
        from umdev.memory import AddressSpace, GuestMemory, UserfaultProtector
        from umdev.services import ProtectMode
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is what this is about
        guest, memory = GuestMemory(16 * 4096), AddressSpace()
        memory.map(0, guest.size, descriptor=guest.descriptor)
        protector = UserfaultProtector(guest.protector(), memory, ProtectMode.TRAP)
        seen = []
        protector.protect([Iova(4096), Iova(8192)], lambda write: seen.append(write.address))
        for close in (False, True):
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                try:
                    protector.protect([Iova(0)], seen.append)
                except ProtectError as error:
                    print(error, flush=True)
                if close:
                    protector.close()
                    guest.close()
                sys.exit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            guest.store(4096 * (1 + close), b"x")
        print(seen)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=False)
    gone = "the guest's pages can't be protected: the guest is gone, or belongs to the process that forked this one"
    assert done.stdout.splitlines() == [gone, "7"] * 2 + ["[4096, 8192]"], done


@needs_userfault
def test_nothing_is_left_of_a_hundred_protectors():
    def cycle():
        with GuestMemory(PAGES * PAGE_SIZE) as guest:
            memory = AddressSpace()
            memory.map(BASE, guest.size, descriptor=guest.descriptor)
            protector = trapping(guest, memory)
            protector.protect([page(1)], lambda write: None)
            guest.store(PAGE_SIZE, b"x")
            protector.close()
            memory.close()

    cycle()
    gc.collect()  # what earlier tests left
    before = len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))
    for _ in range(100):
        cycle()
    assert (len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))) == before


@needs_userfault
def test_arming_in_c_reports_the_first_bad_page():
    from umdev._native import ffi

    userfault = open_userfault(user_only=True)
    native = lib.umdev_protector_new(userfault.descriptor, -1, False)
    client = lib.umdev_protect_client_new(native, lib.UMDEV_PROTECT_TRAP, ffi.NULL, ffi.NULL, ffi.NULL)
    failed = ffi.new("uint64_t *")
    assert lib.umdev_protect_client_arm(client, ffi.new("uint64_t[]", [0x1000]), 1, failed) == -14
    assert failed[0] == 0x1000
    lib.umdev_protect_client_free(client)
    lib.umdev_protector_free(native)


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
