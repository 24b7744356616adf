"""`umdev show`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from umdev.errors import Disconnected, NotFound, NotSupported

from umdev_cli import client, complete, hosts, output
from umdev_cli.failures import Exit, RemoteError
from umdev_cli.identity import parse_uuid

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command
@click.argument("uuid", required=False, shell_complete=complete.running)
@click.option("-v", "--verbose", count=True, help="More: capabilities, services, counters; twice: also zero counters.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON instead of text.")
@click.option(
    "--query", metavar="NAME", help="Ask the model this query and write its answer as JSON, bytes in hexadecimal."
)
def command(uuid: str | None, *, verbose: int, as_json: bool, query: str | None) -> None:
    """Show a running device as lspci does, with what serves it and what its driver uses that the model lacks.

    Without a UUID, all running devices; stderr names those of other programs than umdev, which can't be asked, and
    those that do not answer. The queries that a model offers are in the verbose output.
    """
    from umdev_cli import lspci

    if query is not None:
        if uuid is None:
            raise click.UsageError("--query needs a UUID")
        with output.waiting(f"asking {uuid}"):
            answer = client.query(uuid, query)
        output.dump_json(answer)
        return
    described = [_described(parse_uuid(uuid))] if uuid is not None else list(_all())
    if as_json:
        output.dump_json(described[0] if uuid is not None else described)
        return
    for index, device in enumerate(described):
        if index and verbose:
            click.echo()
        for text in lspci.lines(device, verbose):
            click.echo(text)


def _described(uuid: str) -> dict[str, Any]:
    with output.waiting(f"asking {uuid}"):
        return client.show(uuid)


def _all() -> Iterator[dict[str, Any]]:
    for each in sorted(hosts.running()):
        try:
            yield _described(each)
        except NotSupported as error:
            output.note(str(error))
        except NotFound:  # it has just ended
            continue
        except Disconnected as error:
            if each in hosts.running():  # else it has just ended
                output.note(f"{each} does not answer: {error}")
        except RemoteError as error:
            if error.code != Exit.NOT_FOUND:
                raise
