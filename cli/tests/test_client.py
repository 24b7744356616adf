"""Asking a running device: what add-on commands use, and the socket below it."""

from __future__ import annotations

import errno
import functools
import os
import signal
import socket
import struct
import subprocess
import time
import uuid
from typing import TYPE_CHECKING

import pytest
from umdev.errors import Disconnected, NotFound
from umdev_cli import client, control, output
from umdev_cli.failures import RemoteError
from umdev_cli.main import run

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Umdev

A, B = (str(uuid.UUID(int=number)) for number in (1, 2))
TOY = ("-p", "toys", "-t", "toy", "--bus", "tap")


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


def test_show_names_who_does_not_answer(
    toys: Umdev, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toys("start", "-u", A, *TOY)
    (pid,) = toys.processes()
    monkeypatch.setenv("UMDEV_RUNTIME_DIR", str(toys.runtime))
    monkeypatch.setattr(control, "call", functools.partial(control.call, timeout=0.1))
    os.kill(pid, signal.SIGSTOP)
    try:
        assert run(["show"]) == 0
    finally:
        os.kill(pid, signal.SIGCONT)
    said = capsys.readouterr()
    assert said.out == ""
    assert f"umdev: {A} does not answer: the process in " in said.err


def test_stop_meets_a_process_that_has_just_ended(
    toys: Umdev, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toys("start", "-u", A, *TOY)
    (pid,) = toys.processes()

    def too_late(_pid: int) -> int:
        raise ProcessLookupError(errno.ESRCH, "No such process")

    monkeypatch.setenv("UMDEV_RUNTIME_DIR", str(toys.runtime))
    monkeypatch.setattr(os, "pidfd_open", too_late)
    assert run(["stop", A]) == 3
    assert f"umdev: NotFound: {A} is not running: process {pid} has just ended\n" in capsys.readouterr().err


@pytest.mark.parametrize("words", [(A,), (A, "--query", "echo")])
def test_show_says_that_it_waits(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def ask(uuid: str, _query: str = "") -> None:
        deadline = time.monotonic() + 60
        while not said:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        raise NotFound(f"{uuid} is not running")

    monkeypatch.setattr(output, "PATIENCE", 0.01)
    monkeypatch.setattr(output, "note", said.append)
    monkeypatch.setattr(client, "show", ask)
    monkeypatch.setattr(client, "query", ask)
    assert run(["show", *words]) == 3
    assert said[0].startswith(f"asking {A} ... ")


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
