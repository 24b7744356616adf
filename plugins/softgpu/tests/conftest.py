"""A device whose guest memory lies scattered, as guests' memory does; the simplest job."""

import mmap
import os
import threading

import pytest
from umdev.device import Block, Device, MemoryBar, PciId
from umdev_softgpu import MemoryPort, Step

PAGE = 4096


class Work:
    """A job, and whether it ran."""

    def __init__(self):
        self.ran = threading.Event()

    def step(self, budget):
        self.ran.set()
        return Step.DONE


class NoRegisters(Block["Function"]):
    pass


class Function(Device):
    """A function without a register: what is tested here is what lies behind one."""

    pci = PciId(vendor=0x1234, device=0x5678, class_code=0x038000)
    bar0 = MemoryBar(0, NoRegisters, size=4096)


class Guest:
    """Guest memory of one map, and a device that may reach it."""

    BASE = 0x1_0000_0000

    def __init__(self, size=1 << 20):
        self.size = size
        self.descriptor = os.memfd_create("guest")
        os.ftruncate(self.descriptor, size)
        self.memory = mmap.mmap(self.descriptor, size)
        self.device = Function()
        self.device.address_space.map(self.BASE, size, descriptor=self.descriptor)
        self.device.address_space.bus_master = True

    def close(self):
        self.device.close()
        self.memory.close()
        os.close(self.descriptor)


@pytest.fixture
def guest():
    guest = Guest()
    yield guest
    guest.close()


@pytest.fixture
def port(guest):
    port = MemoryPort(guest.device)
    yield port
    port.close()
