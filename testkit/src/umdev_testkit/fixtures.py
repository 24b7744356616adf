"""What the pytest fixtures hand out."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, TypedDict, Unpack

from umdev_testkit.guest import Guest, GuestConfig, GuestRun, run_guest
from umdev_testkit.host_root import AGAIN
from umdev_testkit.verdicts import passed, unfinished

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from umdev_testkit.host_root import HostRootGuest

__all__ = ["GuestOptions", "LinuxGuests", "RunOptions", "pass_in"]


class GuestOptions(TypedDict, total=False):
    """Keyword arguments that describe a guest: the attributes of `GuestConfig`."""

    devices: Sequence[str | os.PathLike[str]]
    files: Mapping[str, bytes | Path]
    modules: Sequence[str]
    kernel: str
    memory: int
    cpus: int
    timeout: float
    accel: str
    append: str
    cpu: str
    machine: str
    qemu_args: Sequence[str]
    shared_memory: bool
    environment: Mapping[str, str]
    one_processor: bool


class RunOptions(TypedDict, total=False):
    """Keyword arguments of a run of pytest in a guest."""

    folder: Path | None
    timeout: float | None
    silence: float | None
    environment: Mapping[str, str] | None
    tries: int


def pass_in(guest: HostRootGuest, arguments: Sequence[str], options: RunOptions) -> list[str]:
    """Run pytest in the guest, thrice at most unless told otherwise; names of the tests that needed more than one run.

    Raises: AssertionError with pytest's output when a test fails each time or is skipped, or none runs.
    """
    with_tries: RunOptions = {"tries": 3, **options}
    done = guest.pytest(*arguments, "-ra", **with_tries)
    output = done.output.decode(errors="replace")
    assert done.status == 0, output
    assert passed(output), output
    assert "SKIPPED" not in output, output
    *earlier, _ = output.split(AGAIN.decode())
    return [name for run in earlier for name in unfinished(run)]


class LinuxGuests:
    """Makes guests for one test and keeps their logs in folders of their own. Several threads may start some."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guests: list[Guest] = []
        self._numbers = itertools.count()

    def __call__(self, script: str, *, check: bool = True, **options: Unpack[GuestOptions]) -> GuestRun:
        """Boot, run the script, power off. See `run_guest`."""
        return run_guest(GuestConfig(**options), script, self._next_folder(), check=check)

    def start(self, **options: Unpack[GuestOptions]) -> Guest:
        """Return a guest that has booted and takes commands; it may be used as a context manager."""
        guest = Guest(GuestConfig(**options), self._next_folder())
        self._guests.append(guest)
        return guest.start()

    def close(self) -> None:
        """Kill every guest that still runs."""
        while self._guests:
            self._guests.pop().close()

    def _next_folder(self) -> Path:
        return self._folder / f"guest{next(self._numbers)}"
