"""The port and its spaces: bounds, permissions, page tables of every shape, and the end of a life."""

import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from umdev.device import InvalidArgument
from umdev_softgpu import (
    Blit,
    Budget,
    Fault,
    Format,
    Level,
    Masks,
    MemoryPort,
    Reason,
    Rect,
    Run,
    Surface,
    Target,
    api_address,
    get_include,
)

PAGE = 4096
FOUR = Format([Level(39, 9), Level(30, 9), Level(21, 9), Level(12, 9)], 48)
FOUR_BITS = [Masks(writable=2), Masks(writable=2), Masks(writable=2, leaf=0x80), Masks(writable=2)]
FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def store(guest, offset, entry):
    guest.memory[offset : offset + 8] = entry.to_bytes(8, "little")


@pytest.fixture
def tables(guest):
    """Four levels in the first four pages of guest memory, all of them empty but for the way down."""
    for level in range(3):
        store(guest, level * PAGE, guest.BASE + (level + 1) * PAGE | 3)
    return guest.BASE


@pytest.fixture
def space(port, tables):
    space = port.paged(FOUR, FOUR_BITS)
    space.set_root(tables)
    return space


def map_page(guest, index, page, bits=3):
    store(guest, 3 * PAGE + 8 * index, guest.BASE + page * PAGE | bits)


# Bus addresses.


def test_bus_addresses(guest, port):
    assert port.system.write(guest.BASE + 5, b"hello") is None
    assert guest.memory[5:10] == b"hello"
    assert port.system.read(guest.BASE + 5, 5) == b"hello"
    assert port.system.read_u32(guest.BASE + 5) == int.from_bytes(b"hell", "little")
    assert port.system.write_u64(guest.BASE, 0x1_1122_3344_5566_7788) is None
    assert port.system.read_u64(guest.BASE) == 0x1122_3344_5566_7788
    assert port.system.write_u32(guest.BASE, 0x1_0000_0005) is None
    assert guest.memory[:8] == b"\x05\0\0\0\x44\x33\x22\x11"


@pytest.mark.parametrize("address", [0, 1 << 32, (1 << 64) - 2, (1 << 64) - 1, 1 << 64, -1])
def test_addresses_that_lead_nowhere(guest, port, address):
    at = address - (address == 1 << 32)
    for answer in (port.system.read(at, 1), port.system.write(at, b"x"), port.system.read_u64(at)):
        assert isinstance(answer, Fault)
        assert answer.reason in (Reason.UNREACHABLE, Reason.OUT_OF_RANGE)


def test_a_range_that_ends_outside(guest, port):
    end = guest.BASE + guest.size
    answer = port.system.write(end - 3, b"12345")
    assert answer == Fault(Reason.UNREACHABLE, end, write=True, beneath=end)
    assert guest.memory[-3:] == b"123", "what lies before the fault's address has been stored"
    assert port.system.read((1 << 64) - 2, 8).reason in (Reason.UNREACHABLE, Reason.OUT_OF_RANGE)
    assert port.system.read(guest.BASE, 1 << 40).reason is Reason.INVALID
    assert port.system.read(guest.BASE, -1).reason is Reason.INVALID
    assert port.system.read(guest.BASE, 0) == b""


def test_bus_mastering_gates(guest, port):
    guest.device.address_space.bus_master = False
    assert port.system.read(guest.BASE, 4).reason is Reason.UNREACHABLE
    guest.device.address_space.bus_master = True
    assert port.system.read(guest.BASE, 4) == bytes(4)


def test_permissions_of_maps(guest, port):
    from umdev.services import Protection

    guest.device.address_space.map(0, PAGE, descriptor=guest.descriptor, protection=Protection.READ)
    assert port.system.read(0, 4) == bytes(4)
    assert port.system.write(0, b"1234") == Fault(Reason.NOT_PERMITTED, 0, write=True)


def test_faults_read_as_a_sentence():
    assert str(Fault(Reason.NOT_PRESENT, 0x1000, write=True, level=2, beneath=0x30)) == (
        "store to 0x1000: not present (level 2, at 0x30)"
    )


# The device's own memory.


def test_local_memory(guest):
    local = bytearray(3 * PAGE)
    port = MemoryPort(guest.device, local=local)
    share = port.linear(Target.LOCAL, PAGE, PAGE)
    assert share.write(PAGE - 2, b"ab") is None
    assert local[2 * PAGE - 2 : 2 * PAGE] == b"ab"
    assert share.write(PAGE - 2, b"abc") == Fault(Reason.OUT_OF_RANGE, PAGE, write=True, beneath=PAGE)
    beyond = port.linear(Target.LOCAL, 2 * PAGE, 1 << 40)
    assert beyond.read(PAGE, 1) == Fault(Reason.OUT_OF_RANGE, PAGE, beneath=3 * PAGE)
    assert port.linear(Target.SPARE, 0, PAGE).read(0, 1).reason is Reason.OUT_OF_RANGE
    port.close()
    with pytest.raises(InvalidArgument, match="does not fit into 64 bits"):
        port.linear(Target.LOCAL, (1 << 64) - 1, 2)


