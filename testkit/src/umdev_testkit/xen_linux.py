"""A stock Linux in a PVH domain, as Xen runs it today. Made with `xl`, inside the Xen test bed only.

Its devices are those that a device model attaches while it is paused, on PCI bus 0, through configuration ports CF8 and
CFC: the ACPI tables that xl makes for PVH name no PCI host bridge, so Linux is told to look there.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from umdev.errors import StateError

from umdev_testkit.errors import GuestDied, GuestFailed, GuestTimedOut
from umdev_testkit.host_root import ROOT
from umdev_testkit.kernels import kernel
from umdev_testkit.serial_initramfs import build_serial
from umdev_testkit.xen_domain import ShutdownReason, domain_state
from umdev_testkit.xen_guest import CONSOLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

__all__ = ["LinuxRun", "PvhLinux"]

# noacpi needs a kernel that reads MP tables, else Linux gives up its local APIC and with it every timer: not "cloud".
# noearly: else every slot of every bus is looked at twice, and each look is a request to the device model.
_COMMAND_LINE = "console=hvc0 quiet panic=-1 pci=noacpi,conf1,noearly"
_STATUS = re.compile(r"^umdev: the script ended with status (\d+)$", re.MULTILINE)
_XL_TIME = 240.0  # seconds that one run of xl may take
_GLANCE = 0.05  # seconds between two looks at the domain and its console
_CONSOLE_TIME = 30.0  # seconds until xenconsoled must have written what a dead domain said
_TAIL = 60  # lines of the console in an error's text
_numbers = itertools.count()


@dataclass(frozen=True)
class LinuxRun:
    """A domain's whole life: its script's exit status, and the console."""

    status: int
    console: str


class PvhLinux:
    """One domain, from `create` (paused) to `wait` or `destroy`. A context manager: creates, and destroys at the end.

    `folder` keeps its configuration and initramfs. Not for use by several threads at once.
    """

    def __init__(
        self,
        script: str,
        *,
        modules: Sequence[str] = (),
        files: Mapping[str, bytes | Path] | None = None,
        kernel: str = "full",
        memory: int = 256,
        vcpus: int = 1,
        append: str = "",
        folder: Path | None = None,
    ) -> None:
        """Describe the domain.

        `script` is busybox sh's; it runs on the console once `modules` are loaded, and then the domain powers off.
        `files`: absolute paths in the guest to their content. `kernel`: "full" (6.12) or "bookworm" (6.1).
        `memory` in MiB. `append`: more kernel command line. `folder`: on this side's scratch space, /run.
        """
        self.script = script
        self.name = f"linux-{os.getpid()}-{next(_numbers)}"
        self.folder = folder or Path("/run") / self.name
        self._modules = modules
        self._files = files
        self._kernel = kernel
        self._shape = memory, vcpus, append
        self._domid: int | None = None
        self._console = Path(CONSOLES) / f"guest-{self.name}.log"

    def __enter__(self) -> Self:
        """Raises: as `create`."""
        self.create()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.destroy()

    @property
    def domid(self) -> int:
        """The domain's number. Raises: StateError when there is none."""
        if self._domid is None:
            raise StateError(f"domain {self.name} is not there: create() makes it")
        return self._domid

    @property
    def console(self) -> str:
        """All that came out of the console so far, over all domains of this name."""
        try:
            return self._console.read_bytes().decode(errors="replace").replace("\r\n", "\n")
        except FileNotFoundError:  # nothing yet
            return ""

    def create(self) -> int:
        """Create the domain, paused, and return its number. After `destroy`, it may be created again.

        Raises:
            FetchError: the kernel or busybox cannot be fetched.
            ModuleMissing: the kernel has no such module.
            GuestFailed: `xl` refused; its messages are in the text.
            StateError: it is there already.
        """
        if self._domid is not None:
            raise StateError(f"domain {self.name} is there already, as {self._domid}: destroy it first")
        image = kernel(self._kernel)
        self.folder.mkdir(parents=True, exist_ok=True)
        initramfs = self.folder / "initramfs.cpio"
        initramfs.write_bytes(build_serial(self.script, image.modules(self._modules), self._files))
        memory, vcpus, append = self._shape
        configuration = self.folder / "domain.cfg"
        configuration.write_text(
            f'name = "{self.name}"\ntype = "pvh"\nmemory = {memory}\nvcpus = {vcpus}\n'
            f'kernel = "{ROOT}{image.image}"\nramdisk = "{initramfs}"\nextra = "{_COMMAND_LINE} {append}"\n'
        )
        # xl runs in dom0's own root folder, which has /run in common with this one. -e: it leaves nobody behind who
        # would destroy a domain that has shut down.
        _xl("create", "-p", "-e", "-q", str(configuration))
        self._domid = int(_xl("domid", self.name))
        initramfs.unlink()
        return self._domid

    def unpause(self) -> None:
        """Let it boot. Raises: GuestFailed when `xl` refuses."""
        _xl("unpause", str(self.domid))

    def wait_for(self, text: str, timeout: float) -> None:
        """Wait until the console shows `text`; it counts if it is there already.

        Raises:
            GuestTimedOut: it did not come within `timeout` seconds.
            GuestDied: the domain has shut down before it came.
        """
        deadline = time.monotonic() + timeout
        while text not in self.console:
            if self._over(deadline, repr(text)) is not None and text not in self._last_words(text):
                raise GuestDied(f"domain {self.domid} has shut down before {text!r}\n{self.tail()}")
            time.sleep(_GLANCE)

    def wait(self, timeout: float) -> LinuxRun:
        """Wait until the domain has powered off, and return what its script came to.

        Raises:
            GuestTimedOut: it has not within `timeout` seconds; it runs on.
            GuestDied: it crashed, rebooted or powered off before its script ended.
        """
        deadline = time.monotonic() + timeout
        while (reason := self._over(deadline, "the power-off")) is None:
            time.sleep(_GLANCE)
        powered_off = reason is ShutdownReason.POWEROFF
        found = _STATUS.search(self._last_words("umdev: the script ended") if powered_off else self.console)
        if not powered_off or not found:
            raise GuestDied(f"domain {self.domid} has shut down: {reason.name.lower()}\n{self.tail()}")
        return LinuxRun(int(found[1]), self.console)

    def destroy(self) -> None:
        """Destroy the domain, if there is one. Raises: GuestFailed when `xl` refuses."""
        if self._domid is not None:
            domid, self._domid = self._domid, None
            _xl("destroy", str(domid))

    def tail(self) -> str:
        """The end of the console, for an error's text."""
        return "--- console, last lines\n" + "\n".join(self.console.splitlines()[-_TAIL:])

    def _over(self, deadline: float, what: str) -> ShutdownReason | None:
        """Why the domain has shut down, once it has. Raises: GuestTimedOut, GuestDied."""
        state = domain_state(self.domid)
        if not state.exists or state.dying:
            raise GuestDied(f"domain {self.domid} was destroyed while {what} was waited for\n{self.tail()}")
        if state.shutdown is None and time.monotonic() >= deadline:
            raise GuestTimedOut(f"{what} of domain {self.domid} has not come in time\n{self.tail()}")
        return state.shutdown

    def _last_words(self, text: str) -> str:
        """The console of a domain that has shut down: its daemon may still be writing."""
        deadline = time.monotonic() + _CONSOLE_TIME
        while text not in self.console and time.monotonic() < deadline:
            time.sleep(_GLANCE)
        return self.console


def _xl(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["xl", *arguments], capture_output=True, text=True, errors="replace", timeout=_XL_TIME, check=False
        )
    except FileNotFoundError as error:
        raise GuestFailed("there is no xl: domains are made inside the Xen test bed only") from error
    except subprocess.TimeoutExpired as error:
        raise GuestTimedOut(f"xl {' '.join(arguments)} has not ended within {_XL_TIME:.0f} s") from error
    if done.returncode:
        raise GuestFailed(f"xl {' '.join(arguments)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
