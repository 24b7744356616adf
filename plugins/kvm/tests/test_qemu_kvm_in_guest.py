"""TRAP and TRACK on a stock QEMU that uses KVM: in a guest that has one, since not every machine's KVM runs Linux."""

import os
from pathlib import Path

import pytest
from umdev.errors import NotSupported
from umdev.hypervisor import open_userfault
from umdev_testkit.programs import static_program

ROOT = Path(__file__).parents[3]
TEST = "test_trap_before_the_store_lands_and_track_misses_nothing"


def selected():
    """The others, too, where this machine has to skip them: it gives its user no userfaultfd."""
    try:
        os.close(open_userfault().descriptor)
    except NotSupported:
        return ()
    return ("-k", TEST)


@pytest.mark.guest
@pytest.mark.kvm
@pytest.mark.timeout(1700)
def test_in_a_guest(kvm_guest, passes_in):
    static_program(ROOT / "plugins/kvm/tests/native/stores.c", flags=["-pthread"])  # into the cache
    # Three processors are translated one in the other: what takes a moment elsewhere may take a minute. And a Linux
    # that boots makes so many exits that no other test goes astray as often.
    environment = {"UMDEV_TEST_ACCEL": "kvm", "UMDEV_PROTECTOR_PATIENCE": "600"}
    options = (*selected(), "--timeout", "180")
    file = "plugins/kvm/tests/test_qemu_protect.py"
    passes_in(kvm_guest, file, *options, folder=ROOT, environment=environment, silence=240, tries=5)
