"""All tests of this plugin once more, inside a guest whose KVM is complete, whatever this machine has."""

import re
from pathlib import Path

import pytest
from umdev_testkit.programs import static_program

ROOT = Path(__file__).parents[3]


@pytest.mark.guest
@pytest.mark.timeout(1700)
@pytest.mark.parametrize("what", ["plugins/kvm/tests/machine", "examples"])
def test_in_a_guest(kvm_guest, what):
    static_program(ROOT / "tests/guests/programs/edu_sysfs.c", flags=["-Wconversion", "-Werror"])  # into the cache
    done = kvm_guest.pytest(what, "-q", "-m", "kvm and not guest", "--timeout", "400", folder=ROOT)
    output = done.output.decode(errors="replace")
    assert done.status == 0, output
    assert re.search(r"\d+ passed", output)
    assert "skipped" not in output, output
