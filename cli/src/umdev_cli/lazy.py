"""The command tree: nothing of a command is imported before it is used, and add-ons bring commands of their own.

An add-on registers a `click.Command` in the entry-point group `umdev.commands`; the entry point's name is the
command's. Help names such commands with their distribution, from metadata alone. The names of umdev's own commands are
taken.

An entry point with a dot is a variant of another command: `run.xen` is what `umdev run --xen ...` means. A variant is a
command of its own, which has that option; without any variant's option the plain command runs.
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
    "trace": "Follow the accesses and events of a running device.",
    "serve": "Serve a device in the foreground, as QEMU's conventions ask.",
    "plugins": "List installed plugins and whether they work.",
    "doctor": "Say what this host can do, and how to get the rest.",
    "new": "Make a device model to begin with.",
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
            own.name = name  # not that of the function
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

        found: dict[str, list[str]] = {}
        for info in installed(Group.COMMANDS):
            found.setdefault(info.name.partition(".")[0], []).append(info.source)
        return {name: " and ".join(sources) for name, sources in found.items()}


class Variants(click.Command):
    """A command that has variants: the arguments say which one is meant, help included."""

    def __init__(self, name: str, plain: click.Command | None, variants: list[str]) -> None:
        super().__init__(name)
        self._plain, self._variants = plain, variants

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> click.Context:
        """The context of the one that is meant. Raises: UsageError where there is no plain command."""
        given = {argument.partition("=")[0] for argument in args}
        for variant in self._variants:
            if f"--{variant}" in given:
                if not given.isdisjoint(("-h", "--help")):  # else help would be taken for the option's value
                    args = ["--help"]
                return _load_one(f"{self.name}.{variant}").make_context(info_name, args, parent, **extra)
        flags = " or ".join(f"--{variant}" for variant in self._variants)
        if self._plain is None:
            raise click.UsageError(f"umdev {self.name} needs {flags}")
        self._plain.epilog = (
            self._plain.epilog or f"With {flags} it is another command: umdev {self.name} {flags} --help."
        )
        return self._plain.make_context(info_name, args, parent, **extra)


def _load(name: str) -> click.Command | None:
    from umdev.plugins import Group, installed

    names = [info.name for info in installed(Group.COMMANDS)]
    variants = sorted(each.partition(".")[2] for each in names if each.startswith(f"{name}."))
    try:
        plain = _load_one(name)
    except NotFound:
        return Variants(name, None, variants) if variants else None
    return Variants(name, plain, variants) if variants else plain


def _load_one(name: str) -> click.Command:
    from umdev.plugins import Group, discovery

    info = discovery.find(Group.COMMANDS, name)
    loaded: Any = discovery.load(Group.COMMANDS, name)
    if not isinstance(loaded, click.Command):
        raise PluginError(info.label, "load", TypeError(f"{loaded!r} is not a click command"))
    loaded.name = name.partition(".")[0]
    return loaded
