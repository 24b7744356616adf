"""TRAP and TRACK for a stock QEMU guest: vfio-user devices in processes of their own, one protector.

Under TCG here; test_qemu_kvm_in_guest.py runs a part of it once more where QEMU can use KVM, and all of it where this
machine has no userfaultfd.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from umdev_kvm import vm_protector_wire as wire

pytestmark = [pytest.mark.guest, pytest.mark.kvm]

PAGES = 64
ACCEL = os.environ.get("UMDEV_TEST_ACCEL", "tcg")
STORES, SECONDS, PATIENCE = (4_000, 60, 5) if ACCEL == "tcg" else (300, 600, 30)  # a guest in a guest has less to spare
START = f"""
set -e
: >/pages
/stores {PAGES} >>/pages 2>&1 &
until grep -q ready /pages; do sleep 0.05; done
for device in /sys/bus/pci/devices/0000:00:0[12].0; do
    [ -e $device ] && printf '\\6' | dd of=$device/config bs=1 seek=4 conv=notrunc 2>/dev/null
done
cat /pages
"""


class Stores:
    """The program in the guest."""

    def __init__(self, guest):
        self.guest = guest
        self.pages = []

    def start(self):
        words = self.guest.run(START).split()
        assert words.pop() == "ready"
        self.pages = [int(word, 16) for word in words]
        assert len(self.pages) == PAGES

    def __call__(self, command, timeout=SECONDS):
        said = self.guest.run(f"echo {command} >/stores.in; cat /stores.out", timeout=timeout).splitlines()
        assert said.pop() == "done"
        return said

    def check(self, watcher):
        """Memory as the guest's log has it: in the guest, and as a device reads it."""
        different, *lines = self("check")
        assert different == "different 0"
        for page, line in zip(self.pages, lines, strict=True):
            *counts, last = [int(word) for word in line.split()]
            data = bytes.fromhex(watcher.read(page))
            words = [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]
            assert words[:4] == counts
            assert words[-1] == last
            assert not any(words[4:-1])


@pytest.fixture
def stores(setup, linux_guest):  # in this order: the guest ends before its protector
    from umdev_testkit.programs import static_program

    program = static_program(Path(__file__).parent / "native" / "stores.c", flags=["-pthread"])

    def start(*watchers, environment=None):
        guest = linux_guest.start(
            devices=[watcher.socket for watcher in watchers],
            files={"/stores": program},
            cpus=2,
            accel=ACCEL,
            timeout=2 * SECONDS,
            environment=setup.environment if environment is None else environment,
        )
        started = Stores(guest)
        started.start()
        return started

    return start


def sound(report, *, events):
    assert report["events"] >= events, report
    assert {name: report[name] for name in ("early", "missed", "unexpected")} == {
        "early": 0, "missed": 0, "unexpected": 0,
    }, report  # fmt: skip


def test_trap_before_the_store_lands_and_track_misses_nothing(stores, watcher):
    device = watcher("a")
    guest = stores(device)
    # TRACK alone: the asynchronous kind.
    device.track(guest.pages)
    assert "asynchronous" in device.services()["mechanisms"]["protect[track]"]
    guest("store 5 77")
    assert device.collect() == [guest.pages[5]]
    assert device.collect() == []
    device.collect_on()
    guest(f"storm 2 {STORES}")
    device.collect_off()
    device.collect()
    assert device.report()["stale"] == 0
    # TRAP beside it.
    device.trap(guest.pages)
    services = device.services()
    assert services["client"] == guest.guest.pid
    assert "process" in services["mechanisms"]["protect[trap]"]
    device.collect()
    for page in range(3):
        guest(f"store {page} {page + 1}")
    sound(device.report(), events=3)
    device.collect_on()
    guest(f"storm 2 {STORES}")
    device.collect_off()
    device.collect()
    report = device.report()
    assert report["stale"] == 0
    assert report["arms"] == report["events"] + report["armed"]  # each event ended one arming
    sound(report, events=PAGES)
    guest.check(device)
    # Nothing is left in the way.
    device.untrap(guest.pages)
    before = device.report()["events"]
    guest(f"storm 2 {STORES}")
    assert device.report()["events"] == before
    guest.check(device)


