"""Bare domains with devices, and what their payloads have in common. Runs inside the Xen test bed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from umdev_testkit.xen_payloads import RESULTS


@pytest.fixture(autouse=True)
def _inside_the_bed() -> None:
    if "UMDEV_XEN_BED" not in os.environ:
        pytest.skip("these tests run inside the Xen test bed: plugins/xen/tests/test_in_xen.py")


@pytest.fixture
def make_domain() -> Iterator[Callable[..., object]]:
    """`make_domain(vcpus=1)`: a bare domain, paused; destroyed at the end."""
    from umdev_testkit.xen_domain import XenDomain

    made = []

    def make(**options: object) -> XenDomain:
        made.append(XenDomain(**options))
        return made[-1]

    yield make
    for domain in made:
        domain.close()


@pytest.fixture
def guest(make_domain):
    """One processor, 4 MiB."""
    return make_domain()


@pytest.fixture
def results():
    """What the payload left with `result`."""

    def read(guest, count: int) -> list[int]:
        data = guest.read(RESULTS, 4 * count)
        return [int.from_bytes(data[i : i + 4], "little") for i in range(0, 4 * count, 4)]

    return read
