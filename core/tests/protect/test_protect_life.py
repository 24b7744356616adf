"""Protectors: what they refuse, how they come and go, and what a forked child has of them."""

import gc
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from umdev._native import lib
from umdev.addresses import PAGE_SIZE, Iova
from umdev.errors import InvalidArgument, NotMapped, NotSupported, ProtectError, ProtectorBusy, StateError
from umdev.memory import AddressSpace, GuestMemory, GuestProtector, UserfaultProtector
from umdev.memory.userfault import open_userfault
from umdev.services import PageWrite, ProtectMode

from .conftest import BASE, MISSING, PAGES, needs_userfault, page, trapping


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
