"""Emulated stores in C, under the sanitizers; needs no KVM."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.kvm

PLUGIN = Path(__file__).parents[1]
NATIVE = PLUGIN / "src" / "umdev_kvm" / "native"


def test_stores_while_devices_come_and_go(run_sanitized):
    run_sanitized(
        [PLUGIN / "tests" / "native" / "emulate_test.c", NATIVE / "emulate.c"], includes=[PLUGIN / "include", NATIVE]
    )
