"""The address space: maps, transfers, views, and what happens when memory goes."""

import errno
import gc
import os
import threading
from pathlib import Path

import pytest
from umdev.errors import (
    BusMasterDisabled,
    Conflict,
    DmaError,
    InvalidArgument,
    MapLimit,
    MappingPoisoned,
    NotMapped,
    NotPermitted,
    NotSupported,
    StateError,
    UmdevError,
)
from umdev.memory import FILE_MAPS_MAX, MAPS_MAX, AddressSpace
from umdev.services import Protection

MIB = 1 << 20


def test_what_the_device_writes_is_in_the_clients_file_and_the_other_way_round(space, memfd):
    space.map(0x10_0000, MIB, descriptor=memfd, offset=MIB)
    space.write(0x10_0123, b"from the device")
    assert os.pread(memfd, 15, MIB + 0x123) == b"from the device"
    os.pwrite(memfd, b"from the client", MIB + 0x2345)
    assert space.read(0x10_2345, 15) == b"from the client"


def test_a_transfer_crosses_adjacent_maps_in_address_order(space, memfd):
    space.map(0x2000, 0x1000, descriptor=memfd, offset=0x5000)
    space.map(0x1000, 0x1000, descriptor=memfd, offset=0x8000)
    space.map(0x3000, 0x1000, descriptor=memfd, offset=0x1000)
    data = os.urandom(0x3000)
    space.write(0x1000, data)
    assert space.read(0x1000, 0x3000) == data
    assert os.pread(memfd, 0x1000, 0x8000) == data[:0x1000]
    assert os.pread(memfd, 0x1000, 0x5000) == data[0x1000:0x2000]
    assert os.pread(memfd, 0x1000, 0x1000) == data[0x2000:]


def test_a_long_transfer_is_split_into_sections(space, memfd):
    space.map(0, 4 * MIB, descriptor=memfd)
    data = os.urandom(3 * MIB + 77)
    space.write(0x11, data)
    assert space.read(0x11, len(data)) == data
    into = bytearray(len(data))
    space.read_into(0x11, into)
    assert into == data


@pytest.mark.parametrize(
    "data", [b"", b"x", bytearray(8), memoryview(bytes(range(100)))[3:90], bytes(65536), bytes(65537)]
)
def test_any_contiguous_buffer_of_any_length_is_written_and_read_back(space, memfd, data):
    space.map(0x1000, MIB, descriptor=memfd)
    space.write(0x1003, data)
    assert space.read(0x1003, len(data)) == bytes(data)
    with pytest.raises((ValueError, BufferError)):
        space.write(0x1003, memoryview(bytes(64))[::2])
    with pytest.raises(TypeError):
        space.write(0x1003, "text")
    with pytest.raises(TypeError):
        space.read(0x1003, "4")
    with pytest.raises(InvalidArgument):
        space.read(0x1003, -1)
    with pytest.raises(InvalidArgument):
        space.read(0x1003, 4, 1 << 32)
    with pytest.raises(NotMapped):
        space.read(0x1003, 4, 1)


def test_errors_name_the_first_address_that_failed(space, memfd):
    space.map(0x1000, 0x1000, descriptor=memfd)
    space.map(0x2000, 0x1000, descriptor=memfd, offset=0x1000, protection=Protection.READ)
    with pytest.raises(NotMapped, match="no map covers 0x3000") as error:
        space.read(0x2FF0, 0x20)
    assert (error.value.iova, error.value.length) == (0x3000, 0x10)
    with pytest.raises(NotMapped, match="0x500000"):
        space.read(0x50_0000, 8 * MIB)  # refused before anything is allocated
    with pytest.raises(NotPermitted, match="0x2000 forbids") as error:
        space.write(0x1FF8, bytes(16))
    assert error.value.iova == 0x2000
    space.map(0x8000, 0x1000, descriptor=memfd, protection=Protection.WRITE)
    with pytest.raises(NotPermitted):
        space.read(0x8000, 4)
    with pytest.raises(NotPermitted), space.view(0x2000, 4, write=True):
        pass
    with pytest.raises(NotPermitted):
        space.translate(0x2000, 4, Protection.WRITE)


