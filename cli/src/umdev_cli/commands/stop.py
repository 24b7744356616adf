"""`umdev stop`."""

from __future__ import annotations

import click

from umdev_cli import client, options, output


@click.command
@options.uuid("UUID of the device.", required=True)
@options.force
def command(uuid: str, *, force: bool) -> None:
    """Stop a running device, and its process when no other device is left there."""
    del force
    with output.waiting(f"stopping {uuid}"):
        client.stop(uuid)
