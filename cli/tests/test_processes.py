"""start, stop, show, list over real processes."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import stat
import struct
import subprocess
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from umdev.errors import Disconnected
from umdev_cli import control
from umdev_cli.failures import RemoteError

if TYPE_CHECKING:
    from .conftest import Umdev

A, B, C, D = (str(uuid.UUID(int=number)) for number in (1, 2, 3, 4))
TOY = ("-p", "toys", "-t", "toy", "--bus", "tap")
BOXED = ("-p", "box", "-t", "toy-in-box", "--bus", "tap")


def wait_until_dead(pid: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} lives")


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


def test_a_uuid_is_made_up_and_printed(toys: Umdev) -> None:
    first, argument = toys.out("start", *TOY).splitlines()
    assert str(uuid.UUID(first)) == first
    assert f"{first}.sock" in argument
    described = toys.json("start", *TOY, "--json")
    assert sorted(described) == ["device", "environment", "log", "parent", "pid", "socket", "type", "uuid"]
    assert len(toys.processes()) == 2
    assert {line.split()[0] for line in toys.out("list").splitlines()} == {first, described["uuid"]}


def test_a_host_is_detached_private_and_logs(toys: Umdev) -> None:
    described = toys.json("start", "-u", A, *TOY, "--json")
    pid, log = described["pid"], Path(described["log"])
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
    assert Path(f"/proc/{pid}/fd/1").readlink() == Path(f"/proc/{pid}/fd/2").readlink() == log
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    assert "the toy opens" in log.read_text()
    for path in [toys.runtime, *toys.runtime.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.suffix == ".sock", path


def test_a_host_without_descriptors_left_goes_on(toys: Umdev) -> None:
    """A client or a guest may make a device use up what its process has: that must not end the other devices."""
    described = toys.json("start", "-u", A, *TOY, "--json")
    pid, log = described["pid"], Path(described["log"])
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))  # fewer than it has open
    waiting = toys.spawn("show", A)
    deadline = time.monotonic() + 60
    while "control: no connection: [Errno 24]" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    out, _ = waiting.communicate(timeout=60)
    assert out.startswith(f"{A} toys toy")
    assert toys.processes() == [pid]
    toys("stop", "-u", A)


def test_a_host_that_can_start_no_thread_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("umdev_vfio_user", reason="umdev-vfio-user is not installed; pip install it")
    from umdev.device import Parent
    from umdev_cli import hosts
    from umdev_cli.host import Host

    claimed = hosts.claim_folder(tmp_path, "toys")
    assert claimed is not None
    folder, lock = claimed
    start = threading.Thread.start
    refused: list[threading.Thread] = []

    def refuse_once(thread: threading.Thread) -> None:
        if "_converse" in thread.name and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    with Host(tmp_path, folder, lock, Parent("toys", []), "vfio-user") as host:
        serving = threading.Thread(target=host.run, name="the host")
        serving.start()
        monkeypatch.setattr(threading.Thread, "start", refuse_once)
        try:
            with pytest.raises(Disconnected):
                control.call(folder, control.Show(A))
            with pytest.raises(RemoteError, match=A):
                control.call(folder, control.Show(A))
        finally:
            host.end()
            serving.join()
    assert len(refused) == 1


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


def test_devices_that_share_state_share_a_process(toys: Umdev) -> None:
    for identity in (A, B):
        toys("start", "-u", identity, *BOXED)
    (pid,) = toys.processes()
    assert [device["pid"] for device in toys.json("show", "--json")] == [pid, pid]
    toys("stop", "-u", A)
    assert toys.processes() == [pid]
    assert toys.out("list") == f"{B} box toy-in-box manual\n"
    toys("stop", "-u", B)
    assert (toys.left(), toys.processes()) == ([], [])


def test_many_starts_at_once_make_one_shared_process(toys: Umdev) -> None:
    commands = [toys.spawn("start", "-u", identity, *BOXED) for identity in (A, B, C)]
    assert [command.wait(60) for command in commands] == [0, 0, 0]
    assert len(toys.processes()) == 1
    assert len(toys.out("list").splitlines()) == 3


def test_start_while_the_shared_process_ends(toys: Umdev) -> None:
    toys("start", "-u", A, *BOXED)
    stopping = threading.Thread(target=toys, args=("stop", "-u", A))
    stopping.start()
    toys("start", "-u", B, *BOXED)
    stopping.join()
    assert toys.out("list") == f"{B} box toy-in-box manual\n"


@pytest.mark.parametrize("kind", [TOY, BOXED])
def test_after_kill_9_list_cleans_up(toys: Umdev, kind: tuple[str, ...]) -> None:
    toys("start", "-u", A, *kind)
    (pid,) = toys.processes()
    os.kill(pid, signal.SIGKILL)
    wait_until_dead(pid)
    assert f"{A}.sock" in toys.left()
    assert toys.out("list") == ""
    assert toys.left() == []
    toys("start", "-u", A, *kind)
    toys("stop", "-u", A)


def test_kill_9_spares_other_devices(toys: Umdev) -> None:
    for identity in (A, B):
        toys("start", "-u", identity, *TOY)
    doomed = toys.json("show", A, "--json")["pid"]
    os.kill(doomed, signal.SIGKILL)
    wait_until_dead(doomed)
    assert toys.out("list") == f"{B} toys toy manual\n"
    assert f"{B}.sock" in toys.left()
    assert toys.json("show", B, "--json")["state"] == "attached"


def test_sigterm_ends_a_host_cleanly(toys: Umdev) -> None:
    toys("start", "-u", A, *TOY)
    (pid,) = toys.processes()
    os.kill(pid, signal.SIGTERM)
    wait_until_dead(pid)
    assert toys.left() == []


def test_definitions_outlive_processes_and_runtime_directory(toys: Umdev) -> None:
    toys("define", "-u", A, "-p", "toys", "-t", "toy")
    toys("start", "-u", A, "--bus", "tap")
    (pid,) = toys.processes()
    shutil.rmtree(toys.runtime)
    os.kill(pid, signal.SIGKILL)
    wait_until_dead(pid)
    assert toys.out("list") == ""
    assert toys.out("list", "-d") == f"{A} toys toy manual\n"
    toys("start", "-u", A, "--bus", "tap")
    assert toys.out("list") == f"{A} toys toy manual (defined)\n"
    assert toys.out("list", "-d") == f"{A} toys toy manual (active)\n"
    toys("stop", "-u", A)
    assert toys.left() == []


def test_attributes_reach_the_device(toys: Umdev) -> None:
    details = toys.folder / "toy.json"
    details.write_text('{"mdev_type": "toy", "start": "manual", "attrs": [{"colour": "red"}]}')
    toys("start", "-u", A, "-p", "toys", "--jsonfile", str(details), "--bus", "tap")
    assert toys.json("show", A, "--json")["attributes"] == {"colour": "red"}


class TestFailures:
    def test_uuid_in_use(self, toys: Umdev) -> None:
        toys("start", "-u", A, *TOY)
        assert toys.fails(5, "start", "-u", A, *TOY).startswith(f"Conflict: {A} is running already: toy of toys")

    def test_a_model_that_raises(self, toys: Umdev) -> None:
        details = toys.folder / "toy.json"
        details.write_text('{"mdev_type": "toy", "attrs": [{"fail": "raise"}]}')
        done = toys("start", "-p", "toys", "--jsonfile", str(details), "--bus", "tap", code=1)
        first, *log = done.stderr.splitlines()
        assert first == "umdev: RuntimeError: the toy is broken"
        assert any("the toy opens" in line for line in log)
        assert (toys.left(), toys.processes()) == ([], [])

    def test_a_model_that_ends_the_process(self, toys: Umdev) -> None:
        details = toys.folder / "toy.json"
        details.write_text('{"mdev_type": "toy", "attrs": [{"fail": "exit"}]}')
        done = toys("start", "-p", "toys", "--jsonfile", str(details), "--bus", "tap", code=1)
        first, *log = done.stderr.splitlines()
        assert first == "umdev: HostFailed: the host process ended with exit code 7 before it was ready"
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


class TestClient:
    """What add-on commands use."""

    def query(self, toys: Umdev, call: str) -> str:
        program = f"from umdev_cli import client\nprint({call})"
        done = subprocess.run(
            [toys.command()[0], "-c", program], env=toys.environment, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() or done.stderr.splitlines()[-1]

    def test_queries_cross_processes(self, toys: Umdev) -> None:
        toys("start", "-u", A, *TOY)
        (pid,) = toys.processes()
        assert self.query(toys, f"client.query('{A}', 'echo', text='hello')['text']") == "hello"
        assert self.query(toys, f"len(client.query('{A}', 'echo', size=20 << 20)['bytes'])") == str(20 << 20)
        assert self.query(toys, f"client.query('{A}', 'echo')['pid']") == str(pid)
        assert "has no query 'ohce'; it has: echo" in self.query(toys, f"client.query('{A}', 'ohce')")
        assert "unexpected keyword argument 'volume'" in self.query(toys, f"client.query('{A}', 'echo', volume=1)")
        assert "is no UUID" in self.query(toys, "client.query('toy', 'echo')")

    def test_show_asks_a_query(self, toys: Umdev) -> None:
        toys("start", "-u", A, *TOY)
        (pid,) = toys.processes()
        answer = {"text": "", "bytes": "", "pid": pid, "attributes": {}}
        assert toys.json("show", A, "--query", "echo") == answer
        assert "\tQuery echo: Gives back what it gets.\n" in toys.out("show", "-v", A)
        assert toys.fails(3, "show", A, "--query", "ohce").startswith("NotFound: toy ")
        assert toys.fails(2, "show", "--query", "echo").startswith("UsageError: --query needs a UUID")


class TestControlSocket:
    """Whatever is said to it, the host answers or hangs up, and goes on."""

    NONSENSE = (
        b"",
        b"\x01",
        struct.pack("<I", 5) + b"ab",
        struct.pack("<I", 0xFFFFFFFF),
        struct.pack("<I", 0),
        struct.pack("<I", 4) + b"\xff\xff\xff\xff",
        struct.pack("<I", 1) + b"\x80",
    )

    def test_nonsense(self, toys: Umdev) -> None:
        toys("start", "-u", A, *TOY)
        folder = toys.runtime / "hosts" / A
        for said in self.NONSENSE:
            with control.connect(folder, 30) as connection:
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
        assert control.call(folder, control.Show(A))["uuid"] == A
        with pytest.raises(RemoteError, match="is not running in process") as caught:
            control.call(folder, control.Stop(B))
        assert (caught.value.name, caught.value.code) == ("NotFound", 3)

    def test_nobody_there(self, tmp_path: Path) -> None:
        with pytest.raises(Disconnected, match="no process answers"):
            control.call(tmp_path, control.Show(A))
        with pytest.raises(Disconnected, match="no process answers"):
            control.call(tmp_path / "nowhere", control.Show(A))


class TestServe:
    """QEMU's conventions for back ends: foreground, SIGTERM, --socket-path or --fd."""

    def serve(self, toys: Umdev, *arguments: str, **options: object) -> tuple[subprocess.Popen[str], str]:
        process = toys.spawn("serve", *arguments, "--bus", "tap", **options)
        return process, process.stdout.readline()

    def ended(self, process: subprocess.Popen[str]) -> int:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
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
        process.communicate(timeout=30)
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


