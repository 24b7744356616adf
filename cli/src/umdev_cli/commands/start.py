"""`umdev start`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from umdev.errors import Conflict

from umdev_cli import bus_options, complete, control, hosts, launch, options, output, parents, vmm
from umdev_cli.meant import by_options, by_word, with_attributes


@click.command(cls=bus_options.BusCommand)
@click.argument("device", metavar="[TYPE_OR_UUID]", required=False, shell_complete=complete.devices)
@options.uuid("UUID of the device: a defined one, or one for a new device.")
@options.parent("Parent of the device.")
@options.type_("Type of the device.")
@options.jsonfile
@options.attributes
@options.bus
@options.wire_log
@click.option("--json", "as_json", is_flag=True, help="Write JSON instead of text.")
@options.force
def command(
    *,
    device: str | None,
    uuid: str | None,
    parent: str | None,
    type_: str | None,
    jsonfile: Path | None,
    attributes: dict[str, str],
    bus: str,
    wire_log: str | None,
    as_json: bool,
    force: bool,
    **of_bus: object,
) -> None:
    """Start a device in a process of its own, and print what QEMU needs to attach it.

    A defined device is named by its UUID; a new one by its type, as PARENT/TYPE where several parents offer it, or by
    mdevctl's options --parent with --type or --jsonfile. A new one's UUID is printed if none was given. Devices of a
    parent that share state share one process.

    QEMU must share its guest memory: -object memory-backend-memfd,id=ram,size=2G,share=on -machine memory-backend=ram
    """
    del force
    if device is None:
        named = by_options(uuid, parent, type_, jsonfile)
    elif type_ is None and jsonfile is None:
        named = by_word(device, parent, uuid)
    else:
        raise click.UsageError(f"{device} says which device, so leave out --type and --jsonfile")
    named = with_attributes(named, attributes)
    if (claimed := hosts.running().get(named.uuid)) is not None:
        raise Conflict(f"{named.uuid} is running already: {claimed.type} of {claimed.parent} in process {claimed.pid}")
    owner = parents.check(named.parent, named.definition)
    request = control.Add(
        named.uuid, named.definition.mdev_type, named.definition.attributes(), None, absolute(wire_log),
        bus_options.given(of_bus),
    )  # fmt: skip
    with output.waiting(f"starting {named.definition.mdev_type} {named.uuid}"):
        described = launch.start(named.parent, bus, request, shared=owner.shared_process)
    if as_json:
        shown = ("uuid", "parent", "type", "pid", "socket", "device", "environment", "log")
        output.dump_json({name: described[name] for name in shown})
        return
    if named.uuid not in (uuid, device and device.lower()):
        click.echo(named.uuid)
    if described["device"] is not None:
        click.echo(f"-device '{described['device']}'")
    # For people; programs read it from --json, and what is well prints nothing on stderr.
    if sys.stderr.isatty() and (line := vmm.advice(described["environment"])):
        click.echo(line, err=True)


def absolute(path: str | None) -> str | None:
    """A path that still holds when the host process has left the current folder."""
    return None if path is None else str(Path(path).absolute())
