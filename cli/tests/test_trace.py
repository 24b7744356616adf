"""`umdev trace`: what a device in another process does, as it happens."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from umdev_cli import control, hosts
from umdev_cli.client import query

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from conftest import Umdev

UUID = "5f3c8a30-7a0f-4a52-9f2e-0b7f3f9fb0aa"
OTHER = "5f3c8a30-7a0f-4a52-9f2e-0b7f3f9fb0ab"
SECONDS = 60


@pytest.fixture
def toy(toys: Umdev, monkeypatch: pytest.MonkeyPatch) -> Umdev:
    """A toy that runs."""
    monkeypatch.setenv("UMDEV_RUNTIME_DIR", str(toys.runtime))
    toys("start", "--parent", "toys", "--type", "toy", "--uuid", UUID, "--bus", "tap")
    return toys


def work(uuid: str = UUID, count: int = 1) -> None:
    query(uuid, "steps", count=count)


def fill(uuid: str = UUID) -> None:
    query(uuid, "fill")


def peek(uuid: str = UUID) -> None:
    query(uuid, "peek")


def followed(umdev: Umdev, *words: str, uuid: str = UUID, work: Callable[[str], None] = work) -> subprocess.Popen[str]:
    """A `umdev trace` that has seen something: from then on it misses nothing."""
    process = umdev.spawn("trace", *words)
    deadline = time.monotonic() + SECONDS
    assert process.stdout is not None
    while not select.select([process.stdout], [], [], 0.05)[0]:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        work(uuid)
    return process


def lines(process: subprocess.Popen[str], until: Callable[[str], bool]) -> list[str]:
    """What it prints, to a line."""
    assert process.stdout is not None
    found = []
    for text in process.stdout:
        found.append(text.rstrip("\n"))
        if until(text):
            return found
    raise AssertionError(f"it ended: {found[-5:]} {process.communicate()}")


def test_accesses_and_events_in_the_order_of_time(toy: Umdev) -> None:
    process = followed(toy, UUID)
    work(count=1000)
    seen = lines(process, lambda text: "bar0.scratch=0x3e7 " in text)[-4:]
    assert [re.sub(r"^ *\d+\.\d{6} |[\d.]+ us", "", text) for text in seen] == [
        "event engine.STEP=0x3e6 at 0x40 (8 bytes)",
        "write bar0.scratch=0x3e6 (4 bytes, , abort)",  # the toy's driver has not enabled it
        "event engine.STEP=0x3e7 at 0x40 (8 bytes)",
        "write bar0.scratch=0x3e7 (4 bytes, , abort)",
    ]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (0, "")


def test_json_of_what_a_pattern_names(toy: Umdev) -> None:
    path = json.loads(toy.out("show", UUID, "--json"))["socket"]
    process = followed(toy, path, "--json", "--filter", "BAR0.SCR*", "--count", "3")
    work(count=3)
    output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (0, "")
    shown: list[dict[str, Any]] = [json.loads(text) for text in output.splitlines()]
    assert len(shown) == 3
    assert {(entry["kind"], entry["name"], entry["length"], entry["outcome"]) for entry in shown} == {
        ("write", "bar0.scratch", 4, "abort")
    }
    assert sorted(shown[0]) == sorted(
        ["time", "kind", "name", "text", "value", "offset", "length", "duration", "outcome", "thread"]
    )


def test_a_pattern_is_a_name_as_it_is_shown(toy: Umdev) -> None:
    process = followed(toy, UUID, "--json", "--filter", "bar0.cells[1]", "--filter", "*[2]", "--count", "4", work=fill)
    for _ in range(2):  # the first may have been seen in part
        fill()
    output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (0, "")
    assert {json.loads(text)["name"] for text in output.splitlines()} == {"bar0.cells[1]", "bar0.cells[2]"}


def test_configuration_space_can_be_filtered(toy: Umdev) -> None:
    process = followed(toy, UUID, "--json", "--filter", "config.*", "--count", "4", work=peek)
    peek()
    output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (0, "")
    assert {json.loads(text)["name"] for text in output.splitlines()} == {"config.command", "config.bar0"}


def test_it_ends_with_the_device(toy: Umdev) -> None:
    process = followed(toy, UUID)
    toy("stop", "--uuid", UUID)
    _, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (0, "umdev: the device has gone\n")
    assert toy.left() == []


def test_it_says_when_the_process_is_killed(toy: Umdev) -> None:
    process = followed(toy, UUID)
    (host,) = toy.processes()
    os.kill(host, signal.SIGKILL)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert errors.startswith(f"umdev: Disconnected: process {host} of {UUID} ended without a word")


def test_two_follow_devices_of_one_process(toys: Umdev, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMDEV_RUNTIME_DIR", str(toys.runtime))
    for uuid in (UUID, OTHER):
        toys("start", "--parent", "box", "--type", "toy-in-box", "--uuid", uuid, "--bus", "tap")
    first = followed(toys, UUID)
    second = followed(toys, OTHER, uuid=OTHER)
    work(OTHER, 500)
    lines(second, lambda text: "scratch=0x1f3 " in text)
    work(UUID, 400)
    seen = lines(first, lambda text: "scratch=0x18f " in text)
    assert not [text for text in seen if "scratch=0x1f3 " in text]  # of the other device
    toys("stop", "--uuid", OTHER)
    assert second.communicate(timeout=SECONDS)[1] == "umdev: the device has gone\n"
    work(UUID)
    lines(first, lambda text: "scratch=0x0 " in text)


def test_a_reader_that_stands_still_loses_and_counts(toy: Umdev) -> None:
    """The device does a hundred thousand things meanwhile, and is stopped; nobody waits for the reader."""
    process = followed(toy, UUID, "--records", "64")
    process.send_signal(signal.SIGSTOP)
    for _ in range(10):
        work(count=10_000)
    process.send_signal(signal.SIGCONT)
    work(count=12345)
    lines(process, lambda text: "scratch=0x3038 " in text)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    found = re.fullmatch(r"umdev: (\d+) records came too fast and are lost; .*\n", errors)
    assert found is not None
    assert int(found[1]) > 0


def test_nothing_is_recorded_when_nobody_traces(toy: Umdev) -> None:
    process = followed(toy, UUID, "--count", "1")
    assert process.communicate(timeout=SECONDS)[1] == ""
    (host,) = toy.processes()

    def rings() -> list[str]:
        links = [entry.readlink() for entry in Path(f"/proc/{host}/fd").iterdir()]
        return [str(link) for link in links if "umdev trace" in str(link)]

    deadline = time.monotonic() + SECONDS
    while rings():  # the process hears of the reader's end a moment later
        assert time.monotonic() < deadline
        time.sleep(0.01)
    work(count=100)
    assert rings() == []


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ((OTHER,), 3, f"NotFound: {OTHER} is not running"),
        (("/nowhere",), 3, "NotFound: /nowhere is neither the UUID of a running device nor the socket of one"),
        ((UUID, "--count", "0"), 2, "BadParameter: Invalid value for '-n' / '--count'"),
    ],
)
def test_mistakes_have_names(toy: Umdev, words: tuple[str, ...], code: int, text: str) -> None:
    assert toy.fails(code, "trace", *words).startswith(text)


def test_a_client_that_asks_and_goes(toy: Umdev) -> None:
    """Whatever it sends, the process goes on."""
    (host,) = hosts.tidy(toy.runtime)
    for _ in range(40):  # more than may follow at once
        with control.connect(host.path, SECONDS) as connection:
            control.send(connection, msgspec.msgpack.encode(control.Trace(UUID, ["*"], 64)))
    work(count=10)
    assert toy.out("show", UUID).startswith(UUID)
