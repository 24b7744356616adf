"""What QEMU is told about a guest."""

import json
from pathlib import Path

from umdev_testkit.guest import GuestConfig


def arguments(**options):
    given = GuestConfig(**options).arguments(Path("/k/vmlinuz"), Path("/t/initrd"))
    return [(given[n], given[n + 1]) for n in range(len(given) - 1) if given[n].startswith("-")]


def test_devices_get_the_first_slots_in_order(tmp_path):
    devices = [
        json.loads(value) for name, value in arguments(devices=["/run/a,b.sock", tmp_path / "c"]) if name == "-device"
    ]
    assert [(device["driver"], device["addr"], device["socket"]["path"]) for device in devices] == [
        ("vfio-user-pci", "1", "/run/a,b.sock"),
        ("vfio-user-pci", "2", str(tmp_path / "c")),
    ]


def test_shared_memory_is_one_memfd_of_the_guests_size():
    given = arguments(memory=384)
    assert ("-object", "memory-backend-memfd,id=m,size=384M,share=on") in given
    assert ("-m", "384M") in given
    assert ("-machine", "q35,memory-backend=m") in given


def test_private_memory_and_machine_options():
    given = arguments(shared_memory=False, machine="kernel-irqchip=off", append="a b=c", qemu_args=["-device", "edu"])
    assert ("-machine", "q35,kernel-irqchip=off") in given
    assert not [value for name, value in given if name == "-object"]
    assert ("-append", "console=ttyS0 quiet panic=-1 a b=c") in given
    assert given[-1] == ("-device", "edu")
