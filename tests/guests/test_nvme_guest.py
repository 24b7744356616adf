"""A stock guest's own NVMe driver drives nvme: blocks, queues and interrupts of two processors, rebinding, reboots."""

import random
import re
from hashlib import sha256
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest

BDF = "0000:00:01.0"
DRIVER = "/sys/bus/pci/drivers/nvme"
MIB = 1 << 20
BLOCKS = 64 * MIB // 512
PROCESSORS = 2
# The driver probes in the background, and devices appear after it is bound.
APPEAR = "i=0; while [ ! -b /dev/nvme0n1 ]; do sleep 0.1; i=$((i + 1)); [ $i -lt 600 ] || exit 1; done"
DISAPPEAR = "i=0; while [ -e /dev/nvme0n1 ]; do sleep 0.1; i=$((i + 1)); [ $i -lt 600 ] || exit 1; done"
FORGET = "echo 3 >/proc/sys/vm/drop_caches"  # what is read afterwards comes from the device


def interrupts(guest):
    """Each queue's interrupts, summed over the processors."""
    table = guest.run("cat /proc/interrupts")
    found = re.findall(rf"^ *\d+:((?: +\d+){{{PROCESSORS}}}) .*\bnvme0q(\d+)$", table, re.MULTILINE)
    return {int(queue): sum(map(int, counts.split())) for counts, queue in found}


def read(guest, offset, length):
    """The digest of bytes of the disk, in MiB."""
    return guest.run(
        f"{FORGET}; dd if=/dev/nvme0n1 bs=1M skip={offset} count={length} 2>/dev/null | sha256sum"
    ).split()[0]


def start(linux_guest, arguments, **options):
    return linux_guest.start(modules=["nvme"], cpus=PROCESSORS, qemu_args=arguments, timeout=240, **options)


def check_identity(guest):
    guest.run(APPEAR)
    assert guest.run(f"readlink /sys/bus/pci/devices/{BDF}/driver").strip().endswith("/nvme")
    assert int(guest.run("cat /sys/block/nvme0n1/size")) == BLOCKS
    assert guest.run("cat /sys/class/nvme/nvme0/model").strip() == "umdev NVMe"
    assert guest.run("cat /sys/class/nvme/nvme0/state").strip() == "live"


def test_the_stock_driver(umdev, linux_guest):
    from umdev_cli.client import query

    disk = umdev.start("nvme", "nvme-64m")
    blocks = Path(query(disk.uuid, "blocks"))
    data = random.Random(512).randbytes(4 * MIB)
    guest = start(linux_guest, disk.arguments, files={"/data": data})
    check_identity(guest)
    assert guest.run("cat /sys/block/nvme0n1/uuid").strip() == disk.uuid

    # Every processor has a queue and an interrupt of its own; each writes a half, so that both are used.
    before = interrupts(guest)
    assert sorted(before) == [0, 1, 2]
    for processor in range(PROCESSORS):
        guest.run(
            f"taskset {1 << processor:x} dd if=/data of=/dev/nvme0n1 bs=512k skip={4 * processor} "
            f"seek={2 + 4 * processor} count=4 conv=fsync"
        )
    assert read(guest, 1, 4) == sha256(data).hexdigest()
    after = interrupts(guest)
    assert all(after[queue] > before[queue] for queue in (1, 2)), (before, after)
    with blocks.open("rb") as file:
        assert file.read(MIB) == bytes(MIB)
        assert file.read(len(data)) == data
    # What the host puts there is what the guest reads.
    with blocks.open("r+b") as file:
        file.seek(32 * MIB)
        file.write(data[::-1])
    assert read(guest, 32, 4) == sha256(data[::-1]).hexdigest()

    guest.run(f"echo {BDF} >{DRIVER}/unbind; {DISAPPEAR}; echo {BDF} >{DRIVER}/bind")
    check_identity(guest)
    assert read(guest, 1, 4) == sha256(data).hexdigest()
    guest.reboot()
    check_identity(guest)
    assert sorted(interrupts(guest)) == [0, 1, 2]
    assert read(guest, 1, 4) == sha256(data).hexdigest()
    assert not re.search(r"nvme.*(timeout|error|fail|warn)", guest.dmesg, re.IGNORECASE), guest.dmesg
    guest.poweroff()
