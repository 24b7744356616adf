"""`umdev plugins`."""

from __future__ import annotations

from dataclasses import replace

import click
from umdev.errors import UmdevError
from umdev.plugins import Group, PluginInfo, discovery, installed, plugins

from umdev_cli import lazy, output
from umdev_cli.failures import Exit, line


@click.command
@click.option("--no-load", is_flag=True, help="Read metadata only; a plugin that fails to import is not noticed.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON instead of text.")
def command(*, no_load: bool, as_json: bool) -> int:
    """List installed plugins and whether they work: each is imported and its hooks are checked.

    The exit code is 5 if two distributions claim one name, else 0: a broken plugin doesn't keep others from working.
    """
    found = [info for group in Group for info in installed(group)]
    conflict = any(info.error for info in found)
    if not no_load:
        found = [_tried(info) for info in found]
    if as_json:
        output.dump_json(
            [
                {
                    "group": info.group.short,
                    "name": info.name,
                    "distribution": info.distribution,
                    "version": info.version,
                    "target": info.target,
                    "ok": info.error is None,
                    "error": info.error,
                }
                for info in found
            ]
        )
    else:
        status = "listed" if no_load else "ok"
        rows = [(info.group.short, info.name, info.source, info.error or status) for info in found]
        output.table(("GROUP", "NAME", "DISTRIBUTION", "STATUS"), rows)
    return Exit.CONFLICT if conflict else Exit.OK


def _tried(info: PluginInfo) -> PluginInfo:
    if info.error is not None:
        return info
    try:
        match info.group:
            case Group.PARENTS:
                plugins().load_parent(info.name)
            case Group.BUSES:
                plugins().load_bus(info.name)
            case Group.HYPERVISORS:
                plugins().load_hypervisor(info.name)
            case Group.ADDONS:
                plugins().load_addon(info.name)
            case Group.COMMANDS:
                discovery.load(info.group, info.name)
                if info.name in lazy.BUILTIN:
                    return replace(info, error="umdev has a command of that name")
    except UmdevError as error:
        return replace(info, error=line(error))
    return info
