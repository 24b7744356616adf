"""PVH Linux domains. Runs inside the test bed."""

import subprocess

import pytest
from umdev.errors import StateError
from umdev_testkit.errors import GuestDied, GuestFailed, GuestTimedOut
from umdev_testkit.xen_domain import domains
from umdev_testkit.xen_linux import PvhLinux

pytestmark = pytest.mark.xen

SECONDS = 240  # for what takes half a minute on an idle machine


def test_a_script_runs_and_its_status_comes_back():
    before = domains()
    script = """
        uname -r
        nproc
        cat /sys/hypervisor/type
        cut -d' ' -f1 /proc/modules
        cat /greeting
        exit 3
    """
    with PvhLinux(script, vcpus=2, modules=["uio"], files={"/greeting": b"hello from outside\n"}) as linux:
        assert linux.domid in domains()
        assert subprocess.run(["xl", "domname", str(linux.domid)], capture_output=True, text=True, timeout=60,
                              check=True).stdout.strip() == linux.name  # fmt: skip
        assert linux.console == ""  # paused
        with pytest.raises(StateError, match="there already"):
            linux.create()
        linux.unpause()
        linux.wait_for("hello from outside", SECONDS)
        run = linux.wait(SECONDS)
    assert run.status == 3
    assert "2\nxen\nuio\nhello from outside\n" in run.console
    assert domains() == before
    with pytest.raises(StateError, match="not there"):
        linux.unpause()


def test_a_panic_and_a_domain_that_is_made_again():
    with PvhLinux("echo c >/proc/sysrq-trigger; sleep 60") as linux:
        first = linux.domid
        with pytest.raises(GuestTimedOut, match="power-off"):
            linux.wait(0.1)
        linux.unpause()
        with pytest.raises(GuestDied, match=r"(?s)shut down: (crash|reboot).*sysrq triggered crash"):
            linux.wait(SECONDS)
        linux.destroy()
        assert linux.create() != first
        linux.destroy()
        with pytest.raises(StateError):
            linux.wait(1)


def test_what_xl_says_is_in_the_error():
    before = domains()
    with pytest.raises(GuestFailed, match=r"(?s)xl create.*status.*memory"):
        PvhLinux("true", memory=64_000).create()
    assert domains() == before
