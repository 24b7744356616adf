"""What the parent offers: types, texts, slices, attributes."""

import itertools
import sys
import threading

import pytest
from umdev.device import InvalidArgument, NoInstanceLeft
from umdev_intel_gvt.partition import APERTURE, GRAPHICS_MEMORY, HOST_APERTURE, HOST_HIDDEN, MIB

DESCRIPTION = """\
low_gm_size: 128MB
high_gm_size: 512MB
fence: 4
resolution: 1920x1200
weight: 4
"""


def test_the_types_are_gvt_g_s(gpu):
    assert list(gpu.types) == [f"i915-GVTg_V5_{n}" for n in (8, 4, 2, 1)]
    assert gpu.types["i915-GVTg_V5_4"].description == DESCRIPTION
    assert gpu.types["i915-GVTg_V5_8"].name == "GVTg_V5_8"
    assert gpu.types["i915-GVTg_V5_8"].device_api == "vfio-pci"
    assert [gpu.available_instances(type_) for type_ in gpu.types] == [7, 5, 2, 1]


def test_instances_are_computed_from_what_is_left(gpu):
    large = gpu.create("i915-GVTg_V5_2")
    assert [gpu.available_instances(type_) for type_ in gpu.types] == [4, 3, 1, 0]
    small = [gpu.create("i915-GVTg_V5_8") for _ in range(4)]
    assert [gpu.available_instances(type_) for type_ in gpu.types] == [0, 0, 0, 0]
    with pytest.raises(NoInstanceLeft, match="i915-GVTg_V5_8"):
        gpu.create("i915-GVTg_V5_8")
    for device in (large, *small):
        device.close()
    assert [gpu.available_instances(type_) for type_ in gpu.types] == [7, 5, 2, 1]
    assert gpu.partition.used == {}


def test_no_two_slices_overlap(gpu):
    devices = [gpu.create("i915-GVTg_V5_4"), *(gpu.create("i915-GVTg_V5_8") for _ in range(4))]
    devices.pop(2).close()
    devices.append(gpu.create("i915-GVTg_V5_8"))
    assert sorted(device.number for device in devices) == [1, 2, 3, 4, 5]
    for part, first, end in (
        ("aperture", HOST_APERTURE, APERTURE),
        ("hidden", APERTURE + HOST_HIDDEN, GRAPHICS_MEMORY),
    ):
        ranges = sorted((getattr(device.slice, part) for device in devices), key=lambda range_: range_.base)
        assert ranges[0].base >= first
        assert ranges[-1].end <= end
        assert all(one.end <= other.base for one, other in itertools.pairwise(ranges))
        assert all(range_.size % MIB == 0 for range_ in ranges)
    for device in devices:
        device.close()


def test_gaps_that_are_too_small_are_no_room(gpu):
    devices = [gpu.create("i915-GVTg_V5_8") for _ in range(7)]
    for device in devices[::2]:
        device.close()
    assert gpu.available_instances("i915-GVTg_V5_2") == 1
    with pytest.raises(NoInstanceLeft, match="one piece"):
        gpu.create("i915-GVTg_V5_2")
    for device in devices[1::2]:
        device.close()
    assert gpu.available_instances("i915-GVTg_V5_2") == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [("weight", "0"), ("weight", "17"), ("weight", "two"), ("cap", "101"), ("cap", "-1"), ("shadow", "x")],
)
def test_attributes_out_of_range_take_no_slice(gpu, name, value):
    with pytest.raises(InvalidArgument, match=name):
        gpu.check_attributes("i915-GVTg_V5_8", {name: value})  # before a device is asked for
    with pytest.raises(InvalidArgument, match=name):
        gpu.create("i915-GVTg_V5_8", attributes={name: value})
    assert gpu.partition.used == {}
    assert gpu.available_instances("i915-GVTg_V5_8") == 7


def test_attributes_reach_the_scheduler(gpu):
    plain = gpu.create("i915-GVTg_V5_2")
    chosen = gpu.create("i915-GVTg_V5_8", attributes={"weight": "5", "cap": "40"})
    assert (plain.client.weight, plain.client.cap) == (8, None)
    assert (chosen.client.weight, chosen.client.cap) == (5, 0.4)
    plain.close()
    chosen.close()


def test_vgpus_that_are_made_at_once_share_one_scheduler(gpu, monkeypatch):
    module = sys.modules[type(gpu).__module__]
    made, real = [], module.Scheduler

    def slow(*args, **options):
        if not made:
            made.append(other)
            other.start()
            other.join(0.1)  # it waits for us, or has made another one
        made.append(scheduler := real(*args, **options))
        return scheduler

    other = threading.Thread(target=lambda: gpu.scheduler)
    monkeypatch.setattr(module, "Scheduler", slow)
    first = gpu.scheduler
    other.join()
    assert made == [other, first]
