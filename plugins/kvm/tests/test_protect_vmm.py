"""The protector of other processes' memory, with a VMM in little (native/vmm.c): everything that needs no guest."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest
from umdev.errors import ProtectError, ProtectorBusy, StateError
from umdev.hypervisor import Iova, ProtectMode
from umdev_kvm import vm_protector_wire as wire
from umdev_kvm.vm_protector_areas import Area, parse

from .conftest import BASE, PAGE, PAGES, SIZE

pytestmark = pytest.mark.kvm


def test_a_store_is_told_before_it_lands_once_for_each_arming(trap):
    vmm, protector = trap
    seen = []
    protector.protect(PAGES[:2], lambda write: seen.append((write.address, vmm.word(0), vmm.word(1))))
    assert protector.pages == 2
    vmm.store(1, 5)
    vmm.store(1, 6)
    vmm.store(0, 7)
    vmm.store(2, 8)
    assert seen == [(PAGES[1], 0, 0), (PAGES[0], 0, 6)]
    assert protector.pages == 0
    protector.protect(PAGES[:2], lambda write: seen.append(write.address))
    protector.unprotect([PAGES[0]])
    vmm.store(0, 1)
    vmm.store(1, 1)
    assert seen[2:] == [PAGES[1]]


def test_a_page_is_not_armed_from_its_own_notification(trap):
    vmm, protector = trap
    said = []

    def again(write):
        try:
            protector.protect([write.address], again)
        except StateError as error:
            said.append(str(error))
        protector.protect([PAGES[9]], again)

    protector.protect(PAGES[:1], again)
    vmm.store(0, 1)
    assert "must land" in said[0]
    assert protector.pages == 1


@pytest.mark.parametrize("beside", [False, True])
def test_track_reports_every_page_that_was_stored_to(vmm, beside):
    machine = vmm()
    track = machine.protector(ProtectMode.TRACK)
    track.protect(PAGES)
    assert "asynchronous" in track.mechanism
    if beside:
        trap = machine.protector(ProtectMode.TRAP)
        told = []
        trap.protect(PAGES[:1], told.append)
        assert list(track.collect()) == PAGES  # nobody watched while the kind of userfaultfd was changed
    machine.store(3, 1)
    machine.store(200, 1)
    assert list(track.collect()) == [PAGES[3], PAGES[200]]
    assert list(track.collect()) == []
    machine.ask("storm 4 256 20000")
    changed = set(track.collect())
    assert changed == {page for number, page in enumerate(PAGES) if any(machine.word(number, i) for i in range(4))} | (
        {PAGES[3], PAGES[200]} & changed
    )
    machine.ask(f"discard {7 * PAGE}")
    assert PAGES[7] in track.collect()
    if beside:
        trap.close()
    track.close()


def test_many_threads_meet_two_devices(vmm):
    machine = vmm()
    lock = threading.Lock()
    told = [0, 0]
    queue = []
    devices = [machine.protector(ProtectMode.TRAP) for _ in range(2)]

    def heard(number):
        def note(write):
            with lock:
                told[number] += 1
                queue.append((number, write.address))

        return note

    notes = [heard(0), heard(1)]
    devices[0].protect(PAGES[:48], notes[0])
    devices[1].protect(PAGES[16:64], notes[1])
    storms = 0
    while min(told) <= 64:  # on a busy host a storm may be over before the first page is armed again
        storms += 1
        assert storms < 50
        machine.say("storm 4 64 50000")
        storm = threading.Thread(target=machine.line)
        storm.start()
        while storm.is_alive():
            with lock:
                work, queue[:] = list(queue), []
            for number, page in work:
                devices[number].protect([page], notes[number])
    total = sum(machine.word(page, thread) for page in range(64) for thread in range(4))
    assert total == 4 * 50000 * storms
    for device in devices:
        device.close()


def test_memory_that_moves_or_grows_is_found_again(trap):
    vmm, protector = trap
    seen = []
    protector.protect(PAGES[:1], lambda write: seen.append(write.address))
    vmm.memory.unmap(BASE, SIZE)
    vmm.ask("remap")
    vmm.memory.map(BASE, SIZE, descriptor=vmm.ram)
    protector.protect(PAGES[:1], lambda write: seen.append(write.address))
    vmm.store(0, 1)
    assert seen == PAGES[:1]
    os.ftruncate(vmm.ram, 2 * SIZE)
    vmm.memory.map(BASE + SIZE, SIZE, descriptor=vmm.ram, offset=SIZE)
    vmm.ask(f"plug {2 * SIZE}")
    added = Iova(BASE + SIZE + PAGE)
    protector.protect([added], lambda write: seen.append(write.address))
    vmm.store(SIZE // PAGE + 1, 1)
    assert seen == [PAGES[0], added]


def test_a_protector_that_is_closed_in_a_notification_or_beside_one_lets_go(trap):
    vmm, protector = trap
    entered = threading.Event()

    def slow(_):
        entered.set()
        time.sleep(0.3)

    protector.protect(PAGES[:4], slow)
    vmm.say("store 0 1")
    entered.wait(5)
    protector.close()
    vmm.line()
    vmm.store(1, 1)
    assert vmm.word(0) == vmm.word(1) == 1
    second = vmm.protector(ProtectMode.TRAP)
    second.protect(PAGES[:2], lambda _: second.close())
    vmm.store(0, 2)
    vmm.store(1, 2)
    assert vmm.word(0) == vmm.word(1) == 2


@pytest.fixture
def patient(monkeypatch):
    """The protector waits for devices as long as a test may want."""
    monkeypatch.setenv(wire.PATIENCE_VARIABLE, "600")


def test_a_device_that_takes_its_time_holds_up_nobody_else(patient, vmm):
    machine = vmm()
    slow, quick = machine.protector(ProtectMode.TRAP), machine.protector(ProtectMode.TRAP)
    entered, both, release = threading.Event(), threading.Event(), threading.Event()
    told = {"slow": [], "quick": []}

    def slow_told(write):
        entered.set()
        told["slow"].append((write.address, release.wait(60)))

    def quick_told(write):
        told["quick"].append(write.address)
        if write.address == PAGES[1]:
            both.set()

    slow.protect(PAGES[:2], slow_told)
    quick.protect(PAGES[1:3], quick_told)
    machine.ask("begin 0 9")
    entered.wait(60)
    machine.store(2, 9)
    assert told == {"slow": [], "quick": [PAGES[2]]}
    machine.ask(f"begin {PAGE} 7")
    assert both.wait(60)
    assert machine.word(0) == machine.word(1) == 0, "each waits for everybody who watches its page"
    release.set()
    machine.ask("finish")
    assert (machine.word(0), machine.word(1)) == (9, 7)
    assert told["slow"] == [(PAGES[0], True), (PAGES[1], True)]
    slow.close()
    quick.close()


def test_a_notification_that_fails_lets_the_store_land(trap, caplog):
    vmm, protector = trap

    def fail(_):
        raise RuntimeError("on purpose")

    protector.protect(PAGES[:1], fail)
    vmm.store(0, 4)
    assert vmm.word(0) == 4
    assert "on purpose" in caplog.text


def test_another_userfaultfd_is_a_named_error(trap):
    vmm, protector = trap
    vmm.ask("userfault")
    with pytest.raises(ProtectorBusy, match="another userfaultfd"):
        protector.protect(PAGES[:1], lambda _: None)


def test_daemonize_is_a_named_error(vmm):
    parent = vmm("daemonize")
    parent.wait()
    with pytest.raises(ProtectError, match="-daemonize"):
        parent.protector(ProtectMode.TRAP, pid=os.getpid())


def test_a_process_that_has_lent_nothing_is_a_named_error(setup, trap):
    vmm, _ = trap
    with pytest.raises(ProtectError, match=f"process {os.getpid()} has lent its memory to no protector"):
        vmm.protector(ProtectMode.TRAP, pid=os.getpid())


def test_a_wrapper_that_becomes_the_vmm_lends_anew(vmm):
    machine = vmm(command=["/bin/sh", "-c", 'exec "$@"', "sh"])
    protector = machine.protector(ProtectMode.TRAP)
    seen = []
    protector.protect(PAGES[:1], seen.append)
    machine.store(0, 1)
    assert len(seen) == 1
    protector.close()


def test_a_vmm_that_ends_is_an_error_and_nothing_hangs(trap):
    vmm, protector = trap
    protector.protect(PAGES[:3], lambda _: None)
    os.kill(vmm.pid, signal.SIGKILL)
    vmm.wait()
    with pytest.raises(ProtectError):
        protector.protect(PAGES[3:4], lambda _: None)


def test_a_device_process_that_is_killed_while_a_store_waits_for_it(vmm, child, tmp_path):
    machine = vmm()
    other = machine.protector(ProtectMode.TRAP)
    seen = []
    script = tmp_path / "stuck.py"
    script.write_text(
        "import os, sys, time\n"
        "from umdev.hypervisor import *\n"
        "from umdev_kvm.vm_protector_client import RemoteGuest\n"
        "from umdev_kvm import vm_protector_wire as wire\n"
        "pid, ram = int(sys.argv[1]), int(sys.argv[2])\n"
        f"memory = AddressSpace(); memory.map({BASE}, {SIZE}, descriptor=ram)\n"
        "guest = RemoteGuest(wire.socket_path(), pid)\n"
        "protector = UserfaultProtector(guest, memory, ProtectMode.TRAP)\n"
        "def told(write):\n"
        "    print('stuck', flush=True)\n"
        "    time.sleep(60)\n"
        f"protector.protect([Iova({BASE}), Iova({BASE + PAGE})], told)\n"
        "print('armed', flush=True)\n"
        "sys.stdin.read()\n"
    )
    stuck = child([sys.executable, script, machine.pid, machine.ram], pass_fds=[machine.ram])
    assert stuck.line() == "armed"
    other.protect(PAGES[:3], lambda write: seen.append(write.address))
    machine.say("store 0 9")
    assert stuck.line() == "stuck"
    stuck.kill()
    assert machine.line() == "0"
    assert machine.word(0) == 9
    machine.store(1, 9)
    machine.store(2, 9)
    assert sorted(seen) == PAGES[:3]
    other.close()


def test_a_name_that_looks_like_a_mapping_is_none():
    text = (
        "7f0000000000-7f0000100000 rw-s 00000000 00:01 77   /memfd:ram (deleted)\n"
        "7f0000700000-7f0000800000 rw-s 00000000 00:01 99   /tmp/7f0000900000-7f0000a00000 rw-s 00000000 00:01 77\n"
    )
    assert parse(text, (os.makedev(0, 1), 77)) == [Area(0, 0x7F0000000000, 0x100000)]


def test_areas_are_found_by_file_and_joined():
    text = (
        "7f0000000000-7f0000100000 rw-s 00000000 00:01 77   /memfd:ram (deleted)\n"
        "7f0000100000-7f0000200000 rw-s 00100000 00:01 77   /memfd:ram (deleted)\n"
        "7f0000300000-7f0000400000 rw-s 00200000 00:01 77   /memfd:ram (deleted)\n"
        "7f0000400000-7f0000500000 r--s 00300000 00:01 77   /memfd:ram (deleted)\n"
        "7f0000500000-7f0000600000 rw-p 00000000 00:01 77   /memfd:ram (deleted)\n"
        "7f0000600000-7f0000700000 rw-s 00000000 00:02 77   /dev/shm/other\n"
        "7f0000700000-7f0000800000 rw-p 00000000 00:00 0    [heap]\n"
    )
    assert parse(text, (os.makedev(0, 1), 77)) == [
        Area(0, 0x7F0000000000, 0x200000),
        Area(0x200000, 0x7F0000300000, 0x100000),
    ]


def test_a_device_that_lets_go_does_not_release_a_page_that_another_is_being_told_of(vmm):
    machine = vmm()
    other, slow = machine.protector(ProtectMode.TRAP), machine.protector(ProtectMode.TRAP)  # the latest is told first
    entered, dropped = threading.Event(), threading.Event()
    seen = []

    def told(_):
        entered.set()
        dropped.wait(5)
        time.sleep(0.1)
        seen.append(machine.word(0))

    other.protect(PAGES[:1], lambda _: None)
    slow.protect(PAGES[:1], told)
    machine.say("store 0 9")
    entered.wait(5)
    other.close()
    dropped.set()
    assert machine.line() == "0"
    assert seen == [0]
    assert machine.word(0) == 9
    slow.close()
