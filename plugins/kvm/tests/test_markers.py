"""`pytest -m kvm` runs all of this plugin's tests, each once; what runs in a guest starts no guest there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kvm

ROOT = Path(__file__).parents[3]
TESTS = "plugins/kvm/tests"


def selected(marks, *folders):
    """The tests that pytest would run."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", marks, *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode in (0, 5), done.stdout + done.stderr  # 5: none
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_every_test_of_the_plugin_is_marked():
    assert selected("not kvm", TESTS) == []


def test_no_guest_is_started_in_a_guest():
    inside = selected("kvm and not guest", TESTS, "plugins/intel_gvt/tests")
    assert f"{TESTS}/machine/test_machine.py" in {name.split("::")[0] for name in inside}
    assert not [name for name in inside if "in_guest" in name or "qemu_protect" in name]


def test_the_environments_of_tox_share_all_of_them_out():
    everything = selected("kvm", TESTS)
    shared = [selected(f"kvm and {marks}", TESTS) for marks in ("not guest and not xen", "guest and not xen")]
    assert all(shared)
    assert sorted(shared[0] + shared[1]) == sorted(everything)
