"""`umdev modify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec
from umdev.errors import InvalidArgument, NotSupported

from umdev_cli import complete, options, parents
from umdev_cli.definitions import Definition, Definitions, read

if TYPE_CHECKING:
    from pathlib import Path


@click.command
@options.which(complete.defined)
@options.parent("Parent of the device, where several share the UUID.")
@options.type_("Give the device this type.")
@click.option("--addattr", metavar="NAME", help="Add an attribute, with --value.")
@click.option("--delattr", "delattr_", is_flag=True, help="Delete an attribute: the last, or that of --index.")
@click.option("-i", "--index", type=click.IntRange(min=0), help="Place in the list of attributes.")
@click.option("--value", metavar="VALUE", help="Value of the added attribute.")
@click.option("-a", "--auto", is_flag=True, help="Let umdev start --auto start it.")
@click.option("-m", "--manual", is_flag=True, help="Let it be started by itself only.")
@click.option("-l", "--live", is_flag=True, help="Change the running device (not supported).")
@click.option("-d", "--defined", is_flag=True, help="Change the definition; so it is without this option too.")
@options.jsonfile
@options.force
def command(
    device: str | None,
    *,
    uuid: str | None,
    parent: str | None,
    type_: str | None,
    addattr: str | None,
    delattr_: bool,
    index: int | None,
    value: str | None,
    auto: bool,
    manual: bool,
    live: bool,
    defined: bool,
    jsonfile: Path | None,
    force: bool,
) -> None:
    """Change the definition of a device. A running device keeps what it was started with."""
    del defined, force
    uuid = options.one(device, uuid)
    if live:
        raise NotSupported("a running device can't be changed; modify its definition, then stop and start it")
    if addattr is not None and (delattr_ or value is None):
        raise click.UsageError("--addattr needs --value and excludes --delattr")
    if addattr is None and value is not None:
        raise click.UsageError("--value needs --addattr")
    if index is not None and addattr is None and not delattr_:
        raise click.UsageError("--index needs --addattr or --delattr")
    if auto and manual:
        raise click.UsageError("--auto and --manual exclude each other")
    definitions = Definitions()
    named = definitions.one(uuid, parent)
    if jsonfile is not None:
        if type_ or addattr or delattr_ or auto or manual:
            raise click.UsageError("--jsonfile excludes the other changes")
        changed = read(jsonfile)
    else:
        attributes = list(named.definition.attrs)
        if addattr is not None and value is not None:
            attributes.insert(_place(index, len(attributes)), {addattr: value})
        elif delattr_:
            del attributes[_place(index, len(attributes) - 1)]
        start = "auto" if auto else "manual" if manual else named.definition.start
        changed = Definition(type_ or named.definition.mdev_type, start, attributes)
    parents.check(named.parent, changed)
    definitions.replace(msgspec.structs.replace(named, definition=changed))


def _place(index: int | None, last: int) -> int:
    """Where to insert or delete: at `index`, else at the end. Raises: InvalidArgument."""
    if last < 0:
        raise InvalidArgument("there is no attribute to delete")
    if index is None:
        return last
    if index > last:
        raise InvalidArgument(f"attribute index {index} is past the last, {last}")
    return index
