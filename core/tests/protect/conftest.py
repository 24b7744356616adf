"""A guest of this process, whose pages can be protected."""

import ctypes
import mmap
import os

import pytest
from umdev.addresses import PAGE_SIZE, Iova
from umdev.memory import AddressSpace, GuestMemory, UserfaultProtector
from umdev.memory.userfault import unavailable
from umdev.services import ProtectMode

MISSING = unavailable()
"""Why this machine can't protect pages, and what would let it; the reason of the skips."""
needs_userfault = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
BASE = 0x1000_0000  # where the bus has put the guest's memory
PAGES = 64


def page(number: int) -> Iova:
    return Iova(BASE + number * PAGE_SIZE)


@pytest.fixture
def guest():
    with GuestMemory(PAGES * PAGE_SIZE, reserve=0) as guest:
        yield guest


@pytest.fixture
def memory(guest):
    memory = AddressSpace()
    memory.map(BASE, guest.size, descriptor=guest.descriptor)
    yield memory
    memory.close()


def discard(guest, number):
    """What a balloon does to a page."""
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(guest.address + number * PAGE_SIZE)
    assert libc.madvise(address, ctypes.c_size_t(PAGE_SIZE), mmap.MADV_REMOVE) == 0, os.strerror(ctypes.get_errno())


def trapping(guest, memory):
    return UserfaultProtector(guest.protector(), memory, ProtectMode.TRAP)


def tracking(guest, memory):
    return UserfaultProtector(guest.protector(), memory, ProtectMode.TRACK)
