"""Debian's stock nouveau, with no parameter and no firmware, drives a vGPU: what it submits comes back right."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest

TYPES = {"full": ("nvidia-39", 1024), "bookworm": ("nvidia-36", 512)}
"""By kernel: the type, and its frame buffer in MiB."""
PROCESSOR = "max,-fsrs,-erms,-fsrm"
"""With these features the kernel clears memory byte by byte, and without KVM each byte of a BAR is a message."""
COPIES = 20
LITTLE_MIB = 256
"""24 were seen: page tables and user pages of the driver, and the process itself."""
TROUBLE = r"using CPU for buffer copies|failed to create|timeout|BUG:|WARNING:|Oops"
COPIED = {"copies": str(COPIES), "failed": "0", "waited": "0", "wrong": "0"}
MOVED = {"failed": "0", "first": "4", "there": "2", "back": "4", "wrong-there": "0", "wrong-back": "0"}
"""Domains: 2 is video memory, 4 the system's."""
FAULTED = {"taken": "1", "waited": "0", "killed": "1", "untouched": "1"}


@pytest.fixture(params=TYPES)
def kernel(request):
    return request.param


@pytest.fixture
def machine(kernel, umdev, linux_guest, program):
    """A guest with nouveau loaded and a vGPU; the vGPU's UUID beside it."""
    device = umdev.start("nvidia", TYPES[kernel][0])
    guest = linux_guest.start(
        kernel=kernel,
        modules=("nouveau",),
        files={"/bin/nouveau_drm": program("nouveau_drm")},
        qemu_args=device.arguments,
        memory=512,
        cpus=2,
        cpu=PROCESSOR,
        timeout=285,
    )
    yield guest, device.uuid
    guest.close()


def interrupt_line(guest):
    """How many the driver has counted, on all processors; and its kind."""
    line = guest.run("grep -E 'nvkm|nouveau' /proc/interrupts").split()
    return sum(int(word) for word in line[1:3]), line[3]


def state(uuid):
    from umdev_cli.client import query

    return query(uuid, "engine_state")


def check_attached(guest, kernel, messages, megabytes=None):
    """The driver has bound and uses the copy engine, which the presence of its device node does not tell."""
    drm = "drm" if kernel == "full" else "DRM"
    for text in (
        "NVIDIA GM107 (117000a2)",
        f"{drm}: VRAM: {megabytes or TYPES[kernel][1]} MiB",
        f"{drm}: MM: using COPY for buffer copies",
        "Initialized nouveau",
    ):
        assert text in messages, messages[-5000:]
    assert not re.search(TROUBLE, messages), messages[-5000:]
    guest.run("ls /dev/dri/card0 /dev/dri/renderD128")


def test_work_comes_back_right(machine, kernel, facts):
    guest, uuid = machine
    check_attached(guest, kernel, guest.dmesg)
    before, kind = interrupt_line(guest)
    assert facts(guest.run(f"nouveau_drm copies {COPIES}")) == COPIED
    assert facts(guest.run("nouveau_drm moves")) == MOVED
    if kernel == "full":
        assert facts(guest.run("nouveau_drm exec")) == {"waited": "0", "wrong": "0"}
    assert "MSI" in kind
    assert interrupt_line(guest)[0] > before
    assert not re.search(TROUBLE, guest.dmesg)
    shown = state(uuid)
    assert shown["busy_ns"] > 0
    assert shown["refused"] == {}


def test_a_fault_a_new_driver_and_a_reboot(machine, kernel, facts, record_property):
    guest, uuid = machine
    assert facts(guest.run("nouveau_drm fault")) == FAULTED
    messages = guest.dmesg
    assert re.search(r"fault 00 \[READ\] at 000000007f000000 engine 1b \[\S*\] client 19 \[HUB/CE2\]", messages), (
        messages
    )
    assert re.search(r"channel \d+ killed", messages), messages
    assert facts(guest.run(f"nouveau_drm copies {COPIES}")) == COPIED
    assert state(uuid)["refused"] == {}

    took = guest.run("rmmod nouveau && dmesg -c >/dev/null && time insmod /umdev/modules/nouveau.ko")
    minutes, seconds = re.search(r"real\s+(\d+)m ?([\d.]+)s", took).groups()
    record_property("insmod_seconds", 60 * int(minutes) + float(seconds))
    check_attached(guest, kernel, guest.run("dmesg"))
    assert facts(guest.run(f"nouveau_drm copies {COPIES}")) == COPIED

    guest.reboot()
    check_attached(guest, kernel, guest.dmesg)
    assert facts(guest.run(f"nouveau_drm copies {COPIES}")) == COPIED
    assert facts(guest.run("nouveau_drm moves")) == MOVED


def resident_mib(pid):
    """What a process has of memory that is no file's."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) >> 10


def test_eight_gigabytes_and_an_interrupt_line(umdev, linux_guest, program, facts):
    """The largest type costs the host what the guest writes of it; the driver works without messages too."""
    device = umdev.start("nvidia", "nvidia-45")
    guest = linux_guest.start(
        kernel="full",
        modules=("nouveau",),
        files={"/bin/nouveau_drm": program("nouveau_drm")},
        qemu_args=device.arguments,
        memory=512,
        cpus=2,
        timeout=285,
    )
    check_attached(guest, "full", guest.dmesg, 8192)
    assert facts(guest.run("nouveau_drm ends 6144")) == {"failed": "0", "wrong": "0"}
    resident = resident_mib(device.pid)
    print(f"{resident} MiB of 8192 are resident")
    assert resident < LITTLE_MIB

    guest.run("rmmod nouveau && dmesg -c >/dev/null && insmod /umdev/modules/nouveau.ko config=NvMSI=0")
    check_attached(guest, "full", guest.run("dmesg"), 8192)
    before, kind = interrupt_line(guest)
    messages = state(device.uuid)["interrupts"]["messages"]
    assert "MSI" not in kind
    assert facts(guest.run(f"nouveau_drm copies {COPIES}")) == COPIED
    assert facts(guest.run("nouveau_drm moves")) == MOVED
    assert interrupt_line(guest)[0] > before
    assert state(device.uuid)["interrupts"]["messages"] == messages
    guest.close()