def test_the_last_byte_of_the_bus_can_be_mapped_and_nothing_wraps(space, memfd):
    top = (1 << 64) - 0x1000
    space.map(top, 0x1000, descriptor=memfd)
    space.map(0, 0x1000, descriptor=memfd, offset=0x1000)
    space.write((1 << 64) - 4, b"last")
    assert space.read((1 << 64) - 4, 4) == b"last"
    with pytest.raises(NotMapped) as caught:
        space.read((1 << 64) - 4, 8)
    assert (caught.value.iova, caught.value.length) == (1 << 64, 4)
    assert [mapping.iova for mapping in space.unmap_all()] == [0, top]


@pytest.mark.parametrize("address", [-1, -64, 1 << 64, (1 << 64) + 8])
def test_an_address_beyond_the_bus_is_a_named_error(space, address):
    for call in (
        lambda: space.read(address, 4),
        lambda: space.read(address, 64),
        lambda: space.read(address, 4 * MIB),
        lambda: space.write(address, b"x"),
        lambda: space.read_into(address, bytearray(8)),
        lambda: space.translate(address, 4),
        lambda: space.unmap(address, 0x1000),
    ):
        with pytest.raises(InvalidArgument):
            call()


@pytest.mark.parametrize(
    ("iova", "length", "offset"),
    [(0x800, 0x1000, 0), (0, 0x800, 0), (0, 0x1000, 0x10), (0, 0, 0), (-0x1000, 0x1000, 0), (1 << 64, 0x1000, 0)],
)
def test_maps_are_whole_pages_inside_64_bits(space, memfd, iova, length, offset):
    with pytest.raises(InvalidArgument):
        space.map(iova, length, descriptor=memfd, offset=offset)
    assert space.mappings == []


def test_only_memory_files_of_the_right_size_are_taken(space, memfd, tmp_path: Path):
    with pytest.raises(InvalidArgument, match="the file ends"):
        space.map(0, 0x1000, descriptor=memfd, offset=4 * MIB)
    with pytest.raises(InvalidArgument, match="the file ends"):
        space.map(0, 0x2000, descriptor=memfd, offset=4 * MIB - 0x1000)
    reader, writer = os.pipe()
    on_disk = os.open("/usr/bin/env", os.O_RDONLY)
    for descriptor in (reader, on_disk):
        with pytest.raises(InvalidArgument, match="tmpfs or hugetlbfs"):
            space.map(0, 0x1000, descriptor=descriptor)
    for descriptor in (reader, writer, on_disk):
        os.close(descriptor)
    with pytest.raises(InvalidArgument, match="not an open descriptor"):
        space.map(0, 0x1000, descriptor=reader)
    readonly = os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY)
    with pytest.raises(InvalidArgument, match="not opened for"):
        space.map(0, 0x1000, descriptor=readonly)
    space.map(0, 0x1000, descriptor=readonly, protection=Protection.READ)
    os.close(readonly)
    assert space.read(0, 4) == bytes(4)


def test_overlaps_and_splits_are_refused_and_change_nothing(space, memfd):
    space.map(0x4000, 0x4000, descriptor=memfd)
    for iova, length in ((0x4000, 0x4000), (0x3000, 0x2000), (0x7000, 0x2000), (0x5000, 0x1000), (0, MIB)):
        with pytest.raises(Conflict):
            space.map(iova, length, descriptor=memfd)
    for iova, length in ((0x4000, 0x1000), (0x5000, 0x1000), (0x3000, 0x2000), (0x7000, 0x2000)):
        with pytest.raises(InvalidArgument, match="split"):
            space.unmap(iova, length)
    assert len(space.mappings) == 1
    assert space.unmap(0x8000, 0x1000) == []
    assert [mapping.iova for mapping in space.unmap(0, MIB)] == [0x4000]


