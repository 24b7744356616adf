"""Two guests with Debian's stock nouveau on two vGPUs of one GPU: memory is each one's own, time as the policy says."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

KERNELS = ("full", "bookworm")
TYPE, FIT = "nvidia-41", 4
POINTS = 0.05
WINDOW_NS = 2_000_000_000
"""Of the engine's time: some 500 slices of each hog."""
LONGEST_WINDOW_NS = 10 * WINDOW_NS
KEPT_MIB = 48
FRAMES, FRAMES_A_SECOND = 60, 60
PROCESSOR = "max,-fsrs,-erms,-fsrm"
COPIED = {"copies": "5", "failed": "0", "waited": "0", "wrong": "0"}


def state(device):
    from umdev_cli.client import query

    return query(device.uuid, "engine_state")


def start_vgpu(umdev, scheduler):
    device_uuid = str(uuid.uuid4())
    umdev("define", "--uuid", device_uuid, "--parent", "nvidia", "--type", TYPE)
    umdev("modify", "--uuid", device_uuid, "--addattr", "scheduler", "--value", scheduler)
    return umdev.start_defined(device_uuid)


@pytest.fixture
def machines(umdev, linux_guest, program):
    """`machines(scheduler)`: two guests, each with its vGPU beside it, booted at the same time."""
    files = {"/bin/nouveau_drm": program("nouveau_drm")}
    guests = []

    def boot(kernel, device):
        guests.append(
            linux_guest.start(
                kernel=kernel,
                modules=("nouveau",),
                files=files,
                qemu_args=device.arguments,
                memory=384,
                cpu=PROCESSOR,
                timeout=500,
            )
        )
        return guests[-1], device

    def machines(scheduler):
        devices = [start_vgpu(umdev, scheduler) for _ in KERNELS]
        assert devices[0].pid == devices[1].pid  # one process serves all of a GPU
        with ThreadPoolExecutor() as pool:
            return list(pool.map(boot, KERNELS, devices))

    yield machines
    for guest in guests:
        guest.close()


def begin(guest, command, until):
    """Run a check of the program in the background, up to a line of its output; what it has printed."""
    log = f"/tmp/{command.split()[0]}"
    guest.run(f"nouveau_drm {command} >{log} 2>&1 &")
    return guest.run(f"while ! grep -q '^{until}' {log}; do sleep 0.1; done; cat {log}")


def end(guest, check, flag, until):
    """Ask it to come to its end; all that it has printed."""
    log = f"/tmp/{check}"
    return guest.run(f"touch {flag}; while ! grep -q '^{until}' {log}; do sleep 0.1; done; cat {log}")


def measure(devices, expected):
    """Each vGPU's part of the engine's time, over `WINDOW_NS` of it; and how much of the clock's that was.

    On a busy machine a single step may take half a second, which its client pays for afterwards: then look longer.
    """

    def accounts():
        return [(shown["busy_ns"], sum(shown["engine"].values())) for shown in map(state, devices)]

    began, before, passed, parts = time.monotonic(), accounts(), [0], []
    while min(passed) < WINDOW_NS or (parts != expected and min(passed) < LONGEST_WINDOW_NS):
        time.sleep(0.05)
        after = accounts()
        used = [now[0] - then[0] for now, then in zip(after, before, strict=True)]
        passed = [now[1] - then[1] for now, then in zip(after, before, strict=True)]
        parts = [part / max(1, whole) for part, whole in zip(used, passed, strict=True)]
    shown = " and ".join(f"{part:.3f}" for part in parts)
    print(f"{shown} of {min(passed) / 1e9:.1f} s, {min(passed) / 1e9 / (time.monotonic() - began):.2f} of the clock's")
    return parts


def check_shares(machines, facts, alone, both):
    """`alone`: what a hog gets beside a guest that does nothing; `both`: what each of two hogs gets."""
    guests, devices = zip(*machines, strict=True)
    for guest, parts in zip(guests, ([alone, 0], [both, both]), strict=True):
        begin(guest, "hog", "begun")
        expected = pytest.approx(parts, abs=POINTS)
        assert measure(devices, expected) == expected

    for guest in guests:
        ended = facts(end(guest, "hog", "/tmp/stop", "wrong"))
        assert (ended["failed"], ended["waited"], ended["wrong"]) == ("0", "0", "0")
        assert facts(guest.run("nouveau_drm copies 5")) == COPIED
    for device in devices:
        assert state(device)["refused"] == {}


def test_best_effort(machines, facts):
    """Each fills video memory at the same addresses, and finds its own there after all that the other has done."""
    machines = machines("best-effort")
    for seed, (guest, _) in enumerate(machines, 1):
        kept = facts(begin(guest, f"keep {seed} {KEPT_MIB}", "filled"))
        assert (kept["failed"], kept["strange"], kept["filled"]) == ("0", "0", "1")

    started = time.monotonic()
    assert facts(machines[0][0].run(f"nouveau_drm frames {FRAMES}")) == {"frames": str(FRAMES), "failed": "0"}
    took = time.monotonic() - started
    print(f"{FRAMES} frames took {took:.2f} s")
    assert took >= (FRAMES - 2) / FRAMES_A_SECOND  # the driver's own last frame is long ago: two may follow at once

    check_shares(machines, facts, 1, 1 / 2)
    for guest, _ in machines:
        kept = facts(end(guest, "keep", "/tmp/look", "looked"))
        assert (kept["failed"], kept["other"], kept["strange"]) == ("0", "0", "0")


def test_equal_share(machines, facts):
    check_shares(machines("equal-share"), facts, 1 / 2, 1 / 2)


def test_fixed_share(machines, facts):
    check_shares(machines("fixed-share"), facts, 1 / FIT, 1 / FIT)
