"""Real Linux guests: Debian's stock kernel in stock QEMU, with the devices, files, modules and script of one test.

No pytest in here: `umdev demo --guest linux` uses it as well as the fixture `linux_guest`.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import socket
import subprocess
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from umdev.errors import StateError

from umdev_testkit import initramfs, kernels, qemu
from umdev_testkit.affinity import one_cpu
from umdev_testkit.channel import Channel
from umdev_testkit.errors import GuestDied, GuestFailed, GuestTimedOut, ScriptFailed
from umdev_testkit.qmp import Monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

__all__ = ["Completed", "Guest", "GuestConfig", "GuestRun", "run_guest"]

_OWN_MODULES = ("virtio_pci", "virtio_console")  # for the command port; built into newer kernels
_TAIL = 80  # lines of the logs in an error's text: a panic with its call trace fits
_GRACE = 20.0  # seconds that a guest gets to power off, and its own limit lies beyond ours
_POLL = 0.02  # seconds between two looks at the console's file


@dataclass(frozen=True)
class GuestConfig:
    """What a guest is made of.

    Attributes:
        devices: sockets of vfio-user servers, which must listen already; the first becomes 0000:00:01.0, the next
            0000:00:02.0, and so on (at most 29).
        files: absolute paths in the guest to their content; a host path keeps its permission bits, bytes are made
            executable.
        modules: kernel modules to load before anything runs, with parameters after a space; dependencies come by
            themselves.
        kernel: "cloud" (6.12, boots fastest), "full" (6.12 with every driver) or "bookworm" (6.1 with every driver).
        memory: MiB. cpus: virtual processors.
        timeout: seconds that the guest may live, boot included; then it is killed.
        accel: QEMU's accelerator: "tcg" works everywhere, "kvm" needs /dev/kvm.
        append: more kernel command line, after "console=ttyS0 quiet panic=-1".
        cpu, machine: QEMU's processor model, and options for its q35 machine ("kernel-irqchip=off").
        qemu_args: more arguments for QEMU.
        shared_memory: whether the memory is a memfd that vfio-user servers may map; else they send messages for it.
        environment: variables for QEMU's process ("LD_PRELOAD").
        one_processor: whether QEMU's threads share one of the host's processors, so that no two run at the same time.
    """

    devices: Sequence[str | os.PathLike[str]] = ()
    files: Mapping[str, bytes | Path] = field(default_factory=dict)
    modules: Sequence[str] = ()
    kernel: str = "cloud"
    memory: int = 256
    cpus: int = 1
    timeout: float = 120.0
    accel: str = "tcg"
    append: str = ""
    cpu: str = "max"
    machine: str = ""
    qemu_args: Sequence[str] = ()
    shared_memory: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    one_processor: bool = False

    def program(self) -> qemu.Qemu:
        """Return the QEMU to start. Raises: as `qemu.find`."""
        return qemu.find()

    def arguments(self, image: Path, initrd: Path) -> list[str]:
        """Return QEMU's arguments, apart from its channels to this process."""
        machine = "q35" + (",memory-backend=m" if self.shared_memory else "")
        arguments = [
            "-no-user-config", "-nodefaults", "-display", "none", "-vga", "none",
            "-machine", machine + (f",{self.machine}" if self.machine else ""),
            "-accel", self.accel, "-cpu", self.cpu, "-smp", str(self.cpus), "-m", f"{self.memory}M",
            "-action", "reboot=shutdown",  # a guest that reboots by itself has crashed
            "-kernel", str(image), "-initrd", str(initrd),
            "-append", f"console=ttyS0 quiet panic=-1 {self.append}".strip(),
        ]  # fmt: skip
        if self.shared_memory:
            arguments += ["-object", f"memory-backend-memfd,id=m,size={self.memory}M,share=on"]
        for number, path in enumerate(self.devices):
            address = {"path": os.fspath(path), "type": "unix"}
            device = {"driver": "vfio-user-pci", "id": f"device{number}", "addr": f"{number + 1:x}", "socket": address}
            arguments += ["-device", json.dumps(device)]
        return [*arguments, *self.qemu_args]


