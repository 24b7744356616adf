"""`umdev define`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from umdev.errors import InvalidArgument

from umdev_cli import hosts, options, parents
from umdev_cli.definitions import Definition, Definitions, Named, read
from umdev_cli.identity import new_uuid

if TYPE_CHECKING:
    from pathlib import Path


@click.command
@options.uuid("UUID of the device; made up and printed if left out.")
@click.option("-a", "--auto", is_flag=True, help="Mark the device for umdev start --auto.")
@options.parent("Parent of the device.")
@options.type_("Type of the device.")
@options.jsonfile
@options.force
def command(
    *, uuid: str | None, auto: bool, parent: str | None, type_: str | None, jsonfile: Path | None, force: bool
) -> None:
    """Define a persistent device.

    With the UUID of a running device, parent and type may be left out. With --jsonfile, type, start and attributes come
    from the file. Running devices are unaffected.
    """
    del force
    if uuid is None and parent is None:
        raise click.UsageError("say which device: --uuid or --parent")
    if jsonfile is not None:
        if type_ is not None or auto:
            raise click.UsageError("--jsonfile excludes --type and --auto")
        if parent is None:
            raise click.UsageError("--jsonfile needs --parent")
        definition = read(jsonfile)
    else:
        if uuid is not None and parent is None and (claimed := hosts.running().get(uuid)) is not None:
            if type_ not in (None, claimed.type):
                raise InvalidArgument(f"{uuid} runs with type {claimed.type}, not {type_}")
            parent, type_ = claimed.parent, claimed.type
        if parent is None or type_ is None:
            raise click.UsageError("a device that is not running needs --parent and --type")
        definition = Definition(type_, "auto" if auto else "manual")
    parents.check(parent, definition)
    identity = uuid or new_uuid()
    Definitions().add(Named(identity, parent, definition))
    if uuid is None:
        click.echo(identity)
