"""The command tree: nothing of a command is imported before it is used, and add-ons bring commands of their own.

An add-on registers a `click.Command` in the entry-point group `umdev.commands`; the entry point's name is the
command's. Help names such commands with their distribution, from metadata alone. The names of umdev's own commands are
taken.
"""

from __future__ import annotations

import importlib
from typing import Any

import click
from umdev.errors import NotFound, PluginError

__all__ = ["BUILTIN", "LazyGroup"]

BUILTIN: dict[str, str] = {
    "types": "List the device types that installed parents offer.",
    "list": "List running or defined devices.",
    "define": "Define a persistent device.",
    "undefine": "Remove the definition of a device.",
    "modify": "Change the definition of a device.",
    "start": "Start a device in a process of its own.",
    "stop": "Stop a running device.",
    "show": "Show a running device: config space, services, counters.",
    "serve": "Serve a device in the foreground, as QEMU's conventions ask.",
    "plugins": "List installed plugins and whether they work.",
    "doctor": "Say what this host can do, and how to get the rest.",
    "demo": "Drive and prove the seven services on this machine.",
}
"""Command -> what it does. Each is `command` in `umdev_cli.commands.NAME`, or in `umdev_cli.demo`."""


class LazyGroup(click.Group):
    """`umdev` itself."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Own commands in the order of use, then those of add-ons."""
        return [*BUILTIN, *sorted(name for name in self._added() if name not in BUILTIN)]

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """Import one command.

        Raises: PluginConflict, PluginError for an add-on's command that can't be loaded.
        """
        if name in BUILTIN:
            module = importlib.import_module("umdev_cli.demo" if name == "demo" else f"umdev_cli.commands.{name}")
            own: click.Command = module.command
            return own
        return _load(name)

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(BUILTIN.items()))
        added = {name: source for name, source in self._added().items() if name not in BUILTIN}
        if added:
            with formatter.section("Commands of add-ons"):
                formatter.write_dl([(name, f"From {source}.") for name, source in sorted(added.items())])

    @staticmethod
    def _added() -> dict[str, str]:
        from umdev.plugins import Group, installed

        return {info.name: info.source for info in installed(Group.COMMANDS)}


def _load(name: str) -> click.Command | None:
    from umdev.plugins import Group, discovery

    try:
        info = discovery.find(Group.COMMANDS, name)
    except NotFound:
        return None
    loaded: Any = discovery.load(Group.COMMANDS, name)
    if not isinstance(loaded, click.Command):
        raise PluginError(info.label, "load", TypeError(f"{loaded!r} is not a click command"))
    return loaded
