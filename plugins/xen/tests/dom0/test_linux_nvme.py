"""Linux's own NVMe driver in a PVH domain: queues by DMA, interrupts by MSI-X."""

import hashlib
import random
import re

import pytest
from umdev_nvme import parent as nvme
from umdev_testkit.xen_linux import PvhLinux
from umdev_xen import Domain

pytestmark = pytest.mark.xen
SECONDS = 400.0  # for what takes a minute on an idle machine
SIZE = 256 << 10
SCRIPT = f"""
i=0
while [ ! -b /dev/nvme0n1 ]; do sleep 0.1; i=$((i + 1)); [ $i -lt 1200 ] || {{ dmesg | tail -n 30; exit 3; }}; done
echo "driver $(basename $(readlink /sys/bus/pci/devices/0000:00:01.0/driver))"
echo "model $(cat /sys/class/nvme/nvme0/model)"
echo "blocks $(cat /sys/block/nvme0n1/size)"
dd if=/data of=/dev/nvme0n1 bs=64k seek=3 conv=fsync,notrunc 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches
echo "sum $(dd if=/dev/nvme0n1 bs=64k skip=3 count={SIZE >> 16} 2>/dev/null | sha256sum)"
grep nvme /proc/interrupts
dmesg | grep -i nvme
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("vcpus", [1, 2])
def test_the_stock_driver(vcpus):
    data = random.Random(vcpus).randbytes(SIZE)
    with (
        nvme.create("nvme-64m") as disk,
        PvhLinux(SCRIPT, modules=["nvme"], files={"/data": data}, vcpus=vcpus) as linux,
        Domain(linux.domid) as domain,
    ):
        domain.plug(disk)
        linux.unpause()
        run = linux.wait(SECONDS)
        assert run.status == 0, run.console
        said = dict(line.split(maxsplit=1) for line in run.console.splitlines() if " " in line)
        assert said["driver"] == "nvme"
        assert said["model"].strip() == "umdev NVMe"
        assert int(said["blocks"]) == (64 << 20) // 512
        assert said["sum"].split()[0] == hashlib.sha256(data).hexdigest()
        assert len(re.findall(r"PCI-MSI.*nvme0q\d+$", run.console, re.MULTILINE)) == vcpus + 1
        assert not re.search(r"nvme.*(timeout|error|fail|invalid|unable)", run.console, re.IGNORECASE), run.console
        assert domain.counters["messages"] > 0
        assert domain.counters["malformed"] == 0
        assert domain.restricted
