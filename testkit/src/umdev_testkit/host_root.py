"""Guests that see this machine's files read-only over 9p, so that tests run there as they stand here.

Same checkout, same interpreter, same cache folder. The guest has a /dev, /proc and /sys of its own, and scratch space
in /run. No pytest in here; the fixtures are `kvm_guest` and `xen_guest`.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from umdev_testkit.bytecode import compile_packages
from umdev_testkit.cache import cache_folder
from umdev_testkit.errors import GuestDied, GuestTimedOut
from umdev_testkit.guest import Completed, Guest
from umdev_testkit.leave_out import LEAVE_OUT
from umdev_testkit.verdicts import VERBOSE, passed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from umdev_testkit.guest import GuestConfig

__all__ = ["AGAIN", "MODULES", "ROOT", "SHARE", "HostRootGuest"]

ROOT = "/mnt/host"
"""Where the guest has this machine's root folder."""
MODULES = ("9pnet_virtio", "9p")
"""Kernel modules that the guest needs for it."""
SHARE = ("-virtfs", "local,path=/,mount_tag=hostroot,security_model=none,readonly=on,multidevs=remap")
"""What QEMU needs for it."""

# /run is the guest's own on both sides. The checkout may lie in /tmp, so that stays the host's.
_MOUNT = f"""
set -e
mkdir -p {ROOT}
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=1048576,cache=loose hostroot {ROOT}
for folder in dev proc sys run; do mount --rbind /$folder {ROOT}/$folder; done
"""
AGAIN = b"--- the tests that have not passed, once more"
"""Stands between the output of one run and of the next."""
_LEAVE_OUT = "/run/passed-tests"
_TESTS_FAILED, _NO_TESTS = 1, 5  # pytest's exit status
_ENVIRONMENT = {
    "HOME": "/run",
    "HYPOTHESIS_STORAGE_DIRECTORY": "/run/hypothesis",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TMPDIR": "/run",
    "UMDEV_RUNTIME_DIR": "/run/umdev",
}


class HostRootGuest:
    """Runs programs of this machine in a guest. A context manager; the guest is killed at its end.

    `guest` is the guest itself, whose scripts run in its own root folder (busybox). Not for use by several threads.
    """

    def __init__(self, config: GuestConfig, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        """`environment`: variables for the programs, beside the kit's own."""
        self.guest = Guest(config, folder)
        self._environment = {**_ENVIRONMENT, **(environment or {})}

    def fetch(self) -> None:
        """Have in the cache what programs in the guest may need: they can't fetch. Raises: FetchError."""

    def prepare(self) -> None:
        """Make the guest ready for programs, once it has booted and sees this machine's files.

        Raises: ScriptFailed when it can't be made ready.
        """

    def __enter__(self) -> Self:
        """Raises: FetchError for what programs in the guest may need; as `Guest.start`; as `prepare`."""
        self.fetch()
        compile_packages()
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.guest.close()

    def execute(
        self,
        *command: str,
        folder: Path | None = None,
        timeout: float | None = None,
        silence: float | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a program of this machine in the guest, in `folder` (the current one unless given).

        `silence`: seconds without output after which it counts as hung. `environment`: more variables than those that a
        program always gets there.

        Raises:
            GuestTimedOut: it hung, or took longer than `timeout` seconds, or the guest's own time is over.
            GuestDied: QEMU ended.
        """
        variables = {**self._environment, "UMDEV_CACHE": str(cache_folder()), **(environment or {})}
        words = [f"{name}={value}" for name, value in variables.items()]
        inner = f"cd {shlex.quote(str(folder or Path.cwd()))} && exec env -i {shlex.join(words)} {shlex.join(command)}"
        script = f"exec chroot {ROOT} /bin/sh -c {shlex.quote(inner)}"
        return self.guest.execute(script, timeout=timeout, silence=silence)

    def python(self, *arguments: str, folder: Path | None = None, timeout: float | None = None) -> Completed:
        """Run this very interpreter in the guest. Raises: as `execute`."""
        return self.execute(sys.executable, *arguments, folder=folder, timeout=timeout)

    def pytest(
        self,
        *arguments: str,
        folder: Path | None = None,
        timeout: float | None = None,
        silence: float | None = None,
        environment: Mapping[str, str] | None = None,
        tries: int = 1,
    ) -> Completed:
        """Run pytest in the guest, on files of this machine; its cache and temporary files stay in the guest.

        `tries`: what has not passed, because it failed, or the guest died, hung (`silence`) or took longer than
        `timeout`, is run again up to so many times in all, each time in a guest that is booted anew. The status is that
        of the last run; the output has them all, in order, with `AGAIN` between. For tests that need the guest's KVM or
        Xen: QEMU's translation of AMD's virtualization extensions (7.2 and 11.1 were tried) gives a guest's guest its
        host's RIP, RSP, RAX and CR3 about twice in a million exits, and it goes astray. docs/explanation/decisions has
        the figures.

        Raises: as `execute` in the last try; with `tries` as `__enter__`, too.
        """
        options = ["-o", "cache_dir=/run/pytest-cache", "--basetemp=/run/pytest", "--color=no"]
        if tries > 1:
            options += [*VERBOSE, "-p", "umdev_testkit.leave_out"]
        command = (sys.executable, "-m", "pytest", *options, *arguments)
        variables = {LEAVE_OUT: _LEAVE_OUT, **(environment or {})}
        output = b""
        while True:
            tries -= 1
            try:
                done = self.execute(*command, folder=folder, timeout=timeout, silence=silence, environment=variables)
            except (GuestDied, GuestTimedOut) as error:
                if tries < 1:
                    raise
                output += str(error).encode()
            else:
                before, output = output, output + done.output
                if done.status == _NO_TESTS and before:  # all had passed, and then their guest hung
                    return Completed(0, output)
                if tries < 1 or done.status != _TESTS_FAILED:
                    return Completed(done.status, output)
            output += b"\n" + AGAIN + b"\n"
            self.guest.close()
            self.guest = Guest(self.guest.config, self.guest.folder.with_name(f"{self.guest.folder.name}-again"))
            self._start()
            names = passed(output.decode(errors="replace"))
            self.guest.write_file(_LEAVE_OUT, "".join(f"{name}\n" for name in names).encode())

    def _start(self) -> None:
        self.guest.start()
        try:
            self.guest.run(_MOUNT)
            self.prepare()
        except BaseException:
            self.guest.close()
            raise
