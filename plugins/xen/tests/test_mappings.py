"""Guest memory on demand, where Xen's calls are a file's: what guests do to it, at any moment."""

import contextlib
import ctypes
import errno
import mmap
import os

import pytest
from umdev.bus import AddressSpace, Protection
from umdev.errors import InvalidArgument
from umdev_xen import memory as mappings
from umdev_xen.memory import BUCKET, ForeignMapper, MappingPins

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Guest:
    """The pages of a domain, in place of `foreign_map` and `foreign_unmap`."""

    def __init__(self):
        self.file = os.memfd_create("guest")
        os.ftruncate(self.file, 1 << 30)
        self.gone = lambda _frame: False
        self.meanwhile = []
        """What happens each time while pages are mapped, and before they are anybody's."""

    def map(self, _handles, frames):
        first, count = frames[0], frames[-1] - frames[0] + 1
        flags = mmap.PROT_READ | mmap.PROT_WRITE
        address = libc.mmap(None, count * 4096, flags, mmap.MAP_SHARED, self.file, first * 4096)
        errors = [-errno.ENOENT if self.gone(frame) else 0 for frame in frames]
        if self.meanwhile:
            self.meanwhile.pop()()
        return address, errors

    def unmap(self, _handles, address, pages):
        libc.munmap(address, pages * 4096)


class Attachment:
    """Its memory, and the device's lock: `waited` is what its holders did while this thread waited for it."""

    def __init__(self):
        self.memory = AddressSpace()
        self.held = False
        self.waited = []
        self.native = self

    @contextlib.contextmanager
    def locked(self):
        if self.waited:
            self.waited.pop()()
        yield


@pytest.fixture
def guest(monkeypatch):
    made = Guest()
    monkeypatch.setattr(mappings, "foreign_map", made.map)
    monkeypatch.setattr(mappings, "foreign_unmap", made.unmap)
    yield made
    os.close(made.file)


@pytest.fixture
def attachment(guest):  # which outlives it
    made = Attachment()
    yield made
    made.memory.close()


def fill(mapper, address):
    return mapper.map(address, 1, Protection.READ, 0)


def test_pages_given_back_while_they_are_mapped_are_not_kept(guest, attachment):
    mapper = ForeignMapper(attachment, None)
    guest.meanwhile = [mapper.flush] * 2
    assert fill(mapper, BUCKET), "what was mapped after the last of them is good"
    assert mapper.mapped == BUCKET
    assert attachment.memory.count == 1
    mapper.flush()
    assert (mapper.mapped, attachment.memory.count) == (0, 0)
    guest.meanwhile = [mapper.flush] * 100
    assert not fill(mapper, BUCKET), "a guest that gives back for ever gets no device's thread"
    assert (mapper.mapped, attachment.memory.count) == (0, 0)


def test_maps_are_counted_as_bytes_are(guest, attachment):
    """Every second page is another map."""
    mapper = ForeignMapper(attachment, None)
    guest.gone = lambda frame: frame % 2
    for number in range(12):
        assert fill(mapper, number * BUCKET)
        assert attachment.memory.count <= mappings.MAPS
    assert attachment.memory.count == mappings.MAPS
    assert attachment.memory.find(11 * BUCKET), "the oldest go"
    assert not attachment.memory.find(0)
    assert not fill(mapper, 4096)


def test_the_page_that_was_asked_for_stays_where_all_room_is_pinned(guest, attachment):
    mapper = ForeignMapper(attachment, None)
    pins = MappingPins(mapper)
    guest.gone = lambda frame: frame % 2
    for number in range(8):
        assert fill(mapper, number * BUCKET)
    pinned = attachment.memory.mappings
    assert len(pinned) == mappings.MAPS
    for mapping in pinned:
        pins.pin(mapping.host, 1)
    assert fill(mapper, 8 * BUCKET)
    assert attachment.memory.mappings[:-1] == pinned
    assert attachment.memory.mappings[-1].iova == 8 * BUCKET


def test_what_was_mapped_before_pages_went_is_not_kept_where_mapping_fails(guest, attachment):
    """Every second page is another map: the first is made while the guest gives memory back, the next can't be."""
    mapper = ForeignMapper(attachment, None)
    guest.gone = lambda frame: frame % 2

    def fail():
        raise MemoryError

    guest.meanwhile = [fail, mapper.flush, lambda: None]
    with pytest.raises(MemoryError):
        fill(mapper, 0)
    assert (mapper.mapped, attachment.memory.count) == (0, 0)


def test_who_has_the_lock_pins_what_was_about_to_go(guest, attachment):
    mapper = ForeignMapper(attachment, None, limit=2 * BUCKET)
    pins = MappingPins(mapper)
    for number in (0, 1):
        fill(mapper, number * BUCKET)
    oldest = attachment.memory.find(0).host
    attachment.waited = [lambda: pins.pin(oldest, 2)]
    fill(mapper, 2 * BUCKET)
    assert attachment.memory.find(0), "it is pinned"
    assert not attachment.memory.find(BUCKET), "the next goes"
    pins.unpin(oldest, 2)
    fill(mapper, 3 * BUCKET)
    assert not attachment.memory.find(0)
    with pytest.raises(InvalidArgument, match="lie in no map"):
        pins.pin(0x1000, 1)
    pins.unpin(0x1000, 1)
