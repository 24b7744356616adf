"""The protector with a VMM in little once more, in a guest where a userfaultfd is to be had, whoever runs the tests."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.guest
@pytest.mark.kvm
@pytest.mark.timeout(1700)
def test_in_a_guest(kvm_guest, passes_in):
    passes_in(kvm_guest, "plugins/kvm/tests/test_protect_vmm.py", "--timeout", "200", folder=ROOT, silence=300)
