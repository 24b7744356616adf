"""A stock guest's own DRM driver drives the display; what the guest draws is in the screenshot."""

import re
import time

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.guest

BDF = "0000:00:01.0"
FRAMEBUFFER, REGISTERS = 0, 2  # regions
SIZE = 16 << 20
VGA_PORTS = frozenset({(REGISTERS, 0x400), (REGISTERS, 0x402), (REGISTERS, 0x41A)})
"""3C0, 3C2 and 3DA, where a standard VGA has them: the driver unblanks it that way, and this display is none."""
SEEDS = (0x1234_5678, 0x0BAD_CAFE)
DRAWN_SECONDS = 10


def picture(width, height, seed):
    """What programs/fb_pattern.c draws: 0xRRGGBB by row and column."""
    y, x = np.mgrid[0:height, 0:width].astype(np.uint32)
    mixed = (x + (y << 16)) * np.uint32(2654435761) + np.uint32(seed)
    return (mixed ^ (mixed >> 15)) & 0xFFFFFF


def screenshot(umdev, uuid, path):
    """The picture that the command writes, in the same form."""
    umdev("screenshot", uuid, str(path))
    with Image.open(path) as image:
        assert image.mode == "RGB"
        red, green, blue = np.moveaxis(np.asarray(image).astype(np.uint32), 2, 0)
    return red << 16 | green << 8 | blue


def test_screenshot(umdev, linux_guest, program, facts, tmp_path):
    wire_log = tmp_path / "wire.log"
    display = umdev.start("bochs-display", "bochs-display", "--wire-log", str(wire_log))
    guest = linux_guest.start(
        kernel="full",
        memory=512,
        modules=["bochs"],
        files={"/bin/fb_pattern": program("fb_pattern")},
        qemu_args=display.arguments,
        timeout=240,
    )
    folder = f"/sys/bus/pci/devices/{BDF}"

    for seed in SEEDS:  # once per boot, and the second picture is no leftover of the first
        if seed != SEEDS[0]:
            guest.reboot()
        assert guest.run(f"readlink {folder}/driver").strip().endswith("/bochs-drm")
        mode = facts(guest.run(f"fb_pattern /dev/fb0 {seed:#x}"))
        expected = picture(int(mode["width"]), int(mode["height"]), seed)
        deadline = time.monotonic() + DRAWN_SECONDS
        # The kernel draws to a copy and takes it to the display some milliseconds later.
        while not np.array_equal(shown := screenshot(umdev, display.uuid, tmp_path / "shown.png"), expected):
            assert shown.shape == expected.shape
            assert time.monotonic() < deadline, f"{np.count_nonzero(shown != expected)} pixels differ"
    assert mode == {"width": "1024", "height": "768", "depth": "32", "stride": "4096", "driver": "bochs-drmdrmfb"}

    # The frame buffer reaches the guest as memory of QEMU's process, at the address that the guest has given it.
    start = int(guest.run(f"head -n 1 {folder}/resource").split()[0], 16)
    views = re.findall(r" ([0-9a-f]+)-([0-9a-f]+) \(prio -?\d+, (\w+)\): (.*)", guest.qmp.human("info mtree -f"))
    bar = (start, start + SIZE - 1)
    socket = umdev.show(display.uuid)["socket"]
    assert {(kind, name) for low, high, kind, name in views if (int(low, 16), int(high, 16)) == bar} == {
        ("ramd", f"vfio-user:{socket} BAR 0 mmaps[0]")
    }
    guest.poweroff()
    umdev.verify(lacks=VGA_PORTS)
    umdev.stop_all()  # writes the log's rest

    regions = [int(region) for region in re.findall(r"REGION_\w+ .*?region=(\d+) ", wire_log.read_text())]
    assert regions.count(FRAMEBUFFER) == 0
    assert regions.count(REGISTERS) > 100