def test_read_only_memory_stays_so(guest):
    port = MemoryPort(guest.device, local=bytes(PAGE))
    share = port.linear(Target.LOCAL, 0, PAGE)
    assert share.read(0, 4) == bytes(4)
    assert share.write(0, b"x").reason is Reason.NOT_PERMITTED
    port.close()


# Page tables.


def test_walk(guest, space):
    map_page(guest, 5, 77)
    assert space.translate(5 * PAGE + 3) == Run(Target.SYSTEM, guest.BASE + 77 * PAGE + 3, PAGE - 3, writable=True)
    assert space.write(5 * PAGE + 3, b"there") is None
    assert guest.memory[77 * PAGE + 3 : 77 * PAGE + 8] == b"there"


def test_no_root_no_page(port):
    assert port.paged(FOUR, FOUR_BITS).read(0, 1).reason is Reason.NOT_PRESENT


@pytest.mark.parametrize(("address", "level", "beneath"), [
    (0x0000_0000_6000, 3, 3 * PAGE + 48),
    (0x0000_0020_0000, 2, 2 * PAGE + 8),
    (0x0000_4000_0000, 1, 1 * PAGE + 8),
    (0x8000_0000_0000, 0, 8 * 256),
])  # fmt: skip
def test_holes_are_named(guest, space, address, level, beneath):
    assert space.read(address, 4) == Fault(Reason.NOT_PRESENT, address, level=level, beneath=guest.BASE + beneath)


@pytest.mark.parametrize("address", [1 << 48, (1 << 64) - 8, 0xFFFF_8000_0000_0000])
def test_addresses_of_more_bits(space, address):
    assert space.read(address, 4).reason is Reason.OUT_OF_RANGE


def test_large_page(guest, space):
    store(guest, 2 * PAGE + 8, 0x4000_0000 | 0x83)
    assert space.translate(0x20_1234) == Run(Target.SYSTEM, 0x4000_1234, 0x1F_EDCC, writable=True)
    store(guest, 2 * PAGE + 16, guest.BASE | 0x1F_F000 | 0x83)  # bits below the page's own size count for nothing
    assert space.translate(0x40_0000).address == guest.BASE


def test_read_only_page(guest, space):
    map_page(guest, 1, 9, bits=1)
    assert space.read(PAGE, 4) == bytes(4)
    assert space.write(PAGE, b"x") == Fault(Reason.NOT_PERMITTED, PAGE, write=True, beneath=guest.BASE + 9 * PAGE)
    assert space.read(PAGE, 4) == bytes(4)


def test_translations_are_kept_until_they_are_invalidated(guest, space, tables):
    map_page(guest, 1, 9)
    space.write(PAGE, b"old")
    map_page(guest, 1, 10)
    space.write(PAGE, b"OLD")
    assert (guest.memory[9 * PAGE : 9 * PAGE + 3], guest.memory[10 * PAGE : 10 * PAGE + 3]) == (b"OLD", b"\0\0\0")
    space.invalidate()
    space.write(PAGE, b"new")
    assert guest.memory[10 * PAGE : 10 * PAGE + 3] == b"new"
    map_page(guest, 1, 11)
    space.set_root(tables)
    space.write(PAGE, b"newer")
    assert guest.memory[11 * PAGE : 11 * PAGE + 5] == b"newer"


def test_neighbours_are_kept_only_until_they_are_invalidated(guest, space):
    """Entries beside the one asked for may be remembered too: with their own permissions, and no longer than it."""
    for index, bits in ((8, 3), (9, 1), (11, 3), (16, 3)):
        map_page(guest, index, 20 + index, bits)
    Blit.fill(Surface(space, 8 * PAGE, PAGE), Rect(0, 0, 16, 1), 1, 1).step(Budget())
    assert space.write(9 * PAGE, b"x").reason is Reason.NOT_PERMITTED
    assert space.read(10 * PAGE, 1).reason is Reason.NOT_PRESENT
    map_page(guest, 10, 30)
    assert space.translate(10 * PAGE).address == guest.BASE + 30 * PAGE
    map_page(guest, 11, 40)
    space.invalidate()
    assert space.translate(11 * PAGE).address == guest.BASE + 40 * PAGE
    assert space.translate(16 * PAGE).address == guest.BASE + 36 * PAGE


def test_what_is_not_there_is_not_kept(guest, space):
    assert space.read(PAGE, 1).reason is Reason.NOT_PRESENT
    map_page(guest, 1, 9)
    assert space.read(PAGE, 1) == b"\0"


@pytest.mark.parametrize("root", [0, 0x7FFF_FFFF_F000, (1 << 64) - PAGE, (1 << 64) - 1])
def test_root_outside_of_memory(port, root):
    space = port.paged(FOUR, FOUR_BITS)
    space.set_root(root)
    answer = space.read(0xFFFF_FFFF_F000, 4)
    assert answer.reason is Reason.BAD_TABLE


def test_tables_that_name_themselves(guest, space):
    """Every entry of every level points back to the root: the walk ends, since levels only grow."""
    for index in range(512):
        store(guest, 8 * index, guest.BASE | 3)
    assert space.translate(0x0000_1234_5678) == Run(Target.SYSTEM, guest.BASE + 0x678, PAGE - 0x678, writable=True)


