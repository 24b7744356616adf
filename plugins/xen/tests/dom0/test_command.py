"""`umdev serve --bus xen` and `umdev run --xen`, as processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from umdev_testkit.xen_payloads import payload

pytestmark = pytest.mark.xen
SECONDS = 300.0  # for what takes seconds on an idle machine
BAR = 0xF000_0000
NAME = "umdev-test"
IDENT = payload(
    f"config_write 1, 0x10, {BAR:#x}\nconfig_write 1, 4, 6\nmov eax, [{BAR:#x}]\nmov [0x8000], eax\nexit 1\n"
)


@pytest.fixture
def start(tmp_path):
    """`start("serve", ...)`: the command, with directories of its own; ended by SIGTERM at the latest."""
    environment = {**os.environ, "UMDEV_RUNTIME_DIR": str(tmp_path / "run"), "UMDEV_CONFIG_DIR": str(tmp_path / "etc")}
    started = []

    def begin(*arguments):
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "umdev_cli.main", *arguments],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        return started[-1]

    yield begin
    for process in started:
        process.terminate()
        process.communicate(timeout=SECONDS)


def wait_for(process, text):
    """The first line of what it says on stderr with the text."""
    said = []
    for line in process.stderr:
        said.append(line)
        if text in line:
            return line
    raise AssertionError("".join(said))


def until(true):
    """The process may say that its domain has gone before it has let it go."""
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ended(process):
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=SECONDS)
    return process.returncode, said


def ident(guest):
    assert guest.run(SECONDS) == 1
    return guest.read(0x8000, 4)


def test_serve(guest, start, domains):
    guest.load(IDENT)
    process = start("serve", "--bus", "xen", "edu", "--domain", str(guest.domid), "--slot", "1")
    wait_for(process, "served on xen")
    assert ident(guest) == b"\xed\0\0\x01"
    assert ended(process)[0] == 0
    number = guest.domid
    guest.destroy()
    assert number not in domains.domains()


def test_serve_ends_with_the_domain(guest, start):
    process = start("serve", "--bus", "xen", "edu", "--domain", str(guest.domid))
    wait_for(process, "served on xen")
    guest.destroy()
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--domain", "4242"), 1, "no such domain"),
        (("--domain", "nobody"), 3, "no domain is named 'nobody'"),
        (("--domain", "4242", "--slot", "zero"), 2, "slots 1 to 31"),
        ((), 2, "Missing option '--domain'"),
    ],
)
def test_serve_says_what_is_wrong(start, arguments, code, text):
    process = start("serve", "--bus", "xen", "edu", *arguments)
    _, said = process.communicate(timeout=SECONDS)
    assert text in said
    assert process.returncode == code


def test_run_follows_a_domain_through_a_reboot(guest, start, domains):
    """Each life is served by a process of its own, which has given up its rights and its user."""
    guest.load(IDENT)
    subprocess.run(["xenstore-write", "/local/domain/4242/name", NAME], check=True)  # left by one that has gone
    process = start("run", "--xen", NAME, "--user", "nobody", "edu")
    wait_for(process, "domain 4242 has gone already")
    subprocess.run(["xenstore-rm", "/local/domain/4242"], check=True)
    try:
        for life in range(3):
            subprocess.run(["xenstore-write", f"/local/domain/{guest.domid}/name", NAME], check=True)
            assert f"of domain {guest.domid}" in wait_for(process, "0000:00:01.0")
            assert ident(guest) == b"\xed\0\0\x01", f"life {life}"
            subprocess.run(["xenstore-rm", f"/local/domain/{guest.domid}"], check=True)
            old = guest.domid
            guest.recreate()
            assert f"domain {old} has gone" in wait_for(process, "has gone")
            until(lambda gone=old: gone not in domains.domains())
    finally:
        code, said = ended(process)
    assert code == 0, said


def test_run_takes_attributes_and_a_number(guest, start, tmp_path):
    place = tmp_path / "port"
    process = start("run", "--xen", str(guest.domid), f"mtty-1,port0=unix:{place}", "edu")
    wait_for(process, "0000:00:02.0 edu")
    assert place.is_socket()
    guest.destroy()
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--xen", "4242", "edu"), 1, "no such domain"),
        (("--xen", "70000", "edu"), 2, "numbers 0 to 32751"),
        (("--xen", "nobody", "edu,speed=1"), 2, "no attribute 'speed'"),
    ],
)
def test_run_says_what_is_wrong(start, arguments, code, text):
    process = start("run", *arguments)
    _, said = process.communicate(timeout=SECONDS)
    assert text in said
    assert "Traceback" not in said
    assert process.returncode == code


def test_doctor_knows_this_dom0(start):
    process = start("doctor", "--json")
    said, _ = process.communicate(timeout=SECONDS)
    rows = {row["check"]: row for row in json.loads(said)}
    assert rows["Xen dom0"]["ok"]
    assert "1 GiB" in rows["Xen TRACK"]["text"]
