"""One kept device through reboots, a killed QEMU and the next one."""

import time

import pytest

pytestmark = pytest.mark.guest

BDF = "0000:00:01.0"
WORKS = {"ident": "010000ed", "liveness": "1", "factorial": "479001600"}
WORKS |= {"page-differs-before": "1", "dma-bytes-wrong": "0"}


def test_reboots_and_a_killed_qemu(umdev, linux_guest, program, facts):
    device = umdev.start("edu", "edu")
    options = {
        "files": {"/bin/edu_sysfs": program("edu_sysfs")},
        "qemu_args": device.arguments,
        "timeout": 240,
    }
    drive = f"edu_sysfs {BDF} registers dma"

    def at_rest():
        """Descriptors and map lines once the client is gone, or after five seconds with it."""
        deadline = time.monotonic() + 5
        while umdev.show(device.uuid)["state"] == "running" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert umdev.show(device.uuid)["state"] == "attached"
        return device.descriptors, device.map_lines

    untouched = at_rest()
    guest = linux_guest.start(**options)
    assert facts(guest.run(drive)) == WORKS
    for reboot in (guest.reboot, guest.reset):
        reboot()
        assert facts(guest.run(drive)) == WORKS
    guest.run(f"(while edu_sysfs {BDF} registers dma; do :; done) >/dev/null 2>&1 &")
    guest.kill()
    killed = at_rest()
    assert killed[0] == sorted([*untouched[0], "/dev/null"]), "beside what signals eventfds, from the first one on"

    with linux_guest.start(**options) as guest:
        assert facts(guest.run(drive)) == WORKS
        guest.poweroff()
    descriptors, map_lines = at_rest()
    assert descriptors == killed[0]
    assert map_lines <= killed[1]
    assert umdev.show(device.uuid)["pid"] == device.pid
