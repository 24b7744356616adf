"""The tests of this plugin that need a dom0, and the examples' own checks on a domain, inside the Xen test bed."""

from pathlib import Path

import pytest
from umdev_testkit.programs import static_program

ROOT = Path(__file__).parents[3]


@pytest.mark.guest
@pytest.mark.xen
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("what", ["plugins/xen/tests/dom0", "examples"])
def test_in_dom0(xen_guest, passes_in, what):
    static_program(ROOT / "plugins/xen/tests/programs/serial_irq.c")  # into the cache: dom0 can't write there
    passes_in(xen_guest, what, "-m", "xen and not guest", "--timeout", "200", folder=ROOT, silence=300)
