"""`umdev serve`: a device in the foreground."""

from __future__ import annotations

import signal
import uuid
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess

    from .conftest import Umdev

A, B = (str(uuid.UUID(int=number)) for number in (1, 2))
TOY = ("-p", "toys", "-t", "toy", "--bus", "tap")
BOXED = ("-p", "box", "-t", "toy-in-box", "--bus", "tap")


class TestServe:
    """QEMU's conventions for back ends: foreground, SIGTERM, --socket-path or --fd."""

    def serve(self, toys: Umdev, *arguments: str, **options: object) -> tuple[subprocess.Popen[str], str]:
        process = toys.spawn("serve", *arguments, "--bus", "tap", **options)
        return process, process.stdout.readline()

    def ended(self, process: subprocess.Popen[str]) -> int:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        return process.returncode

    def test_by_type(self, toys: Umdev) -> None:
        path = toys.folder / "toy.sock"
        process, line = self.serve(toys, "toy", "--socket-path", str(path), "-u", A)
        assert line == f"-device 'tap,path={path}'\n"
        assert path.is_socket()
        assert toys.out("list") == f"{A} toys toy manual\n"
        assert toys.json("show", A, "--json")["pid"] == process.pid
        assert self.ended(process) == 0
        assert not path.exists()
        assert toys.left() == []

    def test_a_path_is_told_for_every_folder(self, toys: Umdev) -> None:
        process, _ = self.serve(toys, "toy", "--socket-path", "toy.sock", "-u", A, cwd=toys.folder)
        assert toys.json("show", A, "--json")["socket"] == str(toys.folder / "toy.sock")
        assert self.ended(process) == 0

    def test_options_of_the_bus(self, toys: Umdev) -> None:
        process, line = self.serve(toys, "toy", "--water", "cold")
        assert line.endswith(",water=cold'\n")
        assert self.ended(process) == 0
        process, line = self.serve(toys, "toy", "--hot-water")
        assert line.endswith(",water=hot'\n")
        assert self.ended(process) == 0
        assert ",water=cold" in toys.out("start", "-u", A, *TOY, "--water", "cold")
        toys("stop", "-u", A)
        assert "No such option '--water'" in toys.fails(2, "serve", "toy", "--water", "cold", "--bus", "vfio-user")
        assert "How it comes." in toys.out("serve", "--bus", "tap", "--help")
        assert "How it comes." not in toys.out("serve", "--help")

    def test_by_definition_stopped_by_command(self, toys: Umdev) -> None:
        toys("define", "-u", A, "-p", "box", "-t", "toy-in-box")
        process, line = self.serve(toys, A)
        assert line == f"-device 'tap,path={toys.runtime}/{A}.sock'\n"
        toys("start", "-u", B, *BOXED)  # into the process that serves the box already
        assert toys.json("show", B, "--json")["pid"] == process.pid
        assert toys.fails(5, "serve", "toy-in-box", "--bus", "tap").startswith(
            "Conflict: devices of box share one process"
        )
        toys("stop", "-u", B)
        toys("stop", "-u", A)
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert toys.left() == []

    def test_unknown_type(self, toys: Umdev) -> None:
        text = toys.fails(3, "serve", "robot", UMDEV_DISABLE_PLUGINS="umdev-[!t]*")
        assert text == "NotFound: no parent offers a type 'robot'; there are: big, toy, toy-in-box"

    def test_path_and_descriptor(self, toys: Umdev) -> None:
        assert "exclude each other" in toys.fails(2, "serve", "toy", "--socket-path", "x", "--fd", "3")

    @pytest.mark.parametrize("descriptor", ["3", "5", "7", "99"])
    def test_a_descriptor_that_is_not_open(self, toys: Umdev, descriptor: str) -> None:
        said = toys.fails(2, "serve", "toy", "--fd", descriptor, "--bus", "tap")
        assert said.startswith(f"InvalidArgument: --fd {descriptor} is not open")
        assert toys.left() == []


@pytest.mark.parametrize("name", ["taken", "x" * 108])
def test_a_socket_path_that_exists_or_is_too_long(toys: Umdev, name: str) -> None:
    pytest.importorskip("umdev_vfio_user", reason="umdev-vfio-user is not installed; pip install it")
    path = toys.folder / name
    (toys.folder / "taken").write_text("mine")
    last = toys("serve", "toy", "--socket-path", str(path), code=5).stderr.splitlines()[-1]
    assert last.startswith(f"umdev: SocketPathError: {path} ")
    assert (toys.folder / "taken").read_text() == "mine"
    assert toys.left() == []
