"""The walk through GF100's page tables: small and large pages side by side, in any order of asking."""

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from umdev_nvidia.page_tables import Tables, address_space
from umdev_softgpu import Blit, Budget, Fault, Reason, Rect, Step, Surface, Target

SMALL, LARGE = 4096, 128 << 10
DIRECTORY, SMALL_TABLE, LARGE_TABLE = 1 << 20, 2 << 20, 3 << 20
REGION = 5 << 27
SLOTS = 2
"""Large pages that are looked at, each as long as 32 small ones."""
PAGES_AT = 4 << 20
CONTENT = random.Random(1).randbytes(6 << 20)
FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def store(vgpu, at, value):
    vgpu.vram.memory[at : at + 8] = value.to_bytes(8, "little")


def entry(page, *, system=False, read_only=False):
    return 1 | read_only << 2 | page * SMALL >> 8 | (2 << 33 if system else 0)


def copied(vgpu, space, address):
    """A byte, as the blitter finds it; None: it does not."""
    done = Blit.copy(Surface(vgpu.local, 0, 64), Surface(space, address, 64), Rect(0, 0, 1, 1), 1).step(Budget())
    return vgpu.vram.memory[0] if done is Step.DONE else None


def numbers(count):
    """Any of the first so many, half of them on average."""
    return st.integers(0, (1 << count) - 1).map(lambda bits: {number for number in range(count) if bits >> number & 1})


@FIXTURES
@given(
    large=numbers(SLOTS),
    small=numbers(SLOTS * 32),
    tables=st.sampled_from(["both", "small", "large"]),
    asked=st.lists(st.tuples(st.integers(0, SLOTS * LARGE - 1), st.booleans()), min_size=1, max_size=60),
)
def test_small_and_large_pages(vgpu, large, small, tables, asked):
    small = small if tables != "large" else set()
    large = large if tables != "small" else set()
    for table in (DIRECTORY, SMALL_TABLE, LARGE_TABLE):
        vgpu.vram.memory[table : table + (1 << 18)] = bytes(1 << 18)
    low = LARGE_TABLE >> 8 | 1 if tables != "small" else 0
    high = SMALL_TABLE >> 8 | 1 if tables != "large" else 0
    store(vgpu, DIRECTORY + 8 * (REGION >> 27), high << 32 | low)
    for number in small:
        store(vgpu, SMALL_TABLE + 8 * number, entry((1500 + number) ^ 5, system=number % 2, read_only=number % 3 == 0))
    for number in large:
        store(vgpu, LARGE_TABLE + 8 * number, entry(1056 + 64 * number, system=number % 2))

    vgpu.vram.memory[PAGES_AT : PAGES_AT + len(CONTENT)] = CONTENT
    space = address_space(vgpu.port, Tables(Target.LOCAL, DIRECTORY, (1 << 40) - 1))
    for offset, write in asked:
        byte = copied(vgpu, space, REGION + offset)
        found = space.translate(REGION + offset, write=write)
        if offset // SMALL in small:  # it goes before a large one, which a driver does not put beside it
            number = offset // SMALL
            if write and number % 3 == 0:
                assert isinstance(found, Fault)
                assert found.reason is Reason.NOT_PERMITTED
                continue
            assert found.address == ((1500 + number) ^ 5) * SMALL + offset % SMALL
        elif offset // LARGE in large:
            number = offset // LARGE
            assert found.address == (1056 + 64 * number) * SMALL + offset % LARGE
        else:
            assert isinstance(found, Fault)
            assert found.reason is Reason.NOT_PRESENT
            continue
        assert found.target is (Target.SYSTEM if number % 2 else Target.LOCAL)
        if found.target is Target.LOCAL:
            assert byte == CONTENT[found.address - PAGES_AT]
