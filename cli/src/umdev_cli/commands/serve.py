"""`umdev serve`: a device in the foreground, by QEMU's conventions for vfio-user back ends."""

from __future__ import annotations

import os

import click
from umdev import runtime
from umdev.errors import Conflict, InvalidArgument

from umdev_cli import bus_options, complete, control, host, hosts, logs, options, parents, vmm
from umdev_cli.meant import by_word, with_attributes


@click.command(cls=bus_options.BusCommand)
@click.argument("device", metavar="TYPE_OR_UUID", shell_complete=complete.devices)
@options.parent("Parent of the device; needed where several offer the type.")
@options.uuid("UUID for a device given by its type; made up if left out.")
@click.option("--socket-path", metavar="PATH", help="Listen here; in the runtime directory if neither is given.")
@click.option("--fd", type=click.IntRange(min=0), help="Serve this connected socket instead.")
@options.attributes
@options.bus
@options.wire_log
def command(
    *,
    device: str,
    parent: str | None,
    uuid: str | None,
    socket_path: str | None,
    fd: int | None,
    attributes: dict[str, str],
    bus: str,
    wire_log: str | None,
    **of_bus: object,
) -> None:
    """Serve a device until SIGTERM, or until the client of --fd is gone.

    The device is a defined one (its UUID) or a new one of a type, which is named PARENT/TYPE, or with --parent, where
    several parents offer it. The exact -device argument for QEMU is the first line on stdout; what the device logs goes
    to stderr, and what QEMU's environment needs for write-protection. Other buses than vfio-user have options of their
    own, which --bus NAME --help shows.
    """
    if socket_path is not None and fd is not None:
        raise click.UsageError("--socket-path and --fd exclude each other")
    if fd is not None:
        _check_open(fd)
    logs.configure(times=False)
    named = with_attributes(by_word(device, parent, uuid), attributes)
    owner = parents.check(named.parent, named.definition)
    directory = runtime.runtime_directory()
    hosts.tidy(directory)
    claimed = hosts.claim_folder(directory, named.parent if owner.shared_process else named.uuid)
    if claimed is None:
        what = f"devices of {named.parent} share one process" if owner.shared_process else f"{named.uuid} is in use"
        raise Conflict(f"{what}, which runs already; use umdev start, or stop what runs")
    request = control.Add(
        named.uuid, named.definition.mdev_type, named.definition.attributes(), socket_path, wire_log,
        bus_options.given(of_bus),
    )  # fmt: skip
    with host.whole_process(host.open_host(directory, *claimed, named.parent, bus)) as serving:
        described = serving.add(request, descriptor=fd)
        if described["device"] is not None:
            click.echo(f"-device '{described['device']}'")
            if line := vmm.advice(described["environment"]):
                click.echo(line, err=True)
        serving.run()


def _check_open(descriptor: int) -> None:
    """Before anything else is opened, which would have the number. Raises: InvalidArgument."""
    try:
        os.fstat(descriptor)
    except OSError as error:
        raise InvalidArgument(f"--fd {descriptor} is not open: who starts umdev must hand it down") from error
