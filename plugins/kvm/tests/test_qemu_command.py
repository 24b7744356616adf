"""What the commands tell a person who starts QEMU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sysconfig
from pathlib import Path

import pytest
from umdev_kvm import preload_path
from umdev_kvm.qemu import doctor

pytestmark = pytest.mark.kvm


@pytest.fixture
def umdev(runtime, monkeypatch):
    """Run the command."""
    monkeypatch.setenv("UMDEV_CONFIG_DIR", str(runtime.parent / "config"))

    def run(*words):
        program = Path(sysconfig.get_path("scripts")) / "umdev"
        done = subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done

    yield run
    for folder in runtime.glob("hosts/*"):  # what a failed test has left
        run("stop", "--uuid", folder.name)


def test_programs_read_what_qemu_needs_and_stop_ends_the_protector(umdev, runtime):
    done = umdev("start", "--parent", "edu", "--type", "edu")
    uuid, argument = done.stdout.splitlines()
    assert argument.startswith("-device ")
    assert "LD_PRELOAD" not in done.stderr  # a terminal would show it
    assert (runtime / "protector").is_socket()
    shown = json.loads(umdev("show", uuid, "--json").stdout)
    assert shown["environment"] == {"LD_PRELOAD": str(preload_path()), "UMDEV_PROTECTOR": f"{runtime}/protector"}
    second = json.loads(umdev("start", "--parent", "edu", "--type", "edu", "--json").stdout)
    assert second["environment"] == shown["environment"]
    umdev("stop", "--uuid", uuid)
    assert (runtime / "protector").is_socket()
    umdev("stop", "--uuid", second["uuid"])
    assert not (runtime / "protector").exists()


def test_serve_says_what_qemu_needs(umdev, runtime, child):
    program = Path(sysconfig.get_path("scripts")) / "umdev"
    served = child([program, "serve", "edu"], stderr=subprocess.PIPE)
    assert served.line().startswith("-device ")
    advice = f"LD_PRELOAD={preload_path()} UMDEV_PROTECTOR={runtime}/protector"
    said = served.stderr.readline()
    while "LD_PRELOAD" not in said:  # the log is there, too
        assert said
        said = served.stderr.readline()
    assert said == f"to let the model protect guest memory, start QEMU with: {advice}\n"
    os.kill(served.pid, signal.SIGTERM)
    assert served.wait() == 0
    assert not (runtime / "protector").exists()


def test_the_loopback_bus_needs_nothing(umdev, runtime):
    from umdev_kvm import hypervisor

    assert hypervisor.prepare_client("loopback") is None
    assert not runtime.exists()


def test_doctor_says_whether_qemu_can_lend_its_memory(runtime, monkeypatch):
    rows = {row.check: row for row in doctor()}
    usable = os.access("/dev/userfaultfd", os.R_OK | os.W_OK)
    assert rows["QEMU preload"].ok is (True if usable else None) or "userfaultfd(2)" in rows["QEMU preload"].text
    if rows["QEMU preload"].ok:
        assert str(preload_path()) in rows["QEMU preload"].text
        assert "none runs" in rows["QEMU protector"].text
    else:
        assert "UMDEV_USERFAULTFD" in rows["QEMU preload"].remedy
