"""Runs `umdev` as its users do: a process, with directories of its own and small plugins of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

TOY = """
    import logging
    import os
    import sys
    import threading

    from umdev.device import Block, Device, DeviceType, MemoryBar, Parent, PciId, Register, RegisterArray, query
    from umdev.bus import Attachment, ServeOption, hookimpl

    class Registers(Block["Toy"]):
        scratch = Register(0)
        cells = RegisterArray(0x10, Register, count=3)

    class Toy(Device):
        pci = PciId(vendor=0x1234, device=0x0001, class_code=0x00FF00)
        bar0 = MemoryBar(0, Registers, size=4096)

        def on_open(self):
            print("the toy opens", file=sys.stderr)
            if self.context.attributes.get("fail") == "raise":
                raise RuntimeError("the toy is broken")
            if self.context.attributes.get("fail") == "exit":
                os._exit(7)

        @query
        def echo(self, text="", size=0):
            \"\"\"Gives back what it gets.\"\"\"
            return {"text": text, "bytes": b"x" * size, "pid": os.getpid(), "attributes": dict(self.context.attributes)}

        @query
        def peek(self):
            \"\"\"Accesses to its configuration space: the command register, BAR 0, and a place without register.\"\"\"
            def read():
                for offset in (4, 0x10, 0x14):
                    self.native.read(7, offset, 2)

            threading.Thread(target=read).start()  # a query has the device lock, which such a read takes

        @query
        def grumble(self, count=1):
            \"\"\"Logs so often.\"\"\"
            for number in range(count):
                logging.getLogger("toy").error("too hot: %d", number)

        @query
        def fill(self):
            \"\"\"Accesses to each cell.\"\"\"
            for offset in (0x10, 0x14, 0x18):
                self.native.write(0, offset, bytes(4))

        @query
        def steps(self, count=1):
            \"\"\"Steps of its engine, with an access between.\"\"\"
            for number in range(count):
                self.trace.tell("engine", "STEP", number, address=64, length=8)
                self.native.write(0, 0, number.to_bytes(4, "little"))

    WORDS = {"colour": "of the toy", "fail": "raise or exit"}
    alone = Parent("toys", [
        DeviceType("toy", "A toy", Toy, "to play with", attributes=WORDS),
        DeviceType("big", "A big toy", Toy, units=3),
    ], capacity=4)
    together = Parent("box", [DeviceType("toy-in-box", "A toy in a box", Toy)], capacity=4, shared_process=True)

    class Bound:
        mechanism = "a toy's"
        def close(self): ...

    class Server:
        \"\"\"A bus that serves nobody, but listens.\"\"\"

        def __init__(self, device, path, descriptor, water=None):
            import socket
            self.attachment = Attachment(device, "tap")
            self.attachment.attach()
            self.socket_path = path
            self.listener = socket.socket(socket.AF_UNIX) if path else None
            if path:
                self.listener.bind(path)
            self.stopped = threading.Event()
            self.device_argument = f"tap,path={path}" + (f",water={water}" if water else "")

        def run(self):
            self.stopped.wait()

        def stop(self):
            self.stopped.set()

        def close(self):
            self.attachment.detach()
            if self.socket_path:
                self.listener.close()
                os.unlink(self.socket_path)

    class Tap:
        name = "tap"
        preference = 0

        @hookimpl
        def umdev_trap_region(self): return Bound()

        @hookimpl
        def umdev_connect_interrupts(self): return Bound()

        serve_options = (ServeOption("water", "How it comes."), ServeOption("hot-water", "Hot.", flag=True))

        def serve(self, device, *, path=None, descriptor=None, water=None, hot_water=False):
            return Server(device, path, descriptor, "hot" if hot_water else water)

        def doctor(self):
            from umdev.plugins import Row
            yield Row("trap", "tap water", None, "cold", "wait a little")

    bus = Tap()
"""

PATIENCE = re.compile(r"^umdev: .* \.\.\. \d+ s\n", re.MULTILINE)
"""Signs of life, which come when the machine is slow."""


class Umdev:
    """The command with its own runtime and configuration directories, plugins and environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime = folder / "run"
        self.config = folder / "etc"
        self.site = folder / "site"
        self.site.mkdir()
        self.spawned: list[subprocess.Popen[str]] = []
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("UMDEV_")},
            "UMDEV_RUNTIME_DIR": str(self.runtime),
            "UMDEV_CONFIG_DIR": str(self.config),
            "UMDEV_DISABLE_PLUGINS": "hypervisors/*",  # what is installed here shall not show; tests bring their own
            "PYTHONPATH": str(self.site),
        }

    def install(self, distribution: str, entry_points: dict[str, dict[str, str]], **modules: str) -> None:
        """Make a real distribution: group -> name -> target, and module name -> source."""
        info = self.site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = []
        for group, points in entry_points.items():
            lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        for name, source in modules.items():
            (self.site / f"{name}.py").write_text(textwrap.dedent(source))

    def install_toys(self) -> None:
        """Parents `toys` (a process each) and `box` (one process), bus `tap`."""
        self.install(
            "umdev-toys",
            {"umdev.parents": {"toys": "toy:alone", "box": "toy:together"}, "umdev.buses": {"tap": "toy:bus"}},
            toy=TOY,
        )

    def command(self, *arguments: str) -> list[str]:
        """The words of a command line."""
        return [sys.executable, "-m", "umdev_cli.main", *arguments]

    def __call__(self, *arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end; it must exit with `code`."""
        done = subprocess.run(
            self.command(*arguments),
            env={**self.environment, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        done.stderr = PATIENCE.sub("", done.stderr)
        return done

    def out(self, *arguments: str, **environment: str) -> str:
        """What it prints when all is well: then stderr is empty."""
        done = self(*arguments, **environment)
        assert done.stderr == ""
        return done.stdout

    def spawn(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start it and let it run; what a failed test leaves is killed."""
        process = subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        self.spawned.append(process)
        return process

    def json(self, *arguments: str) -> Any:
        """What it prints as JSON."""
        return json.loads(self.out(*arguments))

    def fails(self, code: int, *arguments: str, **environment: str) -> str:
        """The one line on stderr of a failure with this exit code."""
        lines = self(*arguments, code=code, **environment).stderr.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("umdev: ")
        return lines[0].removeprefix("umdev: ")

    def left(self) -> list[str]:
        """What there is in the runtime directory."""
        return sorted(str(path.relative_to(self.runtime)) for path in self.runtime.rglob("*"))

    def processes(self) -> list[int]:
        """Host processes of this runtime directory, by what they were started with."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    alive = (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
                except OSError:
                    continue
                if alive and b"umdev_cli.host" in words and str(self.runtime).encode() in b"".join(words):
                    found.append(int(entry.name))
        return found

    def end(self) -> None:
        """Kill what a failed test left running."""
        for process in self.spawned:
            process.kill()
            process.communicate()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.01)


@pytest.fixture
def umdev() -> Iterator[Umdev]:
    """`umdev` with nothing but what is installed. Its folder has a short path: sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="umdev-test-"))
    command = Umdev(folder)
    try:
        yield command
    finally:
        command.end()
        shutil.rmtree(folder)


@pytest.fixture
def toys(umdev: Umdev) -> Umdev:
    """`umdev` with the toys installed."""
    umdev.install_toys()
    return umdev
