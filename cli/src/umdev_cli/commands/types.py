"""`umdev types`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from umdev_cli import options, output

if TYPE_CHECKING:
    from umdev.device import Parent


@click.command
@options.parent("Only the types of this parent.")
@options.dumpjson
def command(parent: str | None, *, dumpjson: bool) -> int:
    """List the device types that installed parents offer, with how many more instances of each fit.

    A type's attributes are what start --attr and modify --addattr may set.
    """
    from umdev.plugins import plugins

    from umdev_cli import parents

    found, code = ([plugins().load_parent(parent)], 0) if parent is not None else parents.every()
    if dumpjson:
        output.dump_json([{each.name: _types(each) for each in found}] if found else [])
        return code
    for each in found:
        click.echo(each.name)
        for described in _types(each):
            for name, facts in described.items():
                click.echo(f"  {name}")
                click.echo(f"    Available instances: {facts['available_instances']}")
                click.echo(f"    Device API: {facts['device_api']}")
                click.echo(f"    Name: {facts['name']}")
                if "description" in facts:
                    # One line, as mdevctl prints the texts of GVT-g, which have five.
                    click.echo(f"    Description: {' '.join(facts['description'].split())}")
                if "attributes" in facts:
                    click.echo("    Attributes:")
                    for attribute, meaning in facts["attributes"].items():
                        click.echo(f"      {attribute}: {meaning}")
    return code


def _types(parent: Parent) -> list[dict[str, dict[str, Any]]]:
    described = []
    for offered in parent.types.values():
        facts: dict[str, Any] = {
            "available_instances": parent.available_instances(offered.id),
            "device_api": offered.device_api,
            "name": offered.name,
        }
        if offered.description:
            facts["description"] = offered.description
        if offered.attributes:
            facts["attributes"] = dict(offered.attributes)
        described.append({offered.id: facts})
    return described
