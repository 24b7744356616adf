"""`umdev run`: a kernel with devices in a machine of this process, no QEMU anywhere."""

from __future__ import annotations

import contextlib
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click
from umdev.errors import HypervisorError, UmdevError

if TYPE_CHECKING:
    from collections.abc import Iterator

_FOREVER = 10 * 365 * 86400.0
_STATUS_TIME_LIMIT = 124  # as timeout(1)


@click.command("run")
@click.argument("devices", nargs=-1, metavar="DEVICE...")
@click.option("--kernel", required=True, type=click.Path(exists=True, dir_okay=False), help="A Linux bzImage.")
@click.option("--initrd", type=click.Path(exists=True, dir_okay=False), help="Its initramfs.")
@click.option("--append", default="console=ttyS0", show_default=True, help="The kernel's command line.")
@click.option("--memory", type=click.IntRange(min=1), default=512, show_default=True, help="MiB.")
@click.option("--cpus", type=click.IntRange(1, 64), default=1, show_default=True, help="Processors.")
@click.option("--limit", type=click.FloatRange(min=0, min_open=True), help="Seconds that it may run.")
@click.option("--reboot/--no-reboot", default=True, help="Whether a guest that reboots is started again.")
def command(
    *,
    devices: tuple[str, ...],
    kernel: str,
    initrd: str | None,
    append: str,
    memory: int,
    cpus: int,
    limit: float | None,
    reboot: bool,
) -> int:
    """Boot a Linux kernel in a KVM machine with devices in its PCI slots.

    DEVICE is a device type, as PARENT/TYPE where several parents offer it, with attributes as in mtty-1,port0=unix:/x,
    or the UUID of a defined device; umdev list, show and trace reach it. The serial port is this terminal; Ctrl-] ends
    the machine, and so does umdev stop. The exit code is 0 when the guest powers off or writes 0 to the exit port
    (0xF4), the low byte of what it writes there otherwise, 1 after a triple fault, 124 when the time is over.
    """
    from umdev_cli.hosted import hosted

    from .ending import Ending
    from .linux import boot_linux
    from .machine import Machine
    from .outcome import OutcomeKind
    from .terminal import terminal

    ending = Ending()
    with ExitStack() as stack:
        made = stack.enter_context(hosted(devices, "kvm", ending.ask))
        machine = stack.enter_context(Machine(memory=memory << 20, vcpus=cpus, console=1))
        for device in made:
            slot = machine.plug(device)
            click.echo(f"0000:00:{slot:02x}.0 {device}", err=True)
        boot_linux(machine, Path(kernel).read_bytes(), Path(initrd).read_bytes() if initrd else b"", append)
        deadline = time.monotonic() + (limit or _FOREVER)
        with _advice(), terminal(machine, ending.ask), ending.of(machine):
            outcome = ending.run(machine, deadline - time.monotonic())
            while outcome.kind is OutcomeKind.RESET and reboot:
                machine.reset()
                outcome = ending.run(machine, max(0.0, deadline - time.monotonic()))
    click.echo(f"the machine ended: {outcome}", err=True)
    if outcome.kind is OutcomeKind.TIME_LIMIT:
        return _STATUS_TIME_LIMIT
    return (
        int(outcome.kind is OutcomeKind.TRIPLE_FAULT) if outcome.kind is not OutcomeKind.EXIT else outcome.value & 255
    )


@contextlib.contextmanager
def _advice() -> Iterator[None]:
    """Where KVM gives up in the block, and could not but do so, the error says what to do."""
    try:
        yield
    except HypervisorError as error:
        from .probe import REMEDY, why_partial

        with contextlib.suppress(UmdevError):  # it is the first error that counts
            if why_partial() is not None:
                error.add_note(f"this host's KVM runs no operating system: {REMEDY}")
        raise
