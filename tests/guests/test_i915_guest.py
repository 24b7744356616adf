"""Debian's stock i915, with no parameter, drives a vGPU: it is not wedged, and what it submits comes back right."""

import re
import time
import uuid

import numpy as np
import pytest

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

BDF = "0000:00:01.0"
SIDE = 256
SUBMISSIONS = 1000
QUIET_SECONDS = 60
SHARED_NS = 1_000_000_000
"""Of the engines' time: a thousand turns."""
WEDGED = "cat /sys/kernel/debug/dri/0/i915_wedged"
MOUNT = "mount -t debugfs debugfs /sys/kernel/debug"
STORES = {
    "render": "0 c0ffee00 ffffffff",
    "blitter": "0 c0ffee01 fffffffe",
    "video": "0 c0ffee02 fffffffd",
    "enhance": "0 c0ffee03 fffffffc",
}
TRACED = {
    "*.RENDER.submit_port": r"write registers\.render\.submit_port=0x[0-9a-f]+ \(4 bytes, ",
    "render.MI_STORE_DATA*": r"event render\.MI_STORE_DATA_IMM=0x10[04]00002 at 0x[0-9a-f]+ \(16 bytes\)$",
}
KERNELS = ("full", "bookworm")
CPU = "max,-hypervisor"
"""After a hang i915 copies what the engine used through the aperture: eight bytes a time, or one where it is told that
it is in a VM. That is a quarter of a million traps, for which its own limit of 20 seconds may be too short."""
SECONDS = 60  # for what takes milliseconds on an idle machine
ATTACHED = (
    "Virtual GPU for Intel GVT-g detected",
    "iGVT-g active, disabling use of stolen memory",
    "VGT balloon successfully",
    "Initialized i915",
)


@pytest.fixture(params=KERNELS)
def machine(request, umdev, linux_guest, program):
    """A guest with i915 loaded and a vGPU; the vGPU's UUID beside it."""
    device = umdev.start("intel-gvt", "i915-GVTg_V5_8")
    guest = start(linux_guest, program, device, request.param, memory=512, cpus=2)
    yield guest, device.uuid
    guest.close()


def interrupts(guest):
    """How many the driver has counted, on all processors."""
    line = guest.run("grep i915 /proc/interrupts")
    return sum(int(word) for word in line.split()[1:3])


def state(uuid):
    from umdev_cli.client import query

    return query(uuid, "engine_state")


def expected_pixels():
    """What `i915_drm blit` draws."""
    first = np.full((SIDE, SIDE), 0x11223344, "<u4")
    first[48:96, 32:160] = 0xFF8040C0
    second = np.full((SIDE, SIDE), 0x55667788, "<u4")
    second[10:138, 100:228] = first[32:160, 16:144]
    return np.concatenate([first, second])


def check_attached(guest, uuid):
    """The driver has bound, and the GPU is not wedged: the one thing that its own messages don't tell."""
    messages = guest.dmesg
    for text in ATTACHED:
        assert text in messages
    assert guest.run(WEDGED).strip() == "0"
    deadline = time.monotonic() + SECONDS
    while not (shown := state(uuid))["display_ready"]:  # a posted write, which the query may overtake
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert all(engine["submissions"] >= 3 and not engine["error"] for engine in shown["engines"].values()), shown
    assert shown["errors"] == 0


def start(linux_guest, program, device, kernel, **options):
    """A guest with i915 loaded, and the file system that says whether the GPU is wedged."""
    guest = linux_guest.start(
        kernel=kernel,
        modules=("i915",),
        files={"/bin/i915_drm": program("i915_drm")},
        qemu_args=device.arguments,
        timeout=800,
        cpu=CPU,
        **options,
    )
    guest.run(MOUNT)
    return guest


