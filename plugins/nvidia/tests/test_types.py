"""What the parent offers: types, texts, the rule of one size, attributes."""

import concurrent.futures

import pytest
from umdev.device import InvalidArgument, NoInstanceLeft, ResetKind
from umdev_nvidia import TeslaM10
from umdev_nvidia.parameters import parse
from umdev_nvidia.sharing import Sharing

NUMBERS = (35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 155, 208, 240)
MAXIMA = (16, 16, 8, 8, 8, 4, 4, 2, 2, 1, 1, 4, 4, 8)
DESCRIPTION = "num_heads=4, frl_config=60, framebuffer=1024M, max_resolution=5120x2880, max_instance=8"


def test_the_types_are_a_tesla_m10_s(gpu):
    assert list(gpu.types) == [f"nvidia-{number}" for number in NUMBERS]
    assert gpu.types["nvidia-39"].description == DESCRIPTION
    assert gpu.types["nvidia-39"].name == "GRID M10-1Q"
    assert gpu.types["nvidia-35"].description.startswith("num_heads=2, frl_config=45, framebuffer=512M, ")
    assert gpu.types["nvidia-39"].device_api == "vfio-pci"
    assert [gpu.available_instances(type_) for type_ in gpu.types] == list(MAXIMA)


def test_vgpus_of_one_gpu_have_one_size(gpu):
    device = gpu.create("nvidia-39")
    same = {"nvidia-37": 7, "nvidia-38": 7, "nvidia-39": 7, "nvidia-240": 7}
    assert {t: n for t in gpu.types if (n := gpu.available_instances(t))} == same
    with pytest.raises(NoInstanceLeft, match=r"one size, and 1024 MiB is in use"):
        gpu.create("nvidia-36")
    other = gpu.create("nvidia-38")
    assert gpu.available_instances("nvidia-39") == 6
    other.close()
    device.close()
    assert [gpu.available_instances(type_) for type_ in gpu.types] == list(MAXIMA)


def test_exactly_as_many_as_fit_are_made_by_many_threads_at_once(gpu):
    def make(_):
        try:
            return gpu.create("nvidia-40")
        except NoInstanceLeft:
            return None

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        made = [device for device in pool.map(make, range(16)) if device is not None]
    assert len(made) == 4
    for device in made:
        device.close()
    assert gpu.available_instances("nvidia-40") == 4


@pytest.mark.parametrize(("type_", "subsystem"), [("nvidia-35", 0x11CC), ("nvidia-39", 0x11CF), ("nvidia-240", 0x1339)])
def test_the_subsystem_tells_the_type(gpu, loopback_function, type_, subsystem):
    device = gpu.create(type_)
    function = loopback_function(device)
    assert (function.config.vendor_id, function.config.device_id) == (0x10DE, 0x13BD)
    assert function.config.subsystem == (0x10DE, subsystem)
    assert function.config.class_code == 0x030200


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"vgpu_params": "frame_rate=0"}, "has no 'frame_rate'"),
        ({"vgpu_params": "frame_rate_limiter=2"}, "0 or 1"),
        ({"vgpu_params": "disable_vnc=1, disable_vnc=1"}, "twice"),
        ({"scheduler": "fair"}, "best-effort, equal-share, fixed-share"),
        ({"scheduler": "fixed-share/31"}, "1 to 30 ms"),
        ({"scheduler": "fixed-share/"}, "1 to 30 ms"),
    ],
)
def test_attributes_that_make_no_sense_take_no_place(gpu, attributes, message):
    with pytest.raises(InvalidArgument, match=message):
        gpu.check_attributes("nvidia-39", attributes)  # before a device is asked for
    with pytest.raises(InvalidArgument, match=message):
        gpu.create("nvidia-39", attributes=attributes)
    assert gpu.available_instances("nvidia-39") == 8


def test_parameters_are_those_of_a_host_s_file():
    assert parse("") == {"frame_rate_limiter": True, "disable_vnc": False}
    assert parse("frame_rate_limiter=0, disable_vnc=1") == {"frame_rate_limiter": False, "disable_vnc": True}


def test_frames_are_limited_by_type_and_by_best_effort_alone(gpu):
    def rate(type_, **attributes):
        with gpu.create(type_, attributes=attributes) as device:
            return device.client.frame_rate

    assert rate("nvidia-39") == 60
    assert rate("nvidia-38") == 45
    assert rate("nvidia-39", vgpu_params="frame_rate_limiter=0") is None
    assert rate("nvidia-39", scheduler="equal-share") is None


def test_the_first_vgpu_decides_how_the_gpu_is_shared(gpu):
    first = gpu.create("nvidia-39", attributes={"scheduler": "fixed-share/3"})
    assert gpu.sharing == Sharing("fixed-share", 3)
    with pytest.raises(InvalidArgument, match=r"share the GPU by fixed-share/3"):
        gpu.create("nvidia-39", attributes={"scheduler": "best-effort"})
    second = gpu.create("nvidia-39")
    third = gpu.create("nvidia-39", attributes={"scheduler": "fixed-share/3"})
    for device in (first, second, third):
        device.close()
    gpu.create("nvidia-36").close()
    assert gpu.sharing == Sharing()


def test_slices_follow_the_number_of_vgpus():
    assert Sharing("fixed-share").policy(8).slice_ns == 2_000_000
    assert Sharing("fixed-share").policy(16).slice_ns == 1_000_000
    assert Sharing.parse("equal-share/7").policy(16).slice_ns == 7_000_000


def test_the_largest_type_costs_what_is_used_of_it(gpu):
    device = gpu.create("nvidia-45")
    assert device.vram.size == 8 << 30
    device.vram.memory[(8 << 30) - 1] = 7
    device.reset(ResetKind.BUS)
    assert device.vram.memory[(8 << 30) - 1] == 0
    device.close()


def test_the_entry_point_is_a_parent():
    from umdev_nvidia import parent

    assert isinstance(parent, TeslaM10)
    assert parent.shared_process
