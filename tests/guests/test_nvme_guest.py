"""A stock guest's own NVMe driver drives nvme: blocks, queues and interrupts of two processors, rebinding, reboots."""

import random
import re
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

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


def copy(skip, seek, count):
    """The command that writes MiB `skip` and following of /data to MiB `seek` of the disk."""
    return f"dd if=/data of=/dev/nvme0n1 bs=1M skip={skip} seek={seek} count={count} conv=fsync,notrunc 2>/dev/null"


def start(linux_guest, arguments, **options):
    return linux_guest.start(modules=["nvme"], cpus=PROCESSORS, qemu_args=arguments, timeout=240, **options)


def check_identity(guest):
    guest.run(APPEAR)
    assert guest.run(f"readlink /sys/bus/pci/devices/{BDF}/driver").strip().endswith("/nvme")
    assert int(guest.run("cat /sys/block/nvme0n1/size")) == BLOCKS
    assert guest.run("cat /sys/class/nvme/nvme0/model").strip() == "umdev NVMe"
    assert guest.run("cat /sys/class/nvme/nvme0/state").strip() == "live"


def check_messages(guest):
    """The driver complained of nothing."""
    assert not re.search(r"nvme.*(timeout|error|fail|invalid|unable)", guest.dmesg, re.IGNORECASE), guest.dmesg


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
    guest.run("".join(f"taskset {1 << n:x} {copy(2 * n, 1 + 2 * n, 2)} &\n" for n in range(PROCESSORS)) + "wait")
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

    # The driver resets the controller while it is at work, and gives it again what was under way.
    guest.run(f"{copy(0, 8, 4)} & echo 1 >/sys/class/nvme/nvme0/reset_controller; wait")
    assert read(guest, 8, 4) == sha256(data).hexdigest()

    guest.run(f"echo {BDF} >{DRIVER}/unbind; {DISAPPEAR}; echo {BDF} >{DRIVER}/bind")
    check_identity(guest)
    assert read(guest, 1, 4) == sha256(data).hexdigest()
    check_messages(guest)
    guest.reboot()
    check_identity(guest)
    assert sorted(interrupts(guest)) == [0, 1, 2]
    assert read(guest, 1, 4) == sha256(data).hexdigest()
    check_messages(guest)
    guest.poweroff()


@pytest.mark.parametrize("options", [{"append": "pci=nomsi"}, {"shared_memory": False}], ids=["pin", "messages"])
def test_what_the_driver_falls_back_to(umdev, linux_guest, tmp_path, options):
    """INTx, or memory that is reached by messages; and a disk in a file of the host."""
    file = tmp_path / "disk"
    uuid = str(uuid4())
    umdev("define", "--uuid", uuid, "--parent", "nvme", "--type", "nvme-64m")
    umdev("modify", "--uuid", uuid, "--addattr", "store", "--value", f"file:{file}")
    disk = umdev.start_defined(uuid)
    data = random.Random(513).randbytes(2 * MIB)
    guest = start(linux_guest, disk.arguments, files={"/data": data}, **options)
    check_identity(guest)
    pins = re.findall(r"IO-APIC.*? (nvme0q\d.*)$", guest.run("cat /proc/interrupts"), re.MULTILINE)
    assert pins == (["nvme0q0, nvme0q1"] if "append" in options else [])
    guest.run(copy(0, 3, 2))
    assert read(guest, 3, 2) == sha256(data).hexdigest()
    check_messages(guest)
    guest.poweroff()
    with file.open("rb") as blocks:
        blocks.seek(3 * MIB)
        assert blocks.read(len(data)) == data


def test_the_pin_with_memory_by_messages(umdev, linux_guest, tmp_path):
    """QEMU answers no DMA while it waits for an answer, as at each end of an interrupt; every such wait must end."""
    wire_log = tmp_path / "wire.log"
    disk = umdev.start("nvme", "nvme-64m", "--wire-log", str(wire_log))
    chance = random.Random(514)
    data = chance.randbytes(4 * MIB)
    piece = 32 << 10
    pieces = list(range(len(data) // piece))
    scripts = []
    for _ in range(PROCESSORS):
        chance.shuffle(pieces)
        scripts.append("".join(f"m {number}\n" for number in pieces))
    # Pieces in any order, each processor its own; those that both write have the same content.
    write = f"m() {{ dd if=/data of=/dev/nvme0n1 bs={piece} skip=$1 seek=$1 count=1 conv=fsync,notrunc 2>/dev/null; }}"
    guest = start(
        linux_guest,
        disk.arguments,
        files={"/data": data} | {f"/pieces{n}": script.encode() for n, script in enumerate(scripts)},
        append="pci=nomsi",
        shared_memory=False,
    )
    check_identity(guest)
    assert "IO-APIC" in guest.run("grep nvme /proc/interrupts")
    ways = [f"taskset {1 << n:x} sh -c '{write}; . /pieces{n}' & " for n in range(PROCESSORS)]
    guest.run("".join(ways) + "wait")
    assert read(guest, 0, 4) == sha256(data).hexdigest()
    random_reads = f"m() {{ dd if=/dev/nvme0n1 bs={piece} skip=$1 count=1 2>/dev/null >/tmp/$1; }}"
    guest.run(f"mkdir -p /tmp; {FORGET}; {random_reads}; . /pieces0")
    names = " ".join(f"/tmp/{number}" for number in sorted(pieces))
    assert guest.run(f"cat {names} | sha256sum").split()[0] == sha256(data).hexdigest()
    check_messages(guest)
    assert not re.search("I/O error", guest.dmesg), guest.dmesg
    guest.poweroff()
    umdev.stop_all()  # writes the log's rest
    messages = wire_log.read_text().splitlines()
    transfers = [message for message in messages if message.startswith(("DMA_READ", "DMA_WRITE"))]
    assert len(transfers) > 3 * len(data) // 4096  # every page of two writers and a reader, at least
    assert not [message for message in transfers if "error=" in message]
    assert [message for message in messages if message.startswith("DEVICE_SET_IRQS") and "UNMASK" in message]
