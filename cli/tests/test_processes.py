"""The processes that host devices: who shares one, what they leave, and what they survive."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import stat
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

A, B, C = (str(uuid.UUID(int=number)) for number in (1, 2, 3))
TOY = ("-p", "toys", "-t", "toy", "--bus", "tap")
BOXED = ("-p", "box", "-t", "toy-in-box", "--bus", "tap")


def wait_until_dead(pid: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} lives")


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
