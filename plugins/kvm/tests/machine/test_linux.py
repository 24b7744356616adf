"""Debian's stock kernel boots on a machine, with no QEMU at work, and its own drivers find the devices."""

import hashlib
import os
import random
import re
import struct
import threading
import time
import tty
from pathlib import Path

import pytest
from umdev.errors import InvalidArgument
from umdev_edu import Edu
from umdev_kvm import OutcomeKind, boot_linux, layout, mptable
from umdev_mtty import Mtty1
from umdev_testkit import kernels
from umdev_testkit.payloads import assemble
from umdev_testkit.programs import static_program
from umdev_testkit.serial_initramfs import build_serial

from .conftest import small_kernel

pytestmark = pytest.mark.kvm

PROGRAMS = Path(__file__).parents[4] / "tests" / "guests" / "programs"
COUNT = 512  # each byte costs a Python handler, under emulation
SCRIPT = f"""
grep -c ^processor /proc/cpuinfo
exec 5<>/dev/ttyS1
stty raw -echo crtscts <&5
echo the port is open
timeout 600 head -c {COUNT} <&5 >/tmp/from &
cat /data >&5
wait
sha256sum </tmp/from
edu_sysfs 0000:00:02.0 registers dma
grep ttyS /proc/interrupts
"""


@pytest.fixture(scope="module")
def edu_sysfs():
    return static_program(PROGRAMS / "edu_sysfs.c", flags=["-Wconversion", "-Werror"])


REBOOT = """
echo "umdev: the script ended with status $?"
reboot -f
"""


def boot(machine, initrd, *, acpi, limit=700):
    if acpi:
        kernel, line, end = "cloud", "console=ttyS0 quiet", OutcomeKind.POWER_OFF
    else:  # the cloud's kernel knows nothing but ACPI
        kernel, line, end = "full", "console=ttyS0 quiet acpi=off", OutcomeKind.RESET
    boot_linux(machine, kernels.kernel(kernel).image.read_bytes(), initrd, line)
    outcome = machine.run(limit)
    console = machine.console_output.decode(errors="replace").replace("\r\n", "\n")
    assert outcome.kind is end, f"{outcome}\n{console[-4000:]}"
    assert "the script ended with status 0" in console
    return console


@pytest.mark.complete_kvm
@pytest.mark.timeout(900)
@pytest.mark.parametrize("acpi", [True, False], ids=["acpi", "no-acpi"])
def test_debian_boots_and_its_serial_driver_binds(make_machine, edu_sysfs, acpi):
    machine = make_machine(memory=256 << 20, vcpus=2)
    there, back = random.randbytes(COUNT), random.randbytes(COUNT)
    received = bytearray()
    with Mtty1() as card, Edu() as edu:
        machine.plug(card, place=False)
        machine.plug(edu, place=False)
        host = os.open(card.query("terminals")[0], os.O_RDWR | os.O_NOCTTY)
        tty.setraw(host)

        def talk():  # opening the port empties its FIFO
            while b"the port is open" not in machine.console_output:
                time.sleep(0.05)
            view = memoryview(there)
            while view:
                view = view[os.write(host, view) :]

        def listen():
            while len(received) < COUNT and (part := os.read(host, COUNT)):
                received.extend(part)

        threads = [threading.Thread(target=work, daemon=True) for work in (talk, listen)]
        for thread in threads:
            thread.start()
        try:
            script = SCRIPT if acpi else SCRIPT + REBOOT  # nothing else tells such a kernel how to end a machine
            initrd = build_serial(script, files={"/data": back, "/bin/edu_sysfs": edu_sysfs})
            console = boot(machine, initrd, acpi=acpi)
            for thread in threads:
                thread.join(10)
        finally:
            machine.close()
            os.close(host)
    assert bytes(received) == back
    assert hashlib.sha256(there).hexdigest() in console
    assert re.search(r"^2$", console, re.MULTILINE), "both processors are up"
    assert "ident=010000ed" in console
    assert "dma-bytes-wrong=0" in console
    assert re.search(r"IO-APIC +17-fasteoi +ttyS1", console)


def test_the_multiprocessor_tables():
    """Their sums are 0, and every entry has the length that its type has (MultiProcessor Specification 1.4, 4.3)."""
    image = mptable.tables(3)
    signature, address, length = struct.unpack_from("<4sIB", image)
    assert (signature, address, length) == (b"_MP_", mptable.BASE + 16, 1)
    assert sum(image[:16]) & 0xFF == 0
    table = image[16:]
    signature, size, count = *struct.unpack_from("<4sH", table), *struct.unpack_from("<H", table, 34)
    assert (signature, size, sum(table) & 0xFF) == (b"PCMP", len(table), 0)
    kinds, at = [], 44
    while at < size:
        kinds.append(table[at])
        at += 20 if table[at] == 0 else 8
    assert at == size
    assert len(kinds) == count
    assert kinds == sorted(kinds)
    assert [kinds.count(kind) for kind in range(5)] == [3, 2, 1, 15 + 31 * 4, 2]
    assert struct.pack("<BBHBBBB", 3, 0, 0, 0, 2 << 2 | 3, 0, layout.intx_gsi(2, 4)) in table


def test_what_is_no_kernel(machine):
    with pytest.raises(InvalidArgument, match="HdrS"):
        boot_linux(machine, b"\0" * 4096)
    with pytest.raises(InvalidArgument, match="too little"):
        boot_linux(machine, kernels.kernel("cloud").image.read_bytes())
    with pytest.raises(InvalidArgument, match="command line"):
        boot_linux(machine, kernels.kernel("cloud").image.read_bytes(), command_line="x" * 5000)


def test_where_a_kernel_unpacks_itself_there_is_no_initramfs(make_machine):
    """It moves up to the address that it prefers."""
    machine = make_machine(memory=16 << 20)
    image = small_kernel("exit 5", preferred=16 << 20)
    with pytest.raises(InvalidArgument, match="16 MiB of memory are too little for this kernel: take 80 or more"):
        boot_linux(machine, image, bytes(4096))
    with make_machine(memory=(16 << 20) + 0x1_1000) as enough:
        boot_linux(enough, image, bytes(4096))
        assert enough.run(60).value == 5


def test_processors_of_an_old_payload_wait_for_the_kernel(make_machine):
    machine = make_machine(memory=4 << 20, vcpus=2)
    machine.load(
        assemble(
            "lock inc dword ptr [0x9000]\n test edi, edi\n jnz other\n"
            "wait: cmp dword ptr [0x9000], 2\n jne wait\n exit 1\n"
            "other: cmp dword ptr [0x9004], 0\n je other\n exit 9"
        )
    )
    assert machine.run(60).value == 1
    boot_linux(machine, small_kernel("mov dword ptr [0x9004], 1\n mov ecx, 100000\nspin: loop spin\n exit 7"))
    assert machine.run(60).value == 7
    assert machine.run(0).kind is OutcomeKind.TIME_LIMIT, "no other end is left"