def test_unaligned_root_and_entries_at_the_end_of_memory(guest, port):
    space = port.paged(Format([Level(12, 9)], 21), [Masks()])
    store(guest, 4, guest.BASE + PAGE | 1)
    space.set_root(guest.BASE + 4)
    assert space.translate(0).address == guest.BASE + PAGE
    space.set_root(guest.BASE + guest.size - 4)
    assert space.read(0, 1).reason is Reason.BAD_TABLE


def test_flat_table_in_private_memory(guest):
    """The shape of a GGTT: a million entries, 32 bits of address, the table in the model's own memory."""
    entries = bytearray(8 << 20)
    port = MemoryPort(guest.device, tables=entries)
    space = port.paged(Format([Level(12, 20)], 32), [Masks(address=0x7F_FFFF_F000)])
    space.set_root(0, Target.TABLES)
    entries[8 * 0xFFFFF : 8 * 0xFFFFF + 8] = (guest.BASE + PAGE | 1).to_bytes(8, "little")
    assert space.write(0xFFFF_F000, b"last page") is None
    assert guest.memory[PAGE : PAGE + 9] == b"last page"
    assert space.read(0xFFFF_FFFF, 2) == Fault(Reason.OUT_OF_RANGE, 1 << 32, beneath=1 << 32)
    port.close()


def test_small_entries_with_a_stride(guest, port):
    space = port.paged(Format([Level(16, 4, entry_bytes=4, stride=16)], 20), [Masks(address=0xFFFF_0000)])
    guest.device.address_space.map(0x10_0000, 1 << 16, descriptor=guest.descriptor)
    guest.memory[16 * 3 : 16 * 3 + 4] = (0x10_0001).to_bytes(4, "little")
    space.set_root(guest.BASE)
    assert space.translate(0x3_0010) == Run(Target.SYSTEM, 0x10_0010, 0xFFF0, writable=True)


@pytest.mark.parametrize("format_", [
    Format([], 48),
    Format([Level(12, 9)] * 7, 48),
    Format([Level(11, 9)], 48),
    Format([Level(64, 9)], 48),
    Format([Level(12, 0)], 48),
    Format([Level(12, 33)], 48),
    Format([Level(12, 9, 3)], 48),
    Format([Level(12, 9, 8, 4)], 48),
    Format([Level(12, 9)], 65),
    Format([Level(12, 9)], 11),
])  # fmt: skip
def test_formats_that_make_no_sense(port, format_):
    with pytest.raises(InvalidArgument):
        port.paged(format_, [Masks()] * len(format_.levels))


def test_one_mask_a_level(port):
    with pytest.raises(InvalidArgument, match="2 masks for 1 levels"):
        port.paged(Format([Level(12, 9)], 48), [Masks(), Masks()])


@FIXTURES
@given(data=st.binary(min_size=64, max_size=512), addresses=st.lists(st.integers(0, (1 << 50) - 1), max_size=20))
def test_garbage_for_tables(guest, space, data, addresses):
    """Whatever lies where tables should be: an answer, and no store outside of what is mapped."""
    guest.memory[:] = (data * (guest.size // len(data) + 1))[: guest.size]
    space.invalidate()
    for address in addresses:
        for answer in (space.read(address, 16), space.write(address, bytes(16)), space.translate(address)):
            assert answer is None or isinstance(answer, (bytes, Fault, Run))


# The end.


def test_closed_port(guest, port, space):
    map_page(guest, 1, 9)
    assert space.read(PAGE, 1) == b"\0"
    port.close()
    port.close()
    assert space.read(PAGE, 4) == Fault(Reason.CLOSED, PAGE, beneath=guest.BASE + 9 * PAGE)
    assert space.write(PAGE, b"late").reason is Reason.CLOSED
    assert port.system.read(guest.BASE, 4).reason is Reason.CLOSED
    assert guest.memory[9 * PAGE : 9 * PAGE + 4] == bytes(4)


def test_close_while_others_write(guest, port):
    """Once it returns, nothing changes memory any more."""
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            number += 1
            port.system.write(guest.BASE, number.to_bytes(8, "little") * 512)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    port.close()
    before = guest.memory[:PAGE]
    for _ in range(100):
        assert guest.memory[:PAGE] == before
    stop.set()
    for thread in threads:
        thread.join()


def test_unmap_while_others_write(guest, port):
    stop = threading.Event()
    answers = set()

    def write():
        while not stop.is_set():
            answer = port.system.write(guest.BASE, bytes(PAGE))
            answers.add(answer.reason if answer else None)

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(200):
        guest.device.address_space.unmap(guest.BASE, guest.size)
        guest.device.address_space.map(guest.BASE, guest.size, descriptor=guest.descriptor)
    stop.set()
    thread.join()
    assert answers <= {None, Reason.UNREACHABLE}


def test_what_c_gets():
    from pathlib import Path

    assert api_address()
    assert (Path(get_include()) / "softgpu.h").is_file()
