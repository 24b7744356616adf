"""A stock guest's own serial driver drives mtty: two cards, three ports, all at the same time."""

import hashlib
import random
import re
import socket
import threading
import tty
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest

LENGTHS = {"ttyS1": 65536, "ttyS2": 8192, "ttyS3": 8192}
ECHOES = 32
TRANSFER_SECONDS = 200
# dd, because head reads ahead, more than it is told to write.
OPEN = """
mkfifo /tmp/go.$port
(
    exec 5<>/dev/$port
    stty raw -echo crtscts <&5
    touch /tmp/open.$port
    read go </tmp/go.$port
    dd bs=$length count=1 iflag=fullblock <&5 >/tmp/from.$port 2>/dev/null &
    cat /data/$port >&5
    wait
    dd bs=1 count=$echoes <&5 >&5 2>/dev/null
    touch /tmp/done.$port
    read close </tmp/go.$port
) &
while [ ! -e /tmp/open.$port ]; do sleep 0.1; done
"""


@contextmanager
def host_end(place):
    """A raw, unbuffered file of a port's end on the host: a terminal, or a unix socket."""
    if place.startswith("/dev/pts/"):
        with Path(place).open("r+b", buffering=0) as terminal:
            tty.setraw(terminal)
            yield terminal
    else:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(place)
            with peer.makefile("rwb", buffering=0) as file:
                yield file


def exchange(place, sent, expected_length, received, ready):
    """Send and receive at once, in two threads; then byte for byte, each once the one before has come back."""
    with host_end(place) as end:
        ready.wait()

        def send():
            view = memoryview(sent)
            while view:
                view = view[end.write(view) :]

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        while len(received) < expected_length:
            received += end.read(expected_length - len(received))
        sender.join()
        for number in range(ECHOES):
            end.write(bytes([number]))
            received += end.read(1)


def interrupts(guest):
    """The counts in /proc/interrupts of the lines that name a serial port."""
    table = guest.run("cat /proc/interrupts")
    return {
        int(number): int(count)
        for number, count in re.findall(r"^ *(\d+): +(\d+) .*\bttyS[1-3]\b", table, re.MULTILINE)
    }


def cards(guest):
    """What lspci would show: slot -> (start of each I/O BAR, IRQ), from sysfs."""
    found = {}
    for device in sorted(guest.run("grep -l PCI_ID=4348:3253 /sys/bus/pci/devices/*/uevent").split()):
        folder = device.removesuffix("/uevent")
        lines = guest.run(f"cat {folder}/resource").splitlines()[:6]
        starts = [int(start, 16) for start, _, flags in map(str.split, lines) if int(flags, 16) & 0x100]
        found[Path(folder).name] = (starts, int(guest.run(f"cat {folder}/irq")))
    return found


def test_ports(umdev, linux_guest, tmp_path):
    from umdev_cli.client import query

    dual = umdev.start("mtty", "mtty-2")
    single_uuid = str(uuid.uuid4())
    path = umdev.runtime.parent / "port"
    umdev("define", "--uuid", single_uuid, "--parent", "mtty", "--type", "mtty-1")
    umdev("modify", "--uuid", single_uuid, "--addattr", "port0", "--value", f"unix:{path}")
    single = umdev.start_defined(single_uuid)
    assert dual.pid == single.pid  # they share the parent's 24 ports
    places = [*query(dual.uuid, "terminals"), *query(single.uuid, "terminals")]
    assert [place.startswith("/dev/pts/") for place in places] == [True, True, False]

    chance = random.Random(65536)
    out = {name: chance.randbytes(length) for name, length in LENGTHS.items()}
    back = {name: chance.randbytes(length) for name, length in LENGTHS.items()}
    guest = linux_guest.start(
        files={f"/data/{name}": content for name, content in out.items()},
        qemu_args=dual.arguments + single.arguments,
        timeout=280,
    )

    # The in-tree driver names each port with the BAR and the interrupt that the bus has given it.
    seen = cards(guest)
    assert [len(starts) for starts, _ in seen.values()] == [2, 1]
    ports = [(slot, start, irq) for slot, (starts, irq) in seen.items() for start in starts]
    named = re.findall(r"(\S+): (ttyS\d) at I/O 0x([0-9a-f]+) \(irq = (\d+),.* is a (\w+)", guest.dmesg)
    assert [(slot, int(at, 16), int(irq), name, kind) for slot, name, at, irq, kind in named if slot in seen] == [
        (*port, name, "16550A") for port, name in zip(ports, LENGTHS, strict=True)
    ]

    for name, length in LENGTHS.items():
        guest.run(f"port={name} length={length} echoes={ECHOES}\n{OPEN}")
    before = interrupts(guest)
    assert sorted(before) == sorted({irq for _, irq in seen.values()})
    received = {name: bytearray() for name in LENGTHS}
    ready = threading.Event()
    hosts = [
        threading.Thread(
            target=exchange, args=(place, back[name], LENGTHS[name], received[name], ready), daemon=True, name=name
        )
        for name, place in zip(LENGTHS, places, strict=True)
    ]
    for host in hosts:
        host.start()
    ready.set()
    guest.run("".join(f"echo >/tmp/go.{name}\n" for name in LENGTHS))
    guest.run(
        "".join(f"while [ ! -e /tmp/done.{name} ]; do sleep 0.1; done\n" for name in LENGTHS), timeout=TRANSFER_SECONDS
    )
    after = interrupts(guest)
    for host in hosts:
        host.join(timeout=10)
        assert not host.is_alive(), f"{host.name}: {len(received[host.name])} of {LENGTHS[host.name]} bytes came"

    for name in LENGTHS:
        sums = guest.run(f"sha256sum /data/{name} /tmp/from.{name}").split()[::2]
        assert sums == [hashlib.sha256(content[name]).hexdigest() for content in (out, back)]
        assert bytes(received[name]) == out[name] + bytes(range(ECHOES))
        assert guest.read_file(f"/tmp/from.{name}") == back[name]
    # The card is as fast as its driver, so one interrupt may serve thousands of bytes; but every echo takes one.
    assert "backup timer" not in guest.dmesg  # the driver found an interrupt that it can rely on
    counted = {irq: after[irq] - before[irq] for irq in before}
    for (_, irq), card in zip(seen.values(), (dual, single), strict=True):
        assert ECHOES <= counted[irq] <= umdev.show(card.uuid)["interrupts"]["counters"]["sent"]
