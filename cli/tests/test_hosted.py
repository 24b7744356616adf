"""Devices of a command that serves them by itself are reached like others, and end with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from umdev.device import Parent
from umdev_cli import hosts
from umdev_cli.host import Host

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from .conftest import Umdev

HOLD = """
    import threading

    import click
    from umdev_cli.hosted import hosted

    @click.command
    @click.argument("devices", nargs=-1)
    def command(devices):
        over = threading.Event()
        with hosted(devices, "own", over.set) as made:
            click.echo(" ".join(str(device.context.uuid) for device in made))
            over.wait(60)
        click.echo("over")
"""
SLOW = """
    import sys
    import time

    from toy import Toy
    from umdev.device import DeviceType, Parent

    class Slow(Toy):
        def on_close(self):
            time.sleep(0.3)
            print("the slow one is closed", file=sys.stderr)

    parent = Parent("slow", [DeviceType("slow", "A slow toy", Slow)], capacity=4)
"""
A = "00000000-0000-0000-0000-00000000000a"
B = "00000000-0000-0000-0000-00000000000b"


@pytest.fixture
def holding(toys: Umdev) -> Umdev:
    toys.install("umdev-hold", {"umdev.commands": {"hold": "hold:command"}}, hold=HOLD)
    return toys


def hold(umdev: Umdev, *devices: str) -> tuple[subprocess.Popen[str], list[str]]:
    process = umdev.spawn("hold", *devices)
    return process, process.stdout.readline().split()


def test_list_show_query_and_stop_reach_them(holding: Umdev) -> None:
    holding("define", "-u", A, "-p", "toys", "-t", "toy")
    process, uuids = hold(holding, "toys/toy", A)
    assert uuids[1] == A
    assert {line.split()[0] for line in holding.out("list").splitlines()} == set(uuids)
    described = holding.json("show", uuids[0], "--json")
    assert (described["bus"], described["pid"], described["socket"]) == ("own", process.pid, None)
    assert holding.json("show", A, "--query", "echo", "--json")["pid"] == process.pid
    assert "Conflict" in holding.fails(5, "start", A)
    assert holding.out("stop", "-u", A) == ""
    assert process.communicate(timeout=60)[0] == "over\n"
    assert process.returncode == 0
    assert (holding.left(), holding.out("list")) == ([], "")


def test_two_devices_of_a_parent_that_shares_share_a_host(holding: Umdev) -> None:
    process, uuids = hold(holding, "toy-in-box", "box/toy-in-box")
    assert {holding.json("show", uuid, "--json")["pid"] for uuid in uuids} == {process.pid}
    assert "share one process" in holding.fails(5, "serve", "toy-in-box", "--bus", "tap")
    holding("stop", "-u", uuids[1])
    assert process.communicate(timeout=60)[0] == "over\n"
    assert holding.left() == []


def test_attributes_follow_the_type(holding: Umdev) -> None:
    _, (first, second) = hold(holding, "toys/toy,colour=red,, green", "toy,colour=blue")
    assert holding.json("show", first, "--json")["attributes"] == {"colour": "red, green"}
    assert holding.json("show", second, "--json")["attributes"] == {"colour": "blue"}
    holding("stop", "-u", first)


def test_what_is_not_there_leaves_nothing(holding: Umdev) -> None:
    assert holding.fails(3, "hold", "toy", "robot").startswith("NotFound: no parent offers a type 'robot'")
    assert holding.fails(3, "hold", "toy", B).startswith("NotFound: ")
    assert holding.fails(2, "hold", "toy,red").startswith("InvalidArgument: 'red' is no attribute: NAME=VALUE")
    assert holding.fails(2, "hold", "toy,size=1").startswith("InvalidArgument: type toy has no attribute 'size'")
    assert holding.left() == []


def test_the_command_ends_when_every_device_is_closed(holding: Umdev) -> None:
    """Those that end together close in threads of their own; nothing is cut short, and nobody's end is an error."""
    holding.install("umdev-slow", {"umdev.parents": {"slow": "slow:parent"}}, slow=SLOW)
    for _ in range(3):
        process = holding.spawn("hold", "slow/slow", "slow/slow", "toys/toy")
        holding("stop", "-u", process.stdout.readline().split()[2])
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert errors.count("the slow one is closed") == 2, errors
        assert "Traceback" not in errors
    assert holding.left() == []


def test_a_host_that_is_closed_may_be_ended(tmp_path: Path) -> None:
    class Driver:
        def serve(self) -> None: ...

    claimed = hosts.claim_folder(tmp_path, "toys")
    assert claimed is not None
    with Host(tmp_path, *claimed, Parent("toys", []), "own", driver=Driver()) as host:
        host.end()
        host.run()
    host.end()
