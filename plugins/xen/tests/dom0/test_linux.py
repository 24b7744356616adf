"""A stock Linux in a PVH domain, with its own drivers for devices of ours."""

import os
import re
import threading
import tty
from pathlib import Path

import pytest
from umdev_mtty import parent as mtty
from umdev_testkit.programs import static_program
from umdev_testkit.xen_linux import PvhLinux
from umdev_xen import Domain, DomainType

pytestmark = pytest.mark.xen
SECONDS = 400.0  # for what takes a minute on an idle machine
OUT, BACK = bytes(range(33, 97)), bytes(range(96, 32, -1))
# The driver wants an interrupt's number before it binds (8250_pci.c), and Linux ignores numbers beyond 15 at boot.
SERIAL = """
device=/sys/bus/pci/devices/0000:00:01.0
printf '\\005' | dd of=$device/config bs=1 seek=60 conv=notrunc 2>/dev/null
echo 1 >$device/remove
echo 1 >/sys/bus/pci/rescan
port=$(ls -d /sys/bus/pci/devices/0000:00:01.0/*/*/tty/ttyS* /sys/bus/pci/devices/0000:00:01.0/tty/ttyS* 2>/dev/null)
port=${port##*/}
dmesg | grep 00:01.0
[ -n "$port" ] || exit 3
/serial_irq /dev/$port 0 || exit 5
exec 5<>/dev/$port
stty raw -echo <&5
dd bs=64 count=1 iflag=fullblock <&5 >/from 2>/dev/null &
echo ready for bytes
cat /data >&5
wait
cmp /from /expected || exit 4
"""


@pytest.mark.timeout(600)
def test_mtty_without_interrupts():
    """PVH has none for INTx: the driver polls, and bytes pass both ways."""
    program = static_program(Path(__file__).parents[1] / "programs/serial_irq.c")
    files = {"/data": OUT, "/expected": BACK, "/serial_irq": program}
    with (
        mtty.create("mtty-1") as card,
        PvhLinux(SERIAL, files=files) as linux,
        Domain(linux.domid) as domain,
    ):
        assert domain.type is DomainType.PVH
        domain.plug(card, polled=True)
        assert card.config["interrupt_line"] == 0xFF, "no connection (PCI Local Bus 3.0, 6.2.4)"
        received = bytearray()
        place = card.query("terminals")[0]
        terminal = os.open(place, os.O_RDWR | os.O_NOCTTY)  # else it would be this process's own
        with os.fdopen(terminal, "r+b", buffering=0) as end:
            tty.setraw(end)

            def exchange():
                end.write(BACK)
                while len(received) < len(OUT):
                    received.extend(end.read(len(OUT) - len(received)))

            linux.unpause()
            linux.wait_for("ready for bytes", SECONDS)  # what comes before is lost when a program closes the port
            host = threading.Thread(target=exchange, daemon=True)
            host.start()
            run = linux.wait(SECONDS)
            assert run.status == 0, run.console
            host.join(SECONDS)
        assert bytes(received) == OUT
        assert re.search(r"ttyS\d at I/O 0x[0-9a-f]+ \(irq = 5", run.console), run.console
        assert domain.counters["messages"] == 0