def test_work_comes_back_right(machine, umdev, facts):
    guest, uuid = machine
    started = time.monotonic()
    check_attached(guest, uuid)
    before = interrupts(guest)

    assert facts(guest.run("i915_drm blit /tmp/pixels")) == {"blit": "0", "wait": "0"}
    assert guest.read_file("/tmp/pixels") == expected_pixels().tobytes()
    assert facts(guest.run("i915_drm stores")) == STORES
    loop = facts(guest.run(f"i915_drm loop {SUBMISSIONS}"))
    assert (loop["submitted"], loop["failed"], loop["wrong"]) == (str(SUBMISSIONS), "0", "0")
    assert facts(guest.run("i915_drm aperture")) == {"aperture-wrong": "0"}
    assert interrupts(guest) - before >= SUBMISSIONS // 2

    for pattern, shown in TRACED.items():
        with umdev.follow(uuid, "--filter", pattern, "--count", "4") as following:
            while following.poll() is None:
                assert facts(guest.run("i915_drm stores")) == STORES
            assert [bool(re.match(rf" *[0-9.]+ {shown}", line)) for line in following.stdout] == [True] * 4

    time.sleep(max(0.0, started + QUIET_SECONDS - time.monotonic()))
    assert not re.search(r"(?i)gpu hang|wedged|resetting|WARNING", guest.dmesg)
    assert guest.run(WEDGED).strip() == "0"


def test_a_hang_a_rebind_and_a_reboot(machine, facts):
    guest, uuid = machine
    heartbeat(guest, 300)
    assert facts(guest.run("i915_drm hang", timeout=600)) == {"hang": "0", "released": "0"}
    assert "context reset due to GPU hang" in guest.dmesg
    assert guest.run(WEDGED).strip() == "0"
    assert facts(guest.run("i915_drm stores")) == STORES

    guest.run(f"echo {BDF} >/sys/bus/pci/drivers/i915/unbind")
    guest.run(f"echo {BDF} >/sys/bus/pci/drivers/i915/bind")
    check_attached(guest, uuid)
    assert facts(guest.run("i915_drm stores")) == STORES

    guest.reboot()
    guest.run(MOUNT)
    check_attached(guest, uuid)
    assert facts(guest.run("i915_drm stores")) == STORES


def heartbeat(guest, milliseconds):
    """How often i915 looks whether the render engine still does something, which is how it finds a hang."""
    guest.run(f"echo {milliseconds} >/sys/class/drm/card0/engine/rcs0/heartbeat_interval_ms")


def hog(guest):
    """Submit a batch that never ends. i915 gives it up after 20 seconds, or when its heart is looked after often."""
    heartbeat(guest, 60_000)
    guest.run("i915_drm hang >/tmp/hang 2>&1 &")


def release(guest, facts):
    """Let the guest's driver reset its engine, and see that it works again."""
    heartbeat(guest, 300)
    guest.run("while ! grep -q released /tmp/hang; do sleep 0.2; done", timeout=600)
    assert facts(guest.run("cat /tmp/hang")) == {"hang": "0", "released": "0"}
    assert facts(guest.run("i915_drm stores")) == STORES
    assert guest.run(WEDGED).strip() == "0"


def shares(devices):
    """What part of a second of the engines' time each vGPU gets, by the engines' own account."""

    def account(device):
        shown = state(device.uuid)
        return shown["busy_ns"], shown["gpu_busy_ns"]

    before = [account(device) for device in devices]
    while account(devices[-1])[1] < before[-1][1] + SHARED_NS:
        time.sleep(0.05)
    after = [account(device) for device in devices]
    return [(used - had) / (total - of) for (used, total), (had, of) in zip(after, before, strict=True)]


