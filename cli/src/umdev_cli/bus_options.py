"""Options that a bus brings: `--domain` is nothing to vfio-user, so it is there when `--bus` names its bus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

    from umdev.bus import ServeOption

__all__ = ["BusCommand", "given"]

_PREFIX = "bus_option_"
_META = "umdev_cli.bus_options"


class BusCommand(click.Command):
    """A command with `--bus`. That bus's own options (`serve_options`) reach it as arguments that `given` sorts out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Look at `--bus` first. Raises: NotFound, PluginConflict, PluginError for the bus."""
        if (name := _named(args)) is not None:
            ctx.meta[_META] = [_option(option) for option in _of_bus(name)]
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own and the bus's, which help shows as well."""
        return [*super().get_params(ctx), *ctx.meta.get(_META, [])]


def given(options: dict[str, Any]) -> dict[str, Any]:
    """What the user gave of the bus's own options, by the bus's names."""
    return {name.removeprefix(_PREFIX): value for name, value in options.items() if value not in (None, False)}


def _named(arguments: list[str]) -> str | None:
    for number, argument in enumerate(arguments):
        if argument == "--":
            break
        if argument.startswith("--bus="):
            return argument.partition("=")[2]
        if argument == "--bus" and number + 1 < len(arguments):
            return arguments[number + 1]
    return None


def _of_bus(name: str) -> Iterable[ServeOption]:
    from umdev.plugins import plugins

    found: Iterable[ServeOption] = getattr(plugins().load_bus(name), "serve_options", ())
    return found


def _option(option: ServeOption) -> click.Option:
    declaration = (f"--{option.name}", _PREFIX + option.name.replace("-", "_"))
    return click.Option(declaration, is_flag=option.flag, required=option.required, help=option.help)
