"""Devices for real guests, started by the commands that a person types; programs for the guest."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

PROGRAMS = Path(__file__).parent / "programs"
COMMAND_SECONDS = 60


@dataclass(frozen=True)
class Served:
    """A running device: its process, and what `umdev start` printed for QEMU, as the words that a shell makes of it."""

    uuid: str
    pid: int
    arguments: list[str]

    @property
    def descriptors(self) -> list[str]:
        """What its process has open."""
        return sorted(str(entry.readlink()) for entry in Path(f"/proc/{self.pid}/fd").iterdir())

    @property
    def map_lines(self) -> int:
        """Lines in its /proc/PID/maps."""
        return len(Path(f"/proc/{self.pid}/maps").read_text().splitlines())


class Command:
    """The `umdev` command; it finds its directories in the environment."""

    def __init__(self, runtime: Path) -> None:
        self.runtime = runtime
        self._started: list[str] = []

    def __call__(self, *words: str) -> str:
        """Run it and return what it printed."""
        program = Path(sysconfig.get_path("scripts")) / "umdev"
        done = subprocess.run([program, *words], check=False, capture_output=True, text=True, timeout=COMMAND_SECONDS)
        assert done.returncode == 0, f"umdev {shlex.join(words)}: {done.stdout}{done.stderr}{self.logs()}"
        return done.stdout

    def follow(self, *words: str) -> subprocess.Popen[str]:
        """`umdev trace`, while it runs."""
        program = Path(sysconfig.get_path("scripts")) / "umdev"
        return subprocess.Popen([program, "trace", *words], stdout=subprocess.PIPE, text=True)

    def start(self, parent: str, type_: str, *more: str) -> Served:
        """Start a new device of a type."""
        uuid, argument = self("start", "--parent", parent, "--type", type_, *more).splitlines()
        return self._served(uuid, argument)

    def start_defined(self, uuid: str) -> Served:
        """Start a device that has been defined."""
        return self._served(uuid, self("start", "--uuid", uuid))

    def show(self, uuid: str) -> dict:
        """What `umdev show` says of a device."""
        return json.loads(self("show", uuid, "--json"))

    def verify(self, lacks: frozenset[tuple[int, int]] = frozenset()) -> None:
        """See that the running devices have met nothing but `lacks` (regions and offsets), and logged no trouble."""
        for uuid in self._started:
            shown = self.show(uuid)
            assert {(entry["region"], entry["offset"]) for entry in shown["burn_down"]} == lacks
            assert [shown["counters"][name] for name in ("faulted", "illegal")] == [0, 0]
        assert not re.search(r"WARNING|ERROR|Traceback", self.logs()), self.logs()

    def stop_all(self) -> None:
        """Stop what was started."""
        while self._started:
            self("stop", "--uuid", self._started.pop())

    def logs(self) -> str:
        """What the devices' processes said."""
        return "".join(f"\n--- {log}\n{log.read_text()}" for log in self.runtime.glob("hosts/*/log"))

    def _served(self, uuid: str, argument: str) -> Served:
        self._started.append(uuid)
        return Served(uuid, self.show(uuid)["pid"], shlex.split(argument))


@pytest.fixture
def umdev(monkeypatch, tmp_path):
    """The command, with directories of its own.

    At the end the models have failed in nothing and lacked no register that a driver touched, neither they nor QEMU
    have complained, and after every device was stopped nothing is left.
    """
    with TemporaryDirectory(prefix="umdev-") as folder:  # short: the path of a socket has at most 107 bytes
        command = Command(Path(folder) / "run")
        monkeypatch.setenv("UMDEV_RUNTIME_DIR", str(command.runtime))
        monkeypatch.setenv("UMDEV_CONFIG_DIR", str(Path(folder) / "config"))
        try:
            yield command
            command.verify()
        finally:
            command.stop_all()
        assert list(command.runtime.rglob("*")) == []
    for log in tmp_path.glob("guest*/qemu.log"):
        assert [line for line in log.read_text().splitlines() if "warning:" not in line] == []


@pytest.fixture
def program():
    """Compile a C program for the guest: `program("edu_sysfs")` is the path of the executable."""
    from umdev_testkit.programs import static_program

    return lambda name: static_program(PROGRAMS / f"{name}.c", flags=["-Wconversion", "-Werror"])


@pytest.fixture
def facts():
    """Read the lines `name=value` that the guest programs print."""
    return lambda output: dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
