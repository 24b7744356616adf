"""Starting devices: which one is meant, what is printed, and what is said when it can't be."""

from __future__ import annotations

import stat
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Umdev

A, B, C, D = (str(uuid.UUID(int=number)) for number in (1, 2, 3, 4))
TOY = ("-p", "toys", "-t", "toy", "--bus", "tap")


def test_start_list_show_stop(toys: Umdev) -> None:
    out = toys.out("start", "-u", A, *TOY)
    assert out == f"-device 'tap,path={toys.runtime}/{A}.sock'\n"
    assert toys.out("list") == f"{A} toys toy manual\n"
    (pid,) = toys.processes()
    described = toys.json("show", A, "--json")
    assert (described["pid"], described["parent"], described["type"]) == (pid, "toys", "toy")
    assert described["services"]["interrupt"] == "a toy's"
    text = toys.out("show", "-v", A)
    assert text.startswith(f"{A} toys toy [00ff]: 1234:0001 (rev 00)\n\tBus: tap, attached, process {pid}\n")
    assert "\tRegion 0: Memory at 00000000 (32-bit, non-prefetchable) [size=4K]\n" in text
    assert "\tService trap[0]: a toy's\n" in text
    assert toys.out("show") == text.splitlines(keepends=True)[0]
    assert toys.out("stop", "-u", A) == ""
    assert (toys.left(), toys.processes(), toys.out("list")) == ([], [], "")


def test_start_by_a_word(toys: Umdev) -> None:
    tap = ("--bus", "tap")
    first, argument = toys.out("start", "toy", *tap).splitlines()
    assert f"{first}.sock" in argument
    assert toys.out("start", "toys/toy", "-u", A, *tap) == f"-device 'tap,path={toys.runtime}/{A}.sock'\n"
    toys("define", "-u", B, "-p", "box", "-t", "toy-in-box")
    assert toys.out("start", B.upper(), *tap) == f"-device 'tap,path={toys.runtime}/{B}.sock'\n"
    assert {line.split()[0] for line in toys.out("list").splitlines()} == {first, A, B}
    assert "leave out --uuid" in toys.fails(2, "start", A, "-u", B)
    assert "leave out --type" in toys.fails(2, "start", "toy", "-t", "toy")
    assert toys.fails(3, "start", "robot").startswith("NotFound: no parent offers a type 'robot'")


def test_attributes_of_one_start(toys: Umdev) -> None:
    toys("define", "-u", A, "-p", "toys", "-t", "toy")
    toys("modify", "-u", A, "--addattr", "colour", "--value", "red")
    toys("start", A, "--bus", "tap", "--attr", "colour=blue=green")
    assert toys.json("show", A, "--json")["attributes"] == {"colour": "blue=green"}
    assert toys.json("list", "-d", "-u", A, "--json")["attrs"] == [{"colour": "red"}]  # it was for this start
    toys("start", "toy", "-u", B, "--bus", "tap", "--attr=colour=", "--attr", "fail=no")
    assert toys.json("show", B, "--json")["attributes"] == {"colour": "", "fail": "no"}
    assert "'red' is no attribute: NAME=VALUE" in toys.fails(2, "start", "toy", "--attr", "red")
    assert "given twice" in toys.fails(2, "start", "toy", "--attr", "colour=1", "--attr", "colour=2")
    assert "no attribute 'size'; it has: colour, fail" in toys.fails(2, "serve", "toy", "--attr", "size=1")


def test_start_what_is_marked_auto(toys: Umdev) -> None:
    for identity, parent, type_, *mark in (
        (A, "toys", "toy", "--auto"), (B, "box", "toy-in-box", "--auto"), (C, "toys", "big"), (D, "toys", "toy", "-a")
    ):  # fmt: skip
        toys("define", "-u", identity, "-p", parent, "-t", type_, *mark)
    toys("modify", A, "--addattr", "fail", "--value", "raise")
    toys("start", D, "--bus", "tap")
    done = toys("start", "--auto", "--bus", "tap", code=1)
    assert done.stdout == f"{B}\n-device 'tap,path={toys.runtime}/{B}.sock'\n"
    assert done.stderr == f"umdev: {A} of toys: RuntimeError: the toy is broken\n"
    toys("modify", A, "--delattr")
    assert [row["uuid"] for row in toys.json("start", "-a", "--json", "--bus", "tap")] == [A]
    assert toys.out("start", "--auto", "--bus", "tap") == ""  # all of them run
    assert "--auto excludes" in toys.fails(2, "start", A, "--auto")


def test_a_damaged_definition_keeps_no_other_from_starting(toys: Umdev) -> None:
    for identity in (A, B):
        toys("define", "-u", identity, "-p", "toys", "-t", "toy", "--auto")
    (toys.config / "toys" / A).write_text("{")
    done = toys("start", "--auto", "--bus", "tap", code=1)
    assert done.stdout == f"{B}\n-device 'tap,path={toys.runtime}/{B}.sock'\n"
    assert done.stderr.startswith(f"umdev: InvalidArgument: {toys.config}/toys/{A} is no definition: ")


