"""The Xen test bed: a real Xen and its dom0 in QEMU."""

import re
from pathlib import Path

import pytest
from umdev_testkit.errors import GuestDied, GuestFailed, GuestTimedOut
from umdev_testkit.xen_guest import XenGuest

pytestmark = [pytest.mark.guest, pytest.mark.xen, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]


def test_programs_of_this_machine_run_in_dom0(xen_guest):
    assert xen_guest.execute("cat", "/proc/xen/capabilities").output == b"control_d\n"
    assert xen_guest.execute("pwd", folder=ROOT).output.decode() == f"{ROOT}\n"
    done = xen_guest.python("-c", "import ctypes; print(bool(ctypes.CDLL('libxendevicemodel.so.1')))")
    assert (done.status, done.output) == (0, b"True\n")


@pytest.mark.parametrize("status", [0, 3])
def test_the_exit_status_comes_back(xen_guest, status):
    done = xen_guest.python("-c", f"print('out', flush=True); raise SystemExit({status})")
    assert (done.status, done.output) == (status, b"out\n")


def test_files_of_this_machine_are_for_reading(xen_guest, tmp_path):
    (tmp_path / "here").write_text("seen\n")
    done = xen_guest.execute("sh", "-c", f"cat {tmp_path}/here; echo changed >{tmp_path}/here")
    assert done.status != 0
    assert b"seen\n" in done.output
    assert b"Read-only" in done.output
    assert (tmp_path / "here").read_text() == "seen\n"
    xen_guest.guest.write_file("/run/there", b"\0\xff")
    assert xen_guest.execute("cat", "/run/there").output == b"\0\xff"


def test_xl_reaches_xen(xen_guest):
    done = xen_guest.execute("xl", "list")
    assert done.status == 0
    assert re.search(rb"^Domain-0 +0 ", done.output, re.MULTILINE)


def test_both_kinds_of_guests(xen_guest, passes_in):
    passes_in(xen_guest, "testkit/tests/xen", "-m", "xen", "--timeout", "200", folder=ROOT, silence=300)


def test_a_machine_that_powers_off_is_no_success(tmp_path):
    with (
        XenGuest(tmp_path, timeout=900) as bed,
        pytest.raises(GuestDied, match=r"QEMU ended with status 0 during a command"),
    ):
        bed.guest.execute("poweroff -f; sleep 600")


def test_a_program_that_hangs_is_killed(tmp_path):
    with XenGuest(tmp_path, timeout=900) as bed:
        with pytest.raises(GuestTimedOut, match=r"(?s)a command took too long.*begun"):
            bed.execute("sh", "-c", "echo begun; sleep 600", timeout=30)
        with pytest.raises(GuestDied):
            bed.execute("true")


def test_a_bed_that_does_not_boot_is_a_failure(tmp_path):
    with pytest.raises(GuestTimedOut, match=r"limit of 1 s passed during the boot"):
        XenGuest(tmp_path, timeout=1).__enter__()


def test_a_path_that_qemu_can_not_give_to_xen(tmp_path):
    with pytest.raises(GuestFailed, match=r"space in its path.*--basetemp"):
        XenGuest(tmp_path / "with space", timeout=60).__enter__()
