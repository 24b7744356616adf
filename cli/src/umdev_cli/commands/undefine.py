"""`umdev undefine`."""

from __future__ import annotations

import click
from umdev.errors import NotFound

from umdev_cli import options
from umdev_cli.definitions import Definitions


@click.command
@options.uuid("UUID of the device.", required=True)
@options.parent("Only the definition for this parent.")
@options.force
def command(uuid: str, parent: str | None, *, force: bool) -> None:
    """Remove the definition of a device, for every parent unless one is named. Running devices are unaffected."""
    del force
    definitions = Definitions()
    found = definitions.files(uuid, parent)
    if not found:
        raise NotFound(f"{uuid} is not defined{f' for {parent}' if parent else ''}")
    for path in found:
        definitions.remove(path)
