"""Debian's stock i915, with no parameter, drives a vGPU: it is not wedged, and what it submits comes back right."""

import re
import time

import numpy as np
import pytest

pytestmark = pytest.mark.guest

BDF = "0000:00:01.0"
SIDE = 256
SUBMISSIONS = 1000
QUIET_SECONDS = 60
WEDGED = "cat /sys/kernel/debug/dri/0/i915_wedged"
MOUNT = "mount -t debugfs debugfs /sys/kernel/debug"
STORES = {
    "render": "0 c0ffee00 ffffffff",
    "blitter": "0 c0ffee01 fffffffe",
    "video": "0 c0ffee02 fffffffd",
    "enhance": "0 c0ffee03 fffffffc",
}
KERNELS = ("full", "bookworm")
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
    guest = linux_guest.start(
        kernel=request.param,
        modules=("i915",),
        files={"/bin/i915_drm": program("i915_drm")},
        qemu_args=device.arguments,
        memory=512,
        cpus=2,
        timeout=285,
    )
    guest.run(MOUNT)
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
    shown = state(uuid)
    assert shown["display_ready"]
    assert all(engine["submissions"] >= 3 and not engine["error"] for engine in shown["engines"].values()), shown
    assert shown["errors"] == 0


def test_work_comes_back_right(machine, facts):
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

    time.sleep(max(0.0, started + QUIET_SECONDS - time.monotonic()))
    assert not re.search(r"(?i)gpu hang|wedged|resetting|WARNING", guest.dmesg)
    assert guest.run(WEDGED).strip() == "0"


def test_a_hang_a_rebind_and_a_reboot(machine, facts):
    guest, uuid = machine
    guest.run("echo 300 >/sys/class/drm/card0/engine/rcs0/heartbeat_interval_ms")
    assert facts(guest.run("i915_drm hang", timeout=200)) == {"hang": "0", "released": "0"}
    assert "GPU HANG" in guest.dmesg
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