def test_a_uuid_is_made_up_and_printed(toys: Umdev) -> None:
    first, argument = toys.out("start", *TOY).splitlines()
    assert str(uuid.UUID(first)) == first
    assert f"{first}.sock" in argument
    described = toys.json("start", *TOY, "--json")
    assert sorted(described) == ["device", "environment", "log", "parent", "pid", "socket", "type", "uuid"]
    assert len(toys.processes()) == 2
    assert {line.split()[0] for line in toys.out("list").splitlines()} == {first, described["uuid"]}


def test_types_count_what_runs(toys: Umdev) -> None:
    def available() -> dict[str, int]:
        (parents,) = toys.json("types", "-p", "toys", "--dumpjson")
        return {name: facts["available_instances"] for each in parents["toys"] for name, facts in each.items()}

    assert available() == {"toy": 4, "big": 1}
    toys("start", "-u", A, *TOY)
    toys("start", "-u", B, *TOY)
    assert available() == {"toy": 2, "big": 0}
    text = toys.fails(5, "start", "-p", "toys", "-t", "big", "--bus", "tap")
    assert text.startswith("NoInstanceLeft: toys has no instance of big left: it takes 3 of 4 units, 2 are in use; ")
    assert A in text
    assert B in text
    assert len(toys.processes()) == 2
    toys("stop", "-u", A)
    assert available() == {"toy": 3, "big": 1}


def test_attributes_reach_the_device(toys: Umdev) -> None:
    details = toys.folder / "toy.json"
    details.write_text('{"mdev_type": "toy", "start": "manual", "attrs": [{"colour": "red"}]}')
    toys("start", "-u", A, "-p", "toys", "--jsonfile", str(details), "--bus", "tap")
    assert toys.json("show", A, "--json")["attributes"] == {"colour": "red"}


class TestFailures:
    def test_uuid_in_use(self, toys: Umdev) -> None:
        toys("start", "-u", A, *TOY)
        assert toys.fails(5, "start", "-u", A, *TOY).startswith(f"Conflict: {A} is running already: toy of toys")

    @pytest.mark.parametrize(
        ("how", "told"),
        [
            ("raise", "RuntimeError: the toy is broken"),
            ("exit", "HostFailed: the host process ended with exit code 7 before it was ready"),
        ],
    )
    def test_a_model_that_raises_or_ends_the_process(self, toys: Umdev, how: str, told: str) -> None:
        details = toys.folder / "toy.json"
        details.write_text(f'{{"mdev_type": "toy", "attrs": [{{"fail": "{how}"}}]}}')
        done = toys("start", "-p", "toys", "--jsonfile", str(details), "--bus", "tap", code=1)
        first, *log = done.stderr.splitlines()
        assert first == f"umdev: {told}"
        assert any("the toy opens" in line for line in log)
        assert (toys.left(), toys.processes()) == ([], [])

    def test_a_bus_that_works_in_one_process_only(self, toys: Umdev) -> None:
        text = toys.fails(4, "start", "-p", "toys", "-t", "toy", "--bus", "loopback")
        assert text.startswith("NotSupported: the bus loopback works inside one process only")
        assert toys.left() == []

    @pytest.mark.parametrize("verb", [("show", A), ("stop", "-u", A)])
    def test_not_running(self, toys: Umdev, verb: tuple[str, ...]) -> None:
        assert toys.fails(3, *verb) == f"NotFound: {A} is not running"

    def test_a_device_of_another_program(self, toys: Umdev) -> None:
        program = (
            "import sys; from umdev.instances import InstanceClaims; "
            f"claim = InstanceClaims().claim('toys', 'toy', '{A}', 1, 4); print(flush=True); sys.stdin.read()"
        )
        holder = subprocess.Popen(
            [toys.command()[0], "-c", program], env=toys.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            holder.stdout.readline()
            assert toys.out("list") == f"{A} toys toy manual\n"
            said = f"{A} lives in process {holder.pid}, which was not started by umdev start or umdev serve"
            assert toys.fails(4, "stop", "-u", A) == f"NotSupported: {said}"
            toys("start", "-u", B, *TOY)
            shown = toys("show")
            assert (shown.stdout, shown.stderr) == (f"{B} toys toy [00ff]: 1234:0001 (rev 00)\n", f"umdev: {said}\n")
        finally:
            holder.communicate()

    def test_a_runtime_directory_that_others_can_write(self, toys: Umdev) -> None:
        toys.runtime.mkdir()
        toys.runtime.chmod(0o777)
        assert toys.fails(1, "list").startswith(f"StateError: {toys.runtime} can be written by others")


def test_over_vfio_user(toys: Umdev) -> None:
    pytest.importorskip("umdev_vfio_user", reason="umdev-vfio-user is not installed; pip install it")
    out = toys.out("start", "-u", A, "-p", "toys", "-t", "toy")
    path = f"{toys.runtime}/{A}.sock"
    assert out == f'-device \'{{"driver":"vfio-user-pci","socket":{{"path":"{path}","type":"unix"}}}}\'\n'
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    described = toys.json("show", A, "--json")
    assert described["bus"] == "vfio-user"
    assert {"trap[0]", "interrupt"} <= set(described["services"])
    toys("stop", "-u", A)
    assert toys.left() == []