def test_two_devices_on_one_vm_one_of_them_killed(stores, watcher):
    one, two = watcher("a"), watcher("b")
    guest = stores(one, two)
    one.trap(guest.pages[: PAGES * 3 // 4])
    two.trap(guest.pages[PAGES // 4 :])
    both = range(PAGES // 4, PAGES * 3 // 4)
    for page in (0, both[0], both[-1], PAGES - 1):
        guest(f"store {page} {page + 100}")
    sound(one.report(), events=3)
    sound(two.report(), events=3)
    guest(f"storm 2 {STORES}")
    sound(one.report(), events=PAGES // 2)
    sound(two.report(), events=PAGES // 2)
    guest.check(one)
    # Killed while the guest stores to pages that both watch: the other's guarantee holds, and the guest goes on.
    killer = threading.Timer(0.2, two.kill)
    killer.start()
    guest(f"storm 2 {STORES}")
    killer.join()
    events = one.report()["events"]
    guest(f"storm 2 {STORES}")
    sound(one.report(), events=events + 1)
    guest.check(one)
    # Pages that only the dead device watched are free.
    one.untrap(guest.pages)
    guest(f"storm 2 {STORES}")
    guest.check(one)


def test_memory_that_the_firmware_unmaps_is_protected_anew_after_a_reboot(stores, watcher):
    device = watcher("a")
    guest = stores(device)
    device.trap(guest.pages)
    device.track(guest.pages)
    guest(f"storm 2 {STORES}")
    sound(device.report(), events=PAGES)
    guest.guest.reboot()
    gone = set(device.collect_gone())
    assert gone == set(guest.pages)
    device.clear()
    guest.start()
    device.trap(guest.pages)
    device.track(guest.pages)
    guest(f"storm 2 {STORES}")
    device.collect()
    report = device.report()
    sound(report, events=PAGES)
    assert report["stale"] == 0
    guest.check(device)


def test_without_the_preload_library_the_model_gets_track_by_comparison_and_is_told(stores, watcher):
    device = watcher("a")
    guest = stores(device, environment={})
    device.track(guest.pages)
    guest("store 3 9")
    assert device.collect() == [guest.pages[3]]
    assert device.services()["mechanisms"]["protect[track]"] == "comparison of page digests"
    name, text = device.refused("trap", guest.pages)
    assert name == "ServiceUnavailable"
    assert "has lent its memory to no protector" in text
    assert "LD_PRELOAD=" in text


def test_a_qemu_that_daemonizes_is_told_not_to(setup, watcher, tmp_path):
    from umdev_testkit import qemu

    device = watcher("a")
    program = qemu.find()
    vfio_user = {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(device.socket)}}
    arguments = [
        "-no-user-config", "-nodefaults", "-display", "none", "-accel", ACCEL, "-machine", "q35,memory-backend=m",
        "-m", "64M", "-object", "memory-backend-memfd,id=m,size=64M,share=on", "-device", json.dumps(vfio_user),
        "-S", "-daemonize", "-pidfile", str(tmp_path / "pid"),
    ]  # fmt: skip
    subprocess.run(
        [*program.command, *arguments], env={**os.environ, **program.environment, **setup.environment}, check=True,
        timeout=SECONDS,
    )  # fmt: skip
    pid = int((tmp_path / "pid").read_text())
    try:
        name, text = device.refused("trap", [0x10_0000])
        assert name == "ServiceUnavailable"
        assert f"to a new process (such as {pid}), out of reach. Start QEMU without -daemonize" in text
        assert device.services()["client"] == pid
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def patience(monkeypatch):
    monkeypatch.setenv(wire.PATIENCE_VARIABLE, str(PATIENCE))


def test_a_device_that_keeps_its_lock_delays_the_guest_and_no_more(patience, stores, watcher):  # in this order
    device = watcher("a")
    guest = stores(device)
    device.trap(guest.pages)
    device.send("hold", 1.0)
    time.sleep(0.3)
    guest("store 1 5")
    device.receive()
    sound(device.report(), events=1)
    device.send("hold", PATIENCE + 3.0)
    time.sleep(0.3)
    guest("store 2 6")  # let go when the protector's patience has come to its end
    device.receive()
    name, text = device.refused("trap", guest.pages)
    assert name == "ProtectError"
    assert "not answered" in text
    guest.check(device)