def test_two_guests_share_a_gpu(umdev, linux_guest, program, facts, record_property):
    """They probe one after the other, then contend; an endless batch of one is its own trouble alone."""
    devices = [umdev.start("intel-gvt", "i915-GVTg_V5_8") for _ in KERNELS]
    assert devices[0].pid == devices[1].pid  # one process serves all of a GPU
    guests = []
    for device, kernel in zip(devices, KERNELS, strict=True):
        guests.append(start(linux_guest, program, device, kernel, memory=384))
        check_attached(guests[-1], device.uuid)
    endless, other = guests
    alone = facts(other.run("i915_drm rate 3", timeout=600))
    before = [state(device.uuid) for device in devices]

    hog(endless)
    while state(devices[0].uuid)["busy_ns"] == before[0]["busy_ns"]:
        time.sleep(0.01)
    beside = facts(other.run("i915_drm rate 10", timeout=600))
    for name, measured in (("alone", alone), ("beside", beside)):
        assert (measured["failed"], measured["wrong"]) == ("0", "0")
        for fact in ("submitted", "microseconds", "p50", "p99", "most"):
            record_property(f"{name} {fact}", measured[fact])
    assert facts(other.run("i915_drm blit /tmp/pixels")) == {"blit": "0", "wait": "0"}
    assert other.read_file("/tmp/pixels") == expected_pixels().tobytes()

    release(endless, facts)
    assert facts(other.run("i915_drm stores")) == STORES
    assert other.run(WEDGED).strip() == "0"
    resets = [state(device.uuid)["engines"]["render"]["resets"] for device in devices]
    assert resets[0] > before[0]["engines"]["render"]["resets"]
    assert resets[1] == before[1]["engines"]["render"]["resets"]
    assert not re.search(r"(?i)gpu hang|resetting", other.dmesg)

    check_shares(umdev, linux_guest, program, facts, devices, guests)


def check_shares(umdev, linux_guest, program, facts, devices, guests):
    """A third guest, of twice the weight; each has a batch that never ends."""
    heavy = str(uuid.uuid4())
    umdev("define", "--uuid", heavy, "--parent", "intel-gvt", "--type", "i915-GVTg_V5_8")
    umdev("modify", "--uuid", heavy, "--addattr", "weight", "--value", "4")
    devices = [*devices, umdev.start_defined(heavy)]
    guests = [*guests, start(linux_guest, program, devices[-1], "full", memory=384)]
    for guest in guests:
        hog(guest)
    busy = [state(device.uuid)["busy_ns"] for device in devices]
    for device, had in zip(devices, busy, strict=True):
        while state(device.uuid)["busy_ns"] == had:
            time.sleep(0.01)
    assert shares(devices) == pytest.approx([0.25, 0.25, 0.5], abs=0.05)
    for guest in guests:
        release(guest, facts)


@pytest.mark.parametrize("shadow", ["trap", "track"])
def test_shadows_of_the_driver_s_tables(umdev, linux_guest, program, facts, shadow):
    """Every page table that i915 writes is protected in QEMU's memory; what comes of it is what walking gives."""
    device_uuid = str(uuid.uuid4())
    umdev("define", "--uuid", device_uuid, "--parent", "intel-gvt", "--type", "i915-GVTg_V5_8")
    umdev("modify", "--uuid", device_uuid, "--addattr", "shadow", "--value", shadow)
    device = umdev.start_defined(device_uuid)
    environment = umdev.show(device_uuid)["environment"]
    guest = start(linux_guest, program, device, "full", memory=512, environment=environment)
    check_attached(guest, device_uuid)
    assert facts(guest.run("i915_drm stores")) == STORES
    assert facts(guest.run("i915_drm blit /tmp/pixels")) == {"blit": "0", "wait": "0"}
    assert guest.read_file("/tmp/pixels") == expected_pixels().tobytes()
    loop = facts(guest.run("i915_drm loop 50"))
    assert (loop["failed"], loop["wrong"]) == ("0", "0")
    shadows = state(device_uuid)["shadows"]
    assert shadows["mode"] == shadow
    assert shadows["tables"] >= 4
    assert shadows["refused"] == 0
    guest.close()
