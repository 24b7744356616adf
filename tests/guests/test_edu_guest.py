"""A stock guest drives edu: with a program on sysfs, and through the guest's own VFIO.

The same programs run against QEMU's edu device first of all: what they ask for is what the device does, not what our
model happens to do. Where QEMU's device differs, the test says so.
"""

import pytest

pytestmark = pytest.mark.guest

BDF = "0000:00:01.0"
SYSFS = f"edu_sysfs {BDF} registers posted dma level bus-master reset"
RESET = {
    "flr": "done",
    "flr-during-dma": "1",
    "flr-command": "0",
    "flr-liveness": "00000000",
    "flr-page-changed": "0",
    "flr-interrupt": "0",
    "flr-factorial": "120",
}
BIND = f"""
set -e
device=/sys/bus/pci/devices/{BDF}
echo vfio-pci >$device/driver_override
echo {BDF} >/sys/bus/pci/drivers_probe
edu_vfio $(basename $(readlink $device/iommu_group)) {BDF}
"""
IOMMU = ["-device", "intel-iommu,intremap=on,caching-mode=on"]  # before what it translates for


@pytest.fixture(params=["umdev", "qemu"])
def edu(request):
    """QEMU's arguments for the device, and whether it can reset its function."""
    if request.param == "qemu":
        return ["-device", "edu,addr=1"], False
    return request.getfixturevalue("umdev").start("edu", "edu").arguments, True


def expected_on_sysfs(seen, ours):
    """What edu_sysfs prints."""
    return {
        "ident": "010000ed",
        "liveness": "1",
        "factorial": str(479001600),
        "posted-wrong": "0",
        "page-differs-before": "1",
        "dma-bytes-wrong": "0",
        "level": "10",
        "unmastered-page-changed": "0",
        # QEMU's device takes zeros for what it could not read.
        "unmastered-device-changed": "0" if ours else seen["unmastered-device-changed"],
    } | (RESET if ours else {"flr": "none"})


def test_sysfs(edu, linux_guest, program, facts):
    arguments, ours = edu
    files = {"/bin/edu_sysfs": program("edu_sysfs")}
    seen = facts(linux_guest(SYSFS, files=files, qemu_args=arguments, timeout=120).output)
    assert seen == expected_on_sysfs(seen, ours)


def test_memory_by_message(umdev, linux_guest, program, facts, tmp_path):
    """QEMU's memory is its own: the device has to send messages for it."""
    wire_log = tmp_path / "wire.log"
    device = umdev.start("edu", "edu", "--wire-log", str(wire_log))
    files = {"/bin/edu_sysfs": program("edu_sysfs")}
    seen = facts(linux_guest(SYSFS, files=files, qemu_args=device.arguments, shared_memory=False, timeout=120).output)
    assert seen == expected_on_sysfs(seen, ours=True)
    umdev.verify()
    umdev.stop_all()  # writes the log's rest
    messages = wire_log.read_text().splitlines()
    assert {"DMA_READ", "DMA_WRITE"} < {message.split()[0] for message in messages}
    posted = [message for message in messages if message.endswith("no-reply")]
    assert len(posted) > 20_000


def test_vfio(edu, linux_guest, program, facts):
    arguments, ours = edu
    run = linux_guest(
        BIND,
        files={"/bin/edu_vfio": program("edu_vfio")},
        modules=["vfio_pci", "vfio_iommu_type1"],
        qemu_args=IOMMU + arguments,
        append="intel_iommu=on",
        timeout=120,
    )
    works = {"msi-raised": "1", "msi-factorial": "1 3628800", "dma-bytes-wrong": "0", "dma-interrupts": "2"}
    expected = works | {
        "bar0-size": str(1 << 20),
        "unmastered-page-changed": "0",
        "unmastered-interrupts": "0",
        "unmapped": "4096",
        "unmapped-page-changed": "0",
    }
    for reset in ("reset", "flr"):
        if ours:
            expected |= {reset: "during-dma", f"{reset}-interrupts": "0", f"{reset}-page-changed": "0"}
            expected |= {f"{reset}-{name}": value for name, value in works.items()}
        else:
            expected[reset] = "none"
    assert facts(run.output) == expected
