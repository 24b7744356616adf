"""The bench's arithmetic, its floors, and one short measurement of each row. No time is judged here."""

import importlib.util
import os
import socket
import statistics
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
from umdev.errors import InvalidArgument, NotFound, NotSupported
from umdev_testkit.affinity import one_cpu
from umdev_testkit.bench import ROWS, Pair, Result, Row, measure, messages, select
from umdev_testkit.bench.native import ffi, lib, timed

NAMES = [
    "vfio-user/read4/c",
    "vfio-user/read4/python",
    "vfio-user/write4-posted/c",
    "memory/read4k/c",
    "memory/read4k/python",
    "memory/lookup1/c",
    "memory/lookup1000/c",
    "kvm/mmio/c",
    "kvm/mmio/python",
    "protect/trap/c",
    "protect/trap/python",
    "protect/arm",
    "protect/track-scan",
    "softgpu/fill",
    "softgpu/copy",
    "intel-gvt/scan",
    "intel-gvt/ggtt",
    "intel-gvt/submit",
    "nvidia/ce-copy",
    "nvidia/kick",
    "xen/ioreq/c",
]


def row(subject, floor, target=2.0):
    @contextmanager
    def prepare():
        yield Pair(subject, floor)

    return Row("test/row", target, prepare)


def result(ratio, target):
    return Result("test/row", median=ratio * 10, p99=99, floor=10, runs=7, target=target)


def test_the_rows_that_scripts_rely_on():
    assert [row.name for row in ROWS] == NAMES
    assert [row.name for row in select("memory/lookup")] == NAMES[5:7]
    with pytest.raises(NotFound, match="vfio-user/read4/c"):
        select("nonsense")


def test_median_of_the_rounds_medians():
    rounds = iter(range(100))
    found = measure(row(lambda: [1, 100 + next(rounds), 1000], lambda: [50, 50, 50]), 7)
    assert found.median == statistics.median(range(101, 108))  # the first round warms up
    assert (found.p99, found.floor, found.runs) == (1000, 50, 7)
    assert found.ratio == found.median / 50


def test_rounds_take_turns():
    order = []
    steps = []
    measure(
        row(lambda: order.append("subject") or [1], lambda: order.append("floor") or [1]), 8, lambda: steps.append(1)
    )
    turns = order[2:]
    assert [sorted(turns[i : i + 2]) for i in range(0, 16, 2)] == [["floor", "subject"]] * 8
    assert turns[0:2] != turns[2:4]
    assert len(steps) == 8


def test_too_few_rounds():
    with pytest.raises(InvalidArgument, match="6 rounds"):
        measure(row(lambda: [1], lambda: [1]), 6)


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.0, "ok"), (2.0, "ok"), (2.01, "missed"), (2.5, "missed"), (2.51, "failed")]
)
def test_verdict(ratio, verdict):
    assert result(ratio, 2.0).verdict == verdict


@pytest.mark.parametrize(("ratio", "verdict"), [(2.0, "ok"), (3.75, "missed"), (3.76, "failed")])
def test_a_known_miss_is_held_where_it_is(ratio, verdict):
    assert replace(result(ratio, 2.0), reached=3.0).verdict == verdict


def test_json_has_the_agreed_names():
    assert result(1.5, 2.0).as_json() == {
        "name": "test/row", "median": 15, "p99": 99, "unit": "ns", "floor": 10, "ratio": 1.5, "runs": 7,
    }  # fmt: skip


def test_one_cpu_is_given_back():
    before = os.sched_getaffinity(0)
    with one_cpu():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_echo_answers_and_ends_with_its_peer():
    ours, theirs = socket.socketpair()
    with theirs:
        results = []
        server = threading.Thread(
            target=lambda: results.append(lib.umdev_bench_echo_serve(theirs.fileno(), 32, 36)), daemon=True
        )
        server.start()
        with ours:
            times = timed(lib.umdev_bench_round_trips, ours.fileno(), bytes(32), 32, 36, count=10)
            assert len(times) == 10
            assert all(time > 0 for time in times)
        server.join()
        assert results == [0]


def test_a_lost_peer_is_an_error():
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(BrokenPipeError):
        timed(lib.umdev_bench_round_trips, ours.fileno(), bytes(32), 32, 36, count=10)


@pytest.mark.parametrize("maps", [1, 2, 3, 1000])
def test_the_bare_search_finds_every_address_and_no_other(maps):
    host = ffi.new("uint8_t[]", 1)
    table = ffi.new("umdev_bench_map[]", [(0x1000 + 0x20 * n, 0x10, host) for n in range(maps)])

    def search(address):
        addresses = ffi.new("uint64_t[]", [address])
        return timed(lib.umdev_bench_search, table, maps, addresses, 1, batch=1, count=1)

    for n in range(maps):
        search(0x1000 + 0x20 * n)
        search(0x100F + 0x20 * n)
    for hole in (0xFFF, 0x1010, 0x1000 + 0x20 * (maps - 1) + 0x10):
        with pytest.raises(OSError, match="Bad address"):
            search(hole)


def test_lost_accesses_are_an_error():
    messages._expect_count(5, 16, 10)
    messages._expect_count(2**32 - 3, 8, 10)
    with pytest.raises(RuntimeError, match="10 accesses were sent, 9 reached"):
        messages._expect_count(5, 15, 10)


NEEDED = {
    "intel-gvt": "umdev_intel_gvt",
    "kvm": "umdev_kvm",
    "nvidia": "umdev_nvidia",
    "softgpu": "umdev_softgpu",
    "xen": "umdev_xen",
}
MARKS = {
    "kvm": [pytest.mark.kvm],
    "xen": [pytest.mark.guest, pytest.mark.xen, pytest.mark.timeout(1500)],
}
MEASURED = [
    pytest.param(name, marks=MARKS.get(name.split("/")[0], []))
    for name in NAMES
    if importlib.util.find_spec(NEEDED.get(name.split("/")[0], "umdev"))
]


@pytest.mark.parametrize("name", MEASURED)
def test_every_row_measures(name):
    (chosen,) = [row for row in ROWS if row.name == name]
    try:
        found = measure(chosen, 7)
    except NotSupported as error:
        pytest.skip(f"this host can't measure it: {error}")
    assert 0 < found.median <= found.p99
    assert found.floor > 0