@pytest.mark.parametrize("name", ["taken", "x" * 108])
def test_a_socket_path_that_exists_or_is_too_long(toys: Umdev, name: str) -> None:
    pytest.importorskip("umdev_vfio_user", reason="umdev-vfio-user is not installed; pip install it")
    path = toys.folder / name
    (toys.folder / "taken").write_text("mine")
    last = toys("serve", "toy", "--socket-path", str(path), code=5).stderr.splitlines()[-1]
    assert last.startswith(f"umdev: SocketPathError: {path} ")
    assert (toys.folder / "taken").read_text() == "mine"
    assert toys.left() == []


def test_what_is_not_of_dead_hosts_stays_in_the_runtime_directory(toys: Umdev) -> None:
    folder = toys.runtime / "of somebody"
    folder.mkdir(mode=0o700, parents=True)
    (toys.runtime / f"{C}.sock").write_text("no socket")
    with socket.socket(socket.AF_UNIX) as named, socket.socket(socket.AF_UNIX) as living:
        named.bind(str(toys.runtime / "mine.sock"))
        living.bind(str(toys.runtime / f"{A}.sock"))
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(toys.runtime / f"{B}.sock"))
        assert toys.out("list") == ""
    assert toys.left() == [f"{A}.sock", f"{C}.sock", "mine.sock", "of somebody"]