@dataclass(frozen=True)
class Completed:
    """A command that ended in the guest: its exit status, and what it printed (stdout and stderr together)."""

    status: int
    output: bytes


@dataclass(frozen=True)
class GuestRun:
    """A guest's whole life: its script's exit status and output, the console (kernel messages) and `dmesg`."""

    status: int
    output: str
    console: str
    dmesg: str


class Guest:
    """A guest that runs commands as they are asked for.

    A context manager: on exit the guest is killed if it still runs. Not for use by several threads at once. `folder`
    keeps `console.log` (ttyS0), `qemu.log` (QEMU's own messages), `commands.log` (what commands print, as it comes) and
    `command.json`. When a method raises `GuestTimedOut`, the guest has been killed.
    """

    def __init__(self, config: GuestConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._monitor: Monitor | None = None
        self._monitor_socket: socket.socket | None = None
        self._watchdog: threading.Timer | None = None
        self._expired = False
        self._deadline = 0.0

    def start(self) -> Self:
        """Boot, and wait until the guest takes commands.

        Raises:
            FetchError: QEMU, busybox or the kernel cannot be fetched.
            QemuUnusable: `$UMDEV_QEMU` will not do.
            ModuleMissing: the kernel has no such module.
            GuestFailed: it did not boot (the console's tail is in the text), or a module could not be loaded.
            StateError: it was started already.
        """
        if self._process is not None:
            raise StateError("the guest was started already: make a new one")
        program = self.config.program()
        kernel = kernels.kernel(self.config.kernel)
        modules = kernel.modules((*_OWN_MODULES, *self.config.modules))
        self.folder.mkdir(parents=True, exist_ok=True)
        initrd = self.folder / "initramfs.cpio"
        initrd.write_bytes(initramfs.build(modules, self.config.files, self.config.timeout + _GRACE))
        try:
            self._launch(program, self.config.arguments(kernel.image, initrd))
            self._await_boot()
        except BaseException:
            self.close()
            raise
        initrd.unlink()
        return self

    def close(self) -> None:
        """Kill QEMU if it still runs, and release everything; harmless when there is nothing to release."""
        if self._watchdog:
            self._watchdog.cancel()
            self._watchdog.join()
        if self._process:
            self._process.kill()
            self._process.wait()
        if self._monitor:
            self._monitor.close()
            self._monitor = None
        if self._monitor_socket:
            self._monitor_socket.close()
        if self._channel:
            self._channel.close()

    def __enter__(self) -> Self:
        return self if self._process else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._running().pid

    @property
    def console(self) -> str:
        """All that came out of ttyS0 so far, over all boots; with `append="loglevel=7"` every kernel message."""
        return _text(self.folder / "console.log")

    @property
    def dmesg(self) -> str:
        """The kernel's messages since it booted."""
        return self.run("dmesg")

    @property
    def qmp(self) -> Monitor:
        """QEMU's monitor, connected at its first use."""
        self._running()
        if self._monitor is None:
            assert self._monitor_socket is not None
            self._monitor = Monitor(self._monitor_socket)
        return self._monitor

    def run(self, script: str, *, check: bool = True, timeout: float | None = None) -> str:
        """Run a shell script in the guest (busybox sh) and return what it printed, stdout and stderr together.

        Raises:
            ScriptFailed: it ended with another status than 0 (`check=False`: not raised).
            GuestTimedOut: it took longer than `timeout` seconds, or the guest's own time is over.
            GuestDied: QEMU ended.
        """
        done = self.execute(script, timeout=timeout)
        output = done.output.decode(errors="replace")
        if check and done.status:
            raise self.script_failed(done.status, output)
        return output

    def execute(self, script: str, *, timeout: float | None = None, silence: float | None = None) -> Completed:
        """Run a shell script in the guest and return its exit status and output, byte for byte.

        `silence`: seconds without output after which it counts as hung.

        Raises:
            GuestTimedOut: as for `run`, or it hung.
            GuestDied: QEMU ended.
        """
        with self._waiting("a command"):
            return Completed(*self._open_channel().run(script.encode(), self._left(timeout), silence))

    def read_file(self, path: str) -> bytes:
        """Return the content of a file of the guest, byte for byte.

        Raises:
            ScriptFailed: it cannot be read.
        """
        done = self.execute(f"cat < {shlex.quote(path)}")
        if done.status:
            raise self.script_failed(done.status, done.output.decode(errors="replace"))
        return done.output

    def write_file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Create or replace a file of the guest; its folder is made if need be.

        Raises:
            ValueError: the path has a line break, or space at an end.
            ScriptFailed: it cannot be written.
        """
        if "\n" in path or path != path.strip():
            raise ValueError(f"{path!r} cannot be named over the command port")
        name = shlex.quote(path)
        self.run(f'mkdir -p "$(dirname {name})" && : > {name} && chmod {mode:o} {name}')
        with self._waiting(f"writing {path}"):
            status = self._open_channel().append(path, content, self._left(None))
        if status:
            raise self.script_failed(status, f"cannot write {path}")

    def wait_for(self, text: str, *, timeout: float | None = None) -> None:
        """Wait until the console shows `text`; it counts if it is there already.

        Raises:
            GuestTimedOut: it did not come in time.
            GuestDied: QEMU ended before it came.
        """
        with self._waiting(f"{text!r} on the console"):
            deadline = time.monotonic() + self._left(timeout)
            while text not in self.console:
                if self._running().poll() is not None and text not in self.console:
                    raise EOFError("QEMU has ended")
                if time.monotonic() >= deadline:
                    raise TimeoutError
                time.sleep(_POLL)

    def reboot(self) -> None:
        """Reboot from within, as `reboot` does, and wait until the guest takes commands again.

        Files written since boot are gone, those of the configuration are back; modules are loaded anew.
        """
        self._restart(lambda: self._open_channel().order("reboot"))

    def reset(self) -> None:
        """Reset the machine from outside, as its button does, and wait until the guest takes commands again."""
        self._restart(lambda: self.qmp.execute("system_reset"))

    def poweroff(self) -> None:
        """Power off from within and wait until QEMU has ended.

        Raises:
            GuestTimedOut: it did not end; it has been killed.
            GuestDied: QEMU ended with another status than 0.
        """
        with self._waiting("the power-off"):
            self._open_channel().order("poweroff")
            try:
                status = self._running().wait(min(self._left(None), _GRACE))
            except subprocess.TimeoutExpired as error:
                raise TimeoutError from error
            if status:
                raise EOFError("QEMU has not ended well")
        self.close()

    def kill(self) -> None:
        """Kill QEMU (SIGKILL), as a crash would end it."""
        process = self._running()
        process.kill()
        process.wait()

    def tail(self) -> str:
        """Return the ends of the console's and QEMU's logs, for an error's text."""
        parts = []
        for title, name in (("console", "console.log"), ("QEMU", "qemu.log")):
            if lines := _text(self.folder / name).splitlines()[-_TAIL:]:
                parts.append(f"--- {title} ({self.folder / name}), last lines\n" + "\n".join(lines))
        return "\n".join(parts)

    def _launch(self, program: qemu.Qemu, arguments: list[str]) -> None:
        ours, theirs = zip(*(socket.socketpair() for _ in range(2)), strict=True)
        agent, monitor = (end.fileno() for end in theirs)
        command = [
            *program.command, *arguments,
            "-chardev", f"file,id=console,path={_escaped(self.folder / 'console.log')}", "-serial", "chardev:console",
            "-device", "virtio-serial-pci,addr=1e",
            "-chardev", f"socket,id=agent,fd={agent}", "-device", "virtserialport,chardev=agent,name=umdev.agent",
            "-chardev", f"socket,id=monitor,fd={monitor}", "-qmp", "chardev:monitor",
        ]  # fmt: skip
        (self.folder / "command.json").write_text(json.dumps(command, indent=1))
        self._channel = Channel(ours[0], self.folder / "commands.log")
        self._monitor_socket = ours[1]
        where = one_cpu(_any) if self.config.one_processor else nullcontext()
        with (self.folder / "qemu.log").open("wb") as log, theirs[0], theirs[1], where:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(agent, monitor),
                env=os.environ | dict(program.environment) | dict(self.config.environment),
            )  # fmt: skip
        self._deadline = time.monotonic() + self.config.timeout
        self._watchdog = threading.Timer(self.config.timeout, self._expire)
        self._watchdog.daemon = True
        self._watchdog.start()

    def _expire(self) -> None:
        self._expired = True
        if self._process:
            self._process.kill()

    def _await_boot(self) -> None:
        with self._waiting("the boot"):
            verdict = self._open_channel().wait_hello(self._left(None))
        if verdict != "ready":
            raise GuestFailed(f"the guest says: {verdict}\n{self.tail()}")

    def _restart(self, trigger: Callable[[], object]) -> None:
        with self._waiting("the reboot"):
            self.qmp.execute("set-action", {"reboot": "reset"})
            trigger()
        self._await_boot()
        with self._waiting("the reboot"):
            self.qmp.execute("set-action", {"reboot": "shutdown"})

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        """Explain what went wrong while the guest was waited for; when time is over, kill it."""
        try:
            yield
        except TimeoutError as error:
            self.kill()
            raise GuestTimedOut(f"{what} took too long; the guest was killed\n{self._so_far()}") from error
        except (EOFError, OSError) as error:
            status = self._running().wait(_GRACE)
            if self._expired:
                limit = f"the guest's time limit of {self.config.timeout:g} s"
                raise GuestTimedOut(f"{limit} passed during {what}; it was killed\n{self._so_far()}") from error
            raise GuestDied(f"QEMU ended with status {status} during {what}\n{self._so_far()}") from error

    def _so_far(self) -> str:
        partial = self._open_channel().partial_output().decode(errors="replace")
        return f"--- output so far\n{partial}\n{self.tail()}"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise StateError("the guest is not started")
        return self._process

    def _open_channel(self) -> Channel:
        self._running()
        assert self._channel is not None
        return self._channel

    def _left(self, timeout: float | None) -> float:
        # The watchdog kills at the deadline; a little later we would say so ourselves.
        left = self._deadline - time.monotonic() + 1.0
        return left if timeout is None else min(timeout, left)

    def script_failed(self, status: int, output: str) -> ScriptFailed:
        """Make the error for a script that ended with this status; the logs' ends are in its text."""
        return ScriptFailed(
            f"the guest's script ended with status {status}\n--- output\n{output}\n{self.tail()}", status, output
        )


def run_guest(config: GuestConfig, script: str, folder: Path, *, check: bool = True) -> GuestRun:
    """Boot a guest, run the script, power off; return what happened.

    Raises:
        ScriptFailed: the script ended with another status than 0 (`check=False`: not raised).
        GuestTimedOut: all of it took longer than the configuration's `timeout`.
        GuestError: as for `Guest.start`.
    """
    with Guest(config, folder) as guest:
        done = guest.execute(script)
        dmesg = guest.dmesg
        guest.poweroff()
        run = GuestRun(done.status, done.output.decode(errors="replace"), guest.console, dmesg)
        if check and run.status:
            raise guest.script_failed(run.status, run.output)
        return run


def _any(allowed: set[int]) -> int:
    return random.choice(sorted(allowed))  # noqa: S311 - beds side by side shall spread


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace").replace("\r\n", "\n")
    except FileNotFoundError:  # QEMU has not come that far
        return ""


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")  # a comma separates options of QEMU
