"""These tests run in the test bed's dom0, where test_xen_guest.py runs them."""

import os

import pytest
from umdev_testkit.xen_guest import BED


@pytest.fixture(autouse=True)
def bed():
    if BED not in os.environ:
        pytest.skip("needs Xen below (these tests run inside the Xen test bed: testkit/tests/test_xen_guest.py)")
