"""What several of the core's tests begin with."""

import os

import pytest
from umdev.memory import AddressSpace

MIB = 1 << 20


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
