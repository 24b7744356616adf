"""`umdev start`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from umdev.errors import Conflict

from umdev_cli import bus_options, control, hosts, launch, options, output, parents, vmm
from umdev_cli.definitions import Definition, Definitions, Named, read
from umdev_cli.identity import new_uuid


@click.command(cls=bus_options.BusCommand)
@options.uuid("UUID of the device: a defined one, or one for a new device.")
@options.parent("Parent of the device.")
@options.type_("Type of the device.")
@options.jsonfile
@options.bus
@options.wire_log
@click.option("--json", "as_json", is_flag=True, help="Write JSON instead of text.")
@options.force
def command(
    *,
    uuid: str | None,
    parent: str | None,
    type_: str | None,
    jsonfile: Path | None,
    bus: str,
    wire_log: str | None,
    as_json: bool,
    force: bool,
    **of_bus: object,
) -> None:
    """Start a device in a process of its own, and print what QEMU needs to attach it.

    The UUID of a defined device is enough. With --parent and --type, or --jsonfile, a device that is not defined is
    started; its UUID is printed if none was given. Devices of a parent that share state share one process.

    QEMU must share its guest memory: -object memory-backend-memfd,id=ram,size=2G,share=on -machine memory-backend=ram
    """
    del force
    named = resolve(uuid, parent, type_, jsonfile)
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
    if uuid is None:
        click.echo(named.uuid)
    if described["device"] is not None:
        click.echo(f"-device '{described['device']}'")
    # For people; programs read it from --json, and what is well prints nothing on stderr.
    if sys.stderr.isatty() and (line := vmm.advice(described["environment"])):
        click.echo(line, err=True)


def absolute(path: str | None) -> str | None:
    """A path that still holds when the host process has left the current folder."""
    return None if path is None else str(Path(path).absolute())


def resolve(uuid: str | None, parent: str | None, type_: str | None, jsonfile: Path | None) -> Named:
    """The device that the options mean, as mdevctl reads them. Raises: UsageError, NotFound, Conflict."""
    if uuid is None and parent is None:
        raise click.UsageError("say which device: --uuid or --parent")
    if jsonfile is not None:
        if type_ is not None:
            raise click.UsageError("--jsonfile excludes --type")
        if parent is None:
            raise click.UsageError("--jsonfile needs --parent")
        return Named(uuid or new_uuid(), parent, read(jsonfile))
    if uuid is not None and Definitions().all(uuid, parent):
        named = Definitions().one(uuid, parent)
        if type_ not in (None, named.definition.mdev_type):
            raise Conflict(f"{uuid} is defined for {named.parent} with type {named.definition.mdev_type}, not {type_}")
        return named
    if parent is None or type_ is None:
        if uuid is not None and parent is None and type_ is None:
            return Definitions().one(uuid)
        raise click.UsageError("a device that is not defined needs --parent and --type")
    return Named(uuid or new_uuid(), parent, Definition(type_))
