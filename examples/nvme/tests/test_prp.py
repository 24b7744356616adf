"""The walker of PRP entries and lists, against what the specification's words say."""

import struct
from contextlib import nullcontext, suppress
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from umdev_nvme.commands import CommandError, Status
from umdev_nvme.prp import segments

LONGEST = 512 << 10


@st.composite
def layouts(draw):
    """A transfer as a driver lays it out: page size, offset in the first page, its pages, and the lists' places."""
    page_size = 1 << draw(st.integers(12, 16))
    length = draw(st.one_of(st.integers(1, 4 * page_size), st.integers(1, LONGEST)))
    offset = 4 * draw(st.one_of(st.just(0), st.integers(0, page_size // 4 - 1)))
    count = -(-(offset + length) // page_size)
    first = draw(st.integers(1, 1 << 20))
    numbers = list(range(first, first + count))
    if not draw(st.booleans()):  # else a run of neighbours, as of a large buffer
        draw(st.randoms(use_true_random=False)).shuffle(numbers)
    entries = page_size // 8
    first_list = 8 * draw(
        st.one_of(st.just(0), st.integers(0, entries - 1), st.integers(max(0, entries - 4), entries - 1))
    )
    return page_size, length, offset, [number * page_size for number in numbers], first_list


class Memory:
    """The driver's lists; whoever reads must want what is there, and not twice."""

    def __init__(self):
        self.entries = {}
        self.read_count = 0

    def read(self, address, length):
        assert length % 8 == 0
        self.read_count += length // 8
        return struct.pack(f"<{length // 8}Q", *(self.entries[at] for at in range(address, address + length, 8)))


def lay_out(page_size, pages, first_list, memory):
    """PRP2 for all but the first page; the lists stand far above every page."""
    if len(pages) <= 1:
        return 0xDEAD_BEEF  # reserved, so it may be anything
    if len(pages) == 2:
        return pages[1]
    base = 1 << 48
    at = start = base + first_list
    rest = pages[1:]
    following = base + 16 * page_size
    while rest:
        if at % page_size == page_size - 8 and len(rest) > 1:
            memory.entries[at] = following
            at, following = following, following + 2 * page_size
        memory.entries[at] = rest.pop(0)
        at += 8
    return start


def cut(address, length, page_size):
    """A segment by pages, as the driver meant it."""
    while length:
        here = min(length, page_size - address % page_size)
        yield address, here
        address, length = address + here, length - here


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine all is slow
@given(layouts())
@example((4096, 3 * 4096, 0, [0x1000, 0x3000, 0x5000], 4096 - 16))  # the list ends where its page does
def test_every_byte_in_order(layout):
    page_size, length, offset, pages, first_list = layout
    memory = Memory()
    prp2 = lay_out(page_size, pages, first_list, memory)
    found = list(segments(pages[0] + offset, prp2, length, page_size, memory.read))
    expected = []
    left = length
    for number, page in enumerate(pages):
        start = 0 if number else offset
        part = min(left, page_size - start)
        expected.append((page + start, part))
        left -= part
    assert left == 0
    assert sum(part for _, part in found) == length
    assert [piece for segment in found for piece in cut(*segment, page_size)] == expected
    assert all(before[0] + before[1] != after[0] for before, after in pairwise(found)), "neighbours are joined"
    assert memory.read_count == len(memory.entries), "each entry was read once, and no other"


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(1, LONGEST),
    st.integers(12, 16),
    st.randoms(use_true_random=False),
)
def test_whatever_stands_there_the_work_is_bounded(prp1, prp2, length, shift, chance):
    page_size = 1 << shift
    reads = []

    def read(address, size):
        reads.append(size // 8)
        assert address % page_size + size <= page_size, "a list's page was left"
        return b"".join(struct.pack("<Q", chance.getrandbits(64) & -page_size) for _ in range(size // 8))

    crooked = prp1 % 4 or prp2 % 8 or prp2 % page_size
    with suppress(CommandError) if crooked else nullcontext():
        assert sum(part for _, part in segments(prp1, prp2, length, page_size, read)) == length
    pages = -(-length // page_size) + 1
    assert sum(reads) <= pages + 1 + pages // (page_size // 8 - 1)


@pytest.mark.parametrize(
    ("prp1", "prp2", "length", "entries"),
    [
        (0x1001, 0, 16, ()),
        (0x1FFE, 0x3000, 16, ()),
        (0x1FFC, 0x3004, 16, ()),
        (0x1000, 0x3004, 3 * 4096, ()),
        (0x1000, 0x3000, 3 * 4096, (0x5000, 0x6008)),
        (0x1000, 0x3FF8, 3 * 4096, (0x5008,)),
    ],
)
def test_offsets_where_none_may_be(prp1, prp2, length, entries):
    def read(address, size):
        return struct.pack(f"<{size // 8}Q", *entries[: size // 8])

    with pytest.raises(CommandError) as caught:
        list(segments(prp1, prp2, length, 4096, read))
    assert caught.value.status is Status.PRP_OFFSET_INVALID
