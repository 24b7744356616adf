"""Maps of a bus that has its own means: memory it has mapped itself, and maps that come and go on demand."""

import ctypes
import gc
import mmap
from pathlib import Path

import pytest
from umdev.errors import Conflict, InvalidArgument, NotMapped
from umdev.services import Protection

MIB = 1 << 20


def map_anonymous(length):
    """Memory that a bus has mapped by its own means."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    return libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)


def is_mapped(address):
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [tuple(int(end, 16) for end in line.partition(" ")[0].split("-")) for line in lines]
    return any(first <= address < end for first, end in ranges)


class TestMemoryOfABus:
    """Maps of memory that the bus has mapped by its own means."""

    def test_it_is_read_written_and_given_back(self, space):
        address = map_anonymous(MIB)
        mapping = space.map(0x10_0000, MIB, host=address)
        assert mapping.host == address
        assert mapping.file is None
        space.write(0x10_0123, b"from the device")
        assert ctypes.string_at(address + 0x123, 15) == b"from the device"
        assert space.translate(0x10_0123, 15) == address + 0x123
        space.unmap(0x10_0000, MIB)
        del mapping
        gc.collect()
        assert not is_mapped(address)

    def test_a_late_view_sees_zeros(self, space):
        address = map_anonymous(MIB)
        space.map(0, MIB, host=address)
        space.write(0, b"secret")
        with space.view(0, 6) as view:
            space.unmap(0, MIB)
            assert bytes(view) == bytes(6)
        del view
        gc.collect()
        assert not is_mapped(address)

    def test_after_an_error_it_is_the_callers(self, space, memfd):
        address = map_anonymous(MIB)
        space.map(0, MIB, descriptor=memfd)
        with pytest.raises(Conflict):
            space.map(0x1000, MIB, host=address)
        with pytest.raises(InvalidArgument):
            space.map(MIB, MIB, host=address + 1)
        gc.collect()
        assert is_mapped(address)
        ctypes.CDLL(None).munmap(ctypes.c_void_p(address), ctypes.c_size_t(MIB))


class TestEviction:
    """A bus that maps on demand takes maps away for the time being."""

    def test_a_map_goes_and_listeners_are_told(self, space, memfd):
        told = []
        space.on_unmap(told.append)
        mapping = space.map(0, MIB, descriptor=memfd)
        assert space.evict(mapping)
        assert told == [mapping]
        assert space.mappings == []
        assert not space.evict(mapping), "it has gone already"

    def test_a_map_in_which_a_view_is_open_stays(self, space, memfd):
        mapping = space.map(0, MIB, descriptor=memfd)
        with space.view(0, 16), space.view(32, 16):
            assert not space.evict(mapping)
        assert space.mappings == [mapping]
        assert space.evict(mapping)
        with pytest.raises(NotMapped), space.view(0, 16):
            pass


class TestFilling:
    """A bus that maps where a transfer meets no map."""

    def test_a_transfer_goes_on_where_a_map_was_made(self, space, memfd):
        asked = []

        def fill(iova, length, protection, space_number):
            asked.append((iova, length, protection, space_number))
            if iova < 3 * MIB:
                space.map(iova, MIB, descriptor=memfd, offset=iova)
            return iova < 3 * MIB

        space.set_filler(fill)
        space.map(0, MIB, descriptor=memfd)
        space.write(MIB - 4, b"x" * (MIB + 8))
        assert asked == [(MIB, MIB + 4, Protection.WRITE, 0), (2 * MIB, 4, Protection.WRITE, 0)]
        assert space.read(2 * MIB, 5) == b"xxxx\0"
        asked.clear()
        with pytest.raises(NotMapped) as error:
            space.read(3 * MIB - 4, 8)
        assert error.value.iova == 3 * MIB
        assert asked == [(3 * MIB, 4, Protection.READ, 0)], "once for each place"
        space.set_filler(None)
        with pytest.raises(NotMapped):
            space.read(4 * MIB, 8)
        assert len(asked) == 1

    def test_a_map_that_goes_before_it_is_used_is_made_again(self, space, memfd):
        """The guest gives memory back just then, or another thread makes room."""
        made = []

        def fill(iova, _length, _protection, _space):
            made.append(space.map(iova, MIB, descriptor=memfd))
            if len(made) < 4:
                space.evict(made[-1])
            return True

        space.set_filler(fill)
        space.write(0, b"x")
        assert len(made) == 4
        assert space.read(0, 1) == b"x"
        assert space.mappings == [made[-1]]

    def test_one_that_fails_or_lies_ends_in_no_map(self, space, caplog):
        def fail(*_arguments):
            raise RuntimeError("on purpose")

        space.set_filler(fail)
        with pytest.raises(NotMapped):
            space.read(0, 8)
        assert "on purpose" in caplog.text
        space.set_filler(lambda *_arguments: True)
        with pytest.raises(NotMapped):
            space.write(0, b"x")
