"""Debian's stock nouveau, with no parameter and no firmware, drives a vGPU."""

import json

import pytest

pytestmark = pytest.mark.guest

KERNELS = ("full", "bookworm")


@pytest.fixture(params=KERNELS)
def machine(request, umdev, linux_guest):
    device = umdev.start("nvidia", "nvidia-39")
    guest = linux_guest.start(
        kernel=request.param, qemu_args=device.arguments, modules=("nouveau",), memory=512, cpus=2, timeout=285
    )
    yield guest, device.uuid
    guest.close()


def test_bind(machine, umdev):
    guest, uuid = machine
    print(guest.dmesg[-6000:])
    from umdev_cli.client import query

    print(query(uuid, "engine_state"))
    print(json.dumps(umdev.show(uuid)["burn_down"], indent=0))
    print(guest.run("ls -la /dev/dri; cat /proc/interrupts | grep nouveau"))
