"""`umdev show`."""

from __future__ import annotations

import click

from umdev_cli import client, complete, hosts, output
from umdev_cli.identity import parse_uuid


@click.command
@click.argument("uuid", required=False, shell_complete=complete.running)
@click.option("-v", "--verbose", count=True, help="More: capabilities, services, counters; twice: also zero counters.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON instead of text.")
@click.option(
    "--query", metavar="NAME", help="Ask the model this query and write its answer as JSON, bytes in hexadecimal."
)
def command(uuid: str | None, *, verbose: int, as_json: bool, query: str | None) -> None:
    """Show a running device as lspci does, with what serves it and what its driver uses that the model lacks.

    Without a UUID, all running devices. The queries that a model offers are in the verbose output.
    """
    from umdev_cli import lspci

    if query is not None:
        if uuid is None:
            raise click.UsageError("--query needs a UUID")
        output.dump_json(client.query(uuid, query))
        return
    uuids = [parse_uuid(uuid)] if uuid is not None else sorted(hosts.running())
    described = [client.show(each) for each in uuids]
    if as_json:
        output.dump_json(described[0] if uuid is not None else described)
        return
    for index, device in enumerate(described):
        if index and verbose:
            click.echo()
        for text in lspci.lines(device, verbose):
            click.echo(text)
