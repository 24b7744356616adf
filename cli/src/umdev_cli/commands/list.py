"""`umdev list`. Imports no plugin: what runs is known from claims, what is defined from files."""

from __future__ import annotations

import json

import click

from umdev_cli import failures, hosts, options, output
from umdev_cli.definitions import Definition, Definitions, Named


@click.command
@click.option("-d", "--defined", is_flag=True, help="List defined devices, running or not.")
@options.dumpjson
@click.option("-v", "--verbose", is_flag=True, help="Print attributes too.")
@options.uuid("Only the device of this UUID.")
@options.parent("Only devices of this parent.")
def command(*, defined: bool, dumpjson: bool, verbose: bool, uuid: str | None, parent: str | None) -> None:
    """List running devices, or defined ones.

    One line for each: UUID, parent, type, auto or manual. What dead processes left in the runtime directory is removed.
    A definition that can't be read is named on stderr, and the others are listed. The JSON of a single device (--uuid)
    is what define --jsonfile takes.
    """
    running = hosts.running()
    known = Definitions().all(uuid, parent, damaged=lambda error: output.note(failures.line(error)))
    definitions = {(each.parent, each.uuid): each for each in known}
    if defined:
        found = list(definitions.values())
    else:
        found = [
            Named(identity, claimed.parent, _running(claimed.type, definitions.get((claimed.parent, identity))))
            for identity, claimed in running.items()
            if uuid in (None, identity) and parent in (None, claimed.parent)
        ]
    found.sort(key=lambda named: (named.parent, named.uuid))
    if dumpjson:
        output.dump_json(_json(found, single=uuid is not None))
        return
    for named in found:
        active = named.uuid in running and running[named.uuid].parent == named.parent
        also = active if defined else (named.parent, named.uuid) in definitions
        suffix = f" ({'active' if defined else 'defined'})" if also else ""
        definition = named.definition
        click.echo(f"{named.uuid} {named.parent} {definition.mdev_type} {definition.start}{suffix}")
        if verbose and definition.attrs:
            click.echo("  Attrs:")
            for index, attribute in enumerate(definition.attrs):
                click.echo(f"    @{{{index}}}: {json.dumps(attribute, separators=(',', ':'))}")


def _running(type_id: str, defined: Named | None) -> Definition:
    """A running device as a definition: how it is started, and its attributes, are known where it is defined."""
    if defined is None or defined.definition.mdev_type != type_id:
        return Definition(type_id)
    return defined.definition


def _json(found: list[Named], *, single: bool) -> object:
    if single and len(found) == 1:
        return found[0].definition.plain()
    by_parent: dict[str, list[object]] = {}
    for named in found:
        by_parent.setdefault(named.parent, []).append({named.uuid: named.definition.plain()})
    return [by_parent] if by_parent else []
