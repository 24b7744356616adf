"""The tests of this plugin that need KVM, once more inside a guest whose KVM is complete, whatever this machine has."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.guest
@pytest.mark.timeout(900)
def test_in_a_guest(kvm_guest):
    options = ("-q", "-m", "kvm and not guest", "--timeout", "400")
    done = kvm_guest.pytest("plugins/intel_gvt/tests", *options, folder=ROOT)
    output = done.output.decode(errors="replace")
    assert done.status == 0, output
    assert re.search(r"\d+ passed", output)
    assert "skipped" not in output, output
