"""All tests of a machine once more, inside a guest whose KVM is complete, whatever this machine has.

And those of the preload library and of the protector with a VMM in little, since there everybody has a userfaultfd, and
is root.
"""

from pathlib import Path

import pytest
from umdev_testkit.programs import static_program

ROOT = Path(__file__).parents[3]


@pytest.mark.guest
@pytest.mark.kvm
@pytest.mark.timeout(1700)
@pytest.mark.parametrize(
    "what",
    [
        ["plugins/kvm/tests/machine"],
        [f"plugins/kvm/tests/test_{name}.py" for name in ("preload", "protect_vmm", "protector_process")],
        ["examples", "tests/test_conformance.py", "plugins/nvidia/tests/test_submission.py"],
    ],
    ids=" ".join,
)
def test_in_a_guest(kvm_guest, passes_in, what):
    static_program(ROOT / "tests/guests/programs/edu_sysfs.c", flags=["-Wconversion", "-Werror"])  # into the cache
    passes_in(kvm_guest, *what, "-m", "kvm and not guest", "--timeout", "200", folder=ROOT, silence=300)
