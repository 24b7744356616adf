"""The C side under the sanitizers: two processors run while everything around them changes."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.kvm

PLUGIN = Path(__file__).parents[2]
NATIVE = PLUGIN / "src" / "umdev_kvm" / "native"


def test_a_machine_in_turmoil(run_sanitized):
    run_sanitized(
        [PLUGIN / "tests" / "native" / "machine_test.c", *NATIVE.glob("*.c")], includes=[PLUGIN / "include", NATIVE]
    )
