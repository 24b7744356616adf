"""Every device of this repository conforms, on every bus: `umdev_testkit.conformance`."""

import pytest
from umdev.errors import SaveError
from umdev.plugins import plugins
from umdev_testkit import conformance

TYPES = (
    ("bochs-display", "bochs-display"),
    ("edu", "edu"),
    ("intel-gvt", "i915-GVTg_V5_4"),
    ("mtty", "mtty-2"),
    ("nvidia", "nvidia-39"),
    ("nvme", "nvme-64m"),
    ("seven", "seven"),
)


@pytest.fixture(params=TYPES, ids=[kind for _, kind in TYPES])
def device(request, tmp_path, monkeypatch):
    monkeypatch.setenv("UMDEV_RUNTIME_DIR", str(tmp_path / "run"))  # instances are this test's own
    parent, kind = request.param
    with plugins().load_parent(parent).create(kind) as device:
        yield device


def test_it_conforms(device, any_function):
    conformance.check(any_function(device), device)


def test_all_but_the_gpus_can_be_saved(device):
    """Else the checks have only configuration space to compare."""
    if device.context.type.id in ("i915-GVTg_V5_4", "nvidia-39"):
        with pytest.raises(SaveError, match="no form outside this process"):
            device.save()
    else:
        device.save()