@pytest.mark.parametrize("last", ["C", "its start", "all"])
def test_a_map_that_is_interrupted_is_not_there(space, memfd, monkeypatch, last):
    """Ctrl-C may come when C has the map already: what it points to is unmapped."""
    before = space.map(0x1000, 0x1000, descriptor=memfd)

    def interrupt(maps, mapping):
        if last != "C":
            maps.starts.insert(0, mapping.iova)
        if last == "all":
            maps.maps.insert(0, mapping)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("umdev.memory.space_maps.SpaceMaps.add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            space.map(0, 0x1000, descriptor=memfd)
    assert (space.count, space.mappings) == (1, [before])
    with pytest.raises(NotMapped):
        space.read(0, 4)
    space.map(0, 0x1000, descriptor=memfd)


def test_spaces_are_apart(space, memfd):
    space.map(0x1000, 0x1000, descriptor=memfd)
    space.map(0x1000, 0x1000, descriptor=memfd, offset=0x1000, space=7)
    space.map(0x1000, 0x1000, descriptor=memfd, offset=0x2000, space=3)
    for number in (0, 7, 3):
        space.write(0x1000, bytes([number] * 4), space=number)
    assert [space.read(0x1000, 4, space=number)[0] for number in (3, 0, 7, 3)] == [3, 0, 7, 3]
    with pytest.raises(NotMapped, match="in space 9"):
        space.read(0x1000, 4, space=9)
    space.unmap(0x1000, 0x1000, space=7)
    with pytest.raises(NotMapped):
        space.read(0x1000, 4, space=7)
    assert space.read(0x1000, 4, space=3) == b"\x03" * 4


def test_views_are_the_memory_itself(space, memfd):
    space.map(0x1000, 0x2000, descriptor=memfd)
    space.map(0x3000, 0x1000, descriptor=memfd, offset=0x2000)
    with space.view(0x1800, 0x100, write=True) as view:
        view[:5] = b"hello"
        assert os.pread(memfd, 5, 0x800) == b"hello"
    with space.view(0x1800, 5) as view:
        assert bytes(view) == b"hello"
        assert view.readonly
    with pytest.raises(NotSupported, match="two maps"), space.view(0x2FFF, 2):
        pass
    with pytest.raises(ValueError, match="released"):
        bytes(view)


def test_a_late_view_sees_zeros_and_frees_the_address_range_when_it_goes(space, memfd):
    mapping = space.map(0x1000, 0x2000, descriptor=memfd)
    space.write(0x1000, b"\xff" * 0x2000)
    host = mapping.host
    with space.view(0x1000, 0x2000, write=True) as view:
        kept = view[0x10:0x20]
    with space.view(0x1000, 0x2000) as late:
        space.unmap(0x1000, 0x2000)
        assert bytes(late) == bytes(0x2000)
    kept[:] = b"x" * 16
    assert os.pread(memfd, 16, 0x10) == b"\xff" * 16
    assert mapped(host)
    del kept, late, view
    assert not mapped(host)


def mapped(host: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= host < end:
            return True
    return False


def test_listeners_see_the_memory_before_it_goes_and_their_errors_do_not_stop_it(space, memfd, caplog):
    space.map(0x1000, 0x1000, descriptor=memfd)
    space.map(0x2000, 0x1000, descriptor=memfd, offset=0x1000)
    space.write(0x1000, b"still here")
    seen = []
    with space.view(0x1000, 10) as view:

        def look(mapping):
            seen.append((mapping.iova, bytes(view), mapping.host is not None))

        def fail(mapping):
            raise RuntimeError("the model is broken")

        space.on_unmap(fail)
        cancel = space.on_unmap(look)
        space.unmap(0x1000, 0x1000)
        assert bytes(view) == bytes(10)
    assert seen == [(0x1000, b"still here", True)]
    assert "the model is broken" in caplog.text
    cancel()
    cancel()
    space.unmap(0x2000, 0x1000)
    assert len(seen) == 1


def test_the_gate_of_bus_mastering(space, memfd):
    space.map(0, 0x1000, descriptor=memfd)
    space.bus_master = False
    assert not space.bus_master
    with pytest.raises(BusMasterDisabled, match="Command register"):
        space.write(0, b"1234")
    with pytest.raises(BusMasterDisabled):
        space.read(0, 4)
    with pytest.raises(BusMasterDisabled), space.view(0, 4):
        pass
    assert os.pread(memfd, 4, 0) == bytes(4)
    space.bus_master = True
    space.write(0, b"1234")


def test_a_file_that_shrinks_poisons_its_map_only(space, memfd):
    other = os.memfd_create("other")
    os.ftruncate(other, 0x1000)
    space.map(0, 2 * MIB, descriptor=memfd)
    space.map(2 * MIB, 0x1000, descriptor=other)
    space.write(0, b"\xaa" * 64)
    with space.view(0x1000, 0x1000, write=True) as view:
        os.ftruncate(memfd, 0)
        with pytest.raises(MappingPoisoned, match="shrank"):
            space.read(MIB, 64)
        with pytest.raises(MappingPoisoned):
            space.write(0, b"x")
        with pytest.raises(MappingPoisoned):
            space.translate(0, 4)
        view[:] = b"z" * 0x1000  # no crash; nobody sees it
    mapping = space.mappings[0]
    assert mapping.poisoned
    space.write(2 * MIB, b"alive")
    assert space.read(2 * MIB, 5) == b"alive"
    space.unmap(0, 2 * MIB)
    os.ftruncate(memfd, 4 * MIB)
    space.map(0, 2 * MIB, descriptor=memfd)
    space.write(0, b"again")
    assert os.pread(memfd, 5, 0) == b"again"
    os.close(other)


def test_a_map_that_is_read_often_obeys_every_change_at_once(space, memfd):
    os.pwrite(memfd, b"\x11" * 0x1000, 0)
    os.pwrite(memfd, b"\x22" * 0x1000, 0x1000)

    def often(expected):
        for _ in range(40):
            assert space.read(0x1100, 64) == expected * 64

    space.map(0x1000, 0x1000, descriptor=memfd)
    often(b"\x11")
    with pytest.raises(NotMapped):
        space.read(0x1FF0, 64)
    with pytest.raises(NotMapped):
        space.read(0x1100, 64, 1)
    space.bus_master = False
    with pytest.raises(BusMasterDisabled):
        space.read(0x1100, 64)
    space.bus_master = True
    often(b"\x11")
    space.unmap(0x1000, 0x1000)
    with pytest.raises(NotMapped):
        space.read(0x1100, 64)
    space.map(0x1000, 0x1000, descriptor=memfd, offset=0x1000)
    often(b"\x22")
    space.unmap_all()
    with pytest.raises(NotMapped):
        space.read(0x1100, 64)
    space.map(0x1000, 0x1000, descriptor=memfd)
    often(b"\x11")
    os.ftruncate(memfd, 0)
    for _ in range(20):
        with pytest.raises(MappingPoisoned):
            space.read(0x1100, 64)


def test_memory_without_a_descriptor_needs_a_carrier(space, memfd):
    space.map(0x1000, 0x1000)
    with pytest.raises(DmaError, match="by message only and no client"):
        space.read(0x1000, 4)
    with pytest.raises(NotSupported, match="by message only"), space.view(0x1000, 4):
        pass
    with pytest.raises(NotSupported):
        space.translate(0x1000, 4)


def test_a_closed_space_takes_no_map(memfd):
    space = AddressSpace()
    space.map(0, 0x1000, descriptor=memfd)
    space.close()
    space.close()
    with pytest.raises(StateError, match="closed"):
        space.map(0, 0x1000, descriptor=memfd)
    with pytest.raises(NotMapped):
        space.read(0, 4)


GRANTED = int(Path("/proc/sys/vm/max_map_count").read_text())


def fill_with_files(space, memfd):
    """Every second page, so that the kernel merges no two. Returns how many went in, and what refused the next."""
    for count in range(MAPS_MAX):
        try:
            space.map(count * 0x2000, 0x1000, descriptor=memfd, offset=count % 32 * 0x2000)
        except MapLimit as error:
            return count, error
    raise AssertionError("no limit")


def test_one_client_maps_files_as_often_as_its_share(space, memfd, monkeypatch):
    assert min(MAPS_MAX, GRANTED // 2 // 4) == FILE_MAPS_MAX
    share = min(FILE_MAPS_MAX, 500)  # some machines grant a million
    monkeypatch.setattr("umdev.memory.address_space.FILE_MAPS_MAX", share)
    count, error = fill_with_files(space, memfd)
    assert count == share
    assert error.errno == errno.ENOSPC
    assert f"{share} maps of descriptors" in str(error)
    assert len(space.mappings) == share
    space.map(1 << 40, 0x1000)  # by message: costs no mapping of the process
    space.unmap(0, 0x1000)
    space.map(0, 0x1000, descriptor=memfd)
    space.unmap_all()
    space.map(0, 0x1000, descriptor=memfd)
    assert space.evict(space.find(0))
    assert fill_with_files(space, memfd)[0] == share


@pytest.mark.skipif(GRANTED > 1 << 17, reason="vm.max_map_count grants more than a test can use up soon")
def test_all_clients_together_leave_the_process_half_of_its_mappings(memfd):
    from umdev._native import lib

    spaces = [AddressSpace() for _ in range(5)]
    filled = [fill_with_files(space, memfd) for space in spaces]
    assert sum(count for count, _ in filled) <= lib.umdev_memory_backings_max()
    assert "all clients of this process together" in str(filled[-1][1])
    assert filled[-1][1].errno == errno.ENOSPC
    started = threading.Thread(target=bytearray, args=(1 << 20,))
    started.start()
    started.join()
    spaces[0].close()
    spaces[-1].map(1 << 40, 0x1000, descriptor=memfd)
    for space in spaces:
        space.close()


def test_the_number_of_maps_is_limited_by_name(
    space,
):
    from umdev._native import ffi, lib

    entries = ffi.new("umdev_map_entry[]", MAPS_MAX)
    for index in range(MAPS_MAX):
        entry = entries[index]
        entry.protection, entry.iova, entry.size, entry.guard = 3, (index + 1) << 12, 4096, -1
    assert lib.umdev_memory_publish(space.pointer, entries, MAPS_MAX) == 0
    with pytest.raises(UmdevError, match="65535 maps at most"):
        space.map(0, 0x1000)
    assert space.mappings == []


def descriptors() -> int:
    gc.collect()  # what earlier tests left
    return len(list(Path("/proc/self/fd").iterdir()))


def map_lines() -> int:
    gc.collect()  # what earlier tests left
    return len(Path("/proc/self/maps").read_text().splitlines())


def test_a_thousand_cycles_leave_nothing_behind(space, memfd):
    def cycle():
        for index in range(4):
            space.map(index << 20, 0x10000, descriptor=memfd, offset=index << 16)
        space.write(0x100, b"x" * 64)
        with space.view(0, 64) as view:
            assert len(view) == 64
        assert len(space.unmap(0, 4 << 20)) == 4

    for _ in range(20):
        cycle()
    before = descriptors(), map_lines()
    for _ in range(1000):
        cycle()
    assert (descriptors(), map_lines()) == before


def test_readers_in_other_threads_see_the_old_or_the_new_map_and_nothing_else(space, memfd):
    """Each page of the file holds one byte value; a read must never mix maps or fail otherwise than by NotMapped."""
    for page in range(2):
        os.pwrite(memfd, bytes([page + 1]) * 0x1000, page * 0x1000)
    stop = threading.Event()
    wrong = []

    def reader():
        while not stop.is_set():
            try:
                data = space.read(0x1000, 0x1000)
            except NotMapped:
                continue
            if data not in (b"\x01" * 0x1000, b"\x02" * 0x1000):
                wrong.append(data[:16])

    threads = [threading.Thread(target=reader) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(300):
        space.map(0x1000, 0x1000, descriptor=memfd, offset=(turn & 1) * 0x1000)
        assert space.read(0x1000, 1) == bytes([(turn & 1) + 1])
        space.unmap(0x1000, 0x1000)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_a_client_claims_to_have_is_not_allocated(space, monkeypatch):
    space.map(0x1000, 1 << 50)
    monkeypatch.setattr("umdev.memory.address_space._new_bytes", None)  # nothing may be allocated
    with pytest.raises(DmaError, match=r"memory at 0x1000 is by message: at most 64 MiB in one read") as raised:
        space.read(0x2000, 1 << 34)
    assert (raised.value.iova, raised.value.length) == (0x2000, 1 << 34)
