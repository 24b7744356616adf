"""What is installed is what the set says: under tox, wheels of the set and nothing else."""

import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

import pytest

EVERYTHING = {
    "umdev",
    "umdev_bochs_display",
    "umdev_cli",
    "umdev_edu",
    "umdev_intel_gvt",
    "umdev_kvm",
    "umdev_mtty",
    "umdev_nvidia",
    "umdev_nvme",
    "umdev_seven",
    "umdev_softgpu",
    "umdev_testkit",
    "umdev_vfio_user",
    "umdev_xen",
}
SETS = {
    "core": {"umdev"},
    "vfio_user": {"umdev", "umdev_testkit", "umdev_vfio_user"},
    "kvm": {"umdev", "umdev_edu", "umdev_kvm", "umdev_mtty", "umdev_testkit"},
    "all": EVERYTHING,
}
CHECKOUT = Path(__file__).parents[1]


@pytest.fixture
def installed_set():
    name = os.environ.get("UMDEV_TEST_SET")
    if name is None:  # `uv run pytest`: editable installs of everything
        return None
    return SETS[name]


def test_the_set_sees_its_packages_only(installed_set):
    seen = {name for name in EVERYTHING if importlib.util.find_spec(name)}
    assert seen == (installed_set or EVERYTHING)


def test_only_one_copy_of_each_entry_point(installed_set):
    for group in ("umdev.buses", "umdev.parents", "umdev.hypervisors", "umdev.addons"):
        names = [point.name for point in importlib.metadata.entry_points(group=group)]
        assert len(names) == len(set(names)), group


def test_packages_come_from_wheels(installed_set):
    if installed_set is None:
        assert CHECKOUT in Path(importlib.util.find_spec("umdev").origin).parents
        return
    for name in installed_set:
        origin = Path(importlib.util.find_spec(name).origin)
        assert Path(sys.prefix) in origin.parents, f"{name} is imported from {origin}"
    assert not [entry for entry in sys.path if Path(entry).name == "src" and CHECKOUT in Path(entry).parents]
