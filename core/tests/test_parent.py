"""Parents: types, instances, creation and its errors."""

import gc
import threading
import uuid
from pathlib import Path

import pytest
from umdev.device import (
    Block,
    DeclarationError,
    Device,
    DeviceType,
    Interrupts,
    InvalidArgument,
    MemoryBar,
    NoInstanceLeft,
    NotFound,
    Parent,
    PciId,
    Window,
)
from umdev.device.parent import parse_uuid
from umdev.errors import Conflict
from umdev.instances import InstanceClaims
from umdev.plugins import plugins

ONE = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"


class Small(Device):
    pci = PciId(vendor=1, device=1, class_code=0)


class Failing(Device):
    pci = PciId(vendor=1, device=1, class_code=0)

    def on_open(self):
        raise OSError("no such host resource")


@pytest.fixture
def claims(tmp_path):
    return InstanceClaims(tmp_path)


@pytest.fixture
def parent():
    types = [
        DeviceType("small-1", "Small", Small, units=1, attributes={"colour": "of the case"}),
        DeviceType("small-3", "Large", Small, units=3),
        DeviceType("failing", "Failing", Failing),
    ]
    return Parent("shelf", types, capacity=4)


def test_a_device_knows_what_it_is(parent, claims):
    with parent.create("small-1", ONE, attributes={"colour": "red"}, claims=claims) as device:
        assert str(device) == f"small-1 {ONE}"
        assert device.context.attributes == {"colour": "red"}
        assert parent.devices == {uuid.UUID(ONE): device}
    assert parent.devices == {}


def test_instances_are_counted_in_units(parent, claims):
    assert (parent.available_instances("small-1", claims), parent.available_instances("small-3", claims)) == (4, 1)
    with parent.create("small-1", claims=claims), parent.create("small-3", claims=claims):
        assert parent.available_instances("small-1", claims) == 0
        with pytest.raises(NoInstanceLeft):
            parent.create("small-1", claims=claims)
    assert parent.available_instances("small-1", claims) == 4


def test_a_uuid_is_used_once(parent, claims):
    with parent.create("small-1", ONE, claims=claims), pytest.raises(Conflict, match=ONE):
        parent.create("small-1", ONE, claims=claims)


@pytest.mark.parametrize("text", ["", "1234", ONE.replace("-", ""), f"{{{ONE}}}", f"urn:uuid:{ONE}", ONE + "0"])
def test_a_malformed_uuid(parent, claims, text):
    with pytest.raises(InvalidArgument, match="looks like"):
        parent.create("small-1", text, claims=claims)
    assert parse_uuid(ONE.upper()) == uuid.UUID(ONE)


def test_unknown_types_and_attributes_name_the_known_ones(parent, claims):
    with pytest.raises(NotFound, match="small-1, small-3"):
        parent.create("huge", claims=claims)
    with pytest.raises(InvalidArgument, match="colour"):
        parent.create("small-1", attributes={"color": "red"}, claims=claims)


def test_a_device_that_fails_to_open_claims_nothing(parent, claims):
    with pytest.raises(OSError, match="no such host resource"):
        parent.create("failing", claims=claims)
    assert parent.available_instances("small-1", claims) == 4


def test_a_device_that_an_addon_refuses_claims_nothing(parent, claims, monkeypatch):
    def tell(hook, **_):
        raise ExceptionGroup(hook, [ZeroDivisionError()])

    monkeypatch.setattr(plugins(), "tell", tell)
    with pytest.raises(ExceptionGroup):
        parent.create("small-1", ONE, claims=claims)
    assert parent.devices == {}
    assert parent.available_instances("small-1", claims) == 4


class Ram(Block["WithRam"]):
    ram = Window(0, 4096)


class WithRam(Device):
    pci = PciId(vendor=1, device=1, class_code=0)
    bar0 = MemoryBar(0, Ram, size=4096)


class FailsToOpen(WithRam):
    def on_open(self):
        raise ZeroDivisionError


class FailsToReset(WithRam):
    def on_reset(self, kind):
        self.after(1, self.on_open)
        raise ZeroDivisionError


class TableInRam(WithRam):
    interrupts = Interrupts(msix=1, msix_bar=0)


@pytest.mark.parametrize(
    ("kind", "error"),
    [(FailsToOpen, ZeroDivisionError), (FailsToReset, ZeroDivisionError), (TableInRam, DeclarationError)],
)
def test_a_device_that_can_not_be_made_leaves_nothing(kind, error):
    gc.collect()  # what earlier tests left
    gc.collect()  # what earlier tests left
    before = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    for _ in range(3):
        with pytest.raises(error):
            kind()
    gc.collect()  # Python's mmap keeps a descriptor of its own
    assert (len(list(Path("/proc/self/fd").iterdir())), threading.active_count()) == before
