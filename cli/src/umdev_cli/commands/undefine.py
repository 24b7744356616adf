"""`umdev undefine`."""

from __future__ import annotations

import click
from umdev.errors import NotFound

from umdev_cli import complete, options
from umdev_cli.definitions import Definitions


@click.command
@options.which(complete.defined)
@options.parent("Only the definition for this parent.")
@options.force
def command(device: str | None, *, uuid: str | None, parent: str | None, force: bool) -> None:
    """Remove the definition of a device, for every parent unless one is named. Running devices are unaffected."""
    del force
    uuid = options.one(device, uuid)
    definitions = Definitions()
    found = definitions.files(uuid, parent)
    if not found:
        raise NotFound(f"{uuid} is not defined{f' for {parent}' if parent else ''}")
    for path in found:
        definitions.remove(path)
