"""What several of the core's tests begin with."""

import os
from typing import Any

import pytest
from umdev.device.bars import MemoryBar
from umdev.device.blocks import Block
from umdev.device.dispatch import NativeDevice
from umdev.device.region import Region
from umdev.memory import AddressSpace

MIB = 1 << 20


def make(block: type[Block[Any]], **options: Any) -> tuple[NativeDevice, Any]:
    """A device of 64 KiB of registers whose handlers' exceptions reach the test, and its block."""
    bar: Any = MemoryBar(0, block, size=0x10000, **options)
    bar.name = "bar0"
    native = NativeDevice("test device")
    native.raise_faults = True
    return native, Region(native, 0, bar, None).block


@pytest.fixture
def memfd():
    """A client's memory file of 4 MiB."""
    descriptor = os.memfd_create("guest")
    os.ftruncate(descriptor, 4 * MIB)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def space():
    """An empty address space."""
    with_maps = AddressSpace()
    yield with_maps
    with_maps.close()
