"""The tests of this plugin that need KVM, once more inside a guest whose KVM is complete, whatever this machine has."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.guest
@pytest.mark.kvm
@pytest.mark.timeout(1800)
def test_in_a_guest(kvm_guest, passes_in):
    passes_in(
        kvm_guest, "plugins/intel_gvt/tests", "-m", "kvm and not guest", "--timeout", "200", folder=ROOT, silence=300
    )
