"""`umdev stop`."""

from __future__ import annotations

import click

from umdev_cli import client, complete, options, output


@click.command
@options.which(complete.running)
@options.force
def command(device: str | None, *, uuid: str | None, force: bool) -> None:
    """Stop a running device, and its process when no other device is left there."""
    del force
    uuid = options.one(device, uuid)
    with output.waiting(f"stopping {uuid}"):
        client.stop(uuid)
