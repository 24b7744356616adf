"""`umdev demo`: each service is proven, and a proof that fails is seen to fail."""

import json
import os
import pty
import select
import subprocess
import sys
import tty

import pytest
from umdev.loopback import bus as loopback
from umdev_cli.demo_proofs import Demonstration
from umdev_cli.main import run
from umdev_seven import Seven

SERVICES = ["passthrough", "trap", "interrupt", "map", "pin", "protect", "translate"]


@pytest.mark.parametrize("arguments", [[], ["--bus", "loopback"]])
def test_all_seven_services_are_proven(arguments, capsys):
    assert run(["demo", "--json", *arguments]) == 0
    proofs = json.loads(capsys.readouterr().out)
    assert [proof["service"] for proof in proofs] == SERVICES
    assert all(proof["ok"] for proof in proofs), proofs
    assert all(set(proof) == {"service", "bus", "mechanism", "proof", "ok"} for proof in proofs)
    assert all(proof["mechanism"] != "none" for proof in proofs)


def test_it_needs_no_network():
    unshare = ["unshare", "--map-root-user", "--net"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here: user namespaces are off; run as root")
    done = subprocess.run(
        [*unshare, sys.executable, "-m", "umdev_cli.main", "demo", "--json"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(proof["ok"] for proof in json.loads(done.stdout))


def test_people_get_a_table(capsys):
    assert run(["demo", "--bus", "loopback"]) == 0
    text = capsys.readouterr().out
    assert all(service in text for service in SERVICES)


def test_an_unknown_bus_is_not_found(capsys):
    assert run(["demo", "--bus", "carrier-pigeon"]) == 3
    assert "carrier-pigeon" in capsys.readouterr().err


class Sabotage(Seven):
    """Breaks one service at a time."""

    broken = ""

    def perform(self, operation):
        if operation.name.lower().startswith(self.broken):
            return 0
        return super().perform(operation)


@pytest.mark.parametrize(
    ("broken", "service"),
    [
        ("interrupt", "interrupt"),
        ("reverse", "map"),
        ("pin", "pin"),
        ("collect", "protect"),
        ("translate", "translate"),
    ],
)
def test_a_broken_service_is_not_ok(broken, service):
    device = type("Broken", (Sabotage,), {"broken": broken})()
    with device, loopback.open_function(device) as function:
        proofs = {proof.service: proof for proof in Demonstration(device, function, "loopback").run()}
    assert not proofs[service].ok
    assert all(proof.ok for name, proof in proofs.items() if name != service), proofs


@pytest.mark.guest
@pytest.mark.timeout(600)
def test_a_real_guest_proves_a_device_both_ways():
    from umdev_cli.demo_guest import boot

    told = []
    seen = boot(told.append)
    assert seen["ok"], told
    assert (seen["received"], len(seen["answered"])) == (seen["sent"], len(seen["sent"]))
    assert told[-1].startswith("ok: ")


def test_the_host_answers_only_a_whole_line():
    from umdev_cli.demo_guest import _Listener

    ours, theirs = pty.openpty()
    try:
        tty.setraw(theirs)
        with _Listener(theirs, "answer") as listener:
            os.write(ours, b"a li")
            assert not select.select([ours], [], [], 0.3)[0]
            os.write(ours, b"ne\n")
            assert os.read(ours, 100) == b"answer\n"
        assert listener.heard == "a line"
        with _Listener(theirs, "answer") as listener:
            os.write(ours, b"cut")  # the guest dies: nobody waits for ever
        assert listener.heard in ("", "cut")
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_guest_without_the_serial_card_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setenv("UMDEV_DISABLE_PLUGINS", "mtty")
    assert run(["demo", "--guest", "linux"]) == 4
    assert "pip install umdev-testkit umdev-mtty" in capsys.readouterr().err
