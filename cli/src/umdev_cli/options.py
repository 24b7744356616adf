"""Options that several commands share: mdevctl's names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from umdev.errors import InvalidArgument

from . import complete
from .identity import parse_uuid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .complete import Complete

__all__ = [
    "attributes",
    "bus",
    "dumpjson",
    "force",
    "jsonfile",
    "one",
    "parent",
    "parse_attributes",
    "type_",
    "uuid",
    "which",
    "wire_log",
    "writable",
]


CommandT = TypeVar("CommandT", bound="Callable[..., Any]")


def _uuid(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    return None if value is None else parse_uuid(value)


def writable(_context: click.Context, parameter: click.Parameter, path: str | None) -> str | None:
    """Raises: InvalidArgument for a file that can't be written. It is not made yet: much else may be wrong."""
    if path is not None:
        place = Path(path) if os.access(path, os.F_OK) else Path(path).absolute().parent
        if not os.access(place, os.W_OK):
            reason = "can't be written" if os.access(place, os.F_OK) else "does not exist"
            raise InvalidArgument(f"{parameter.opts[0]} {path}: {place} {reason}")
    return path


def _attributes(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    return parse_attributes(given)


def parse_attributes(given: Iterable[str]) -> dict[str, str]:
    """Name -> value of texts NAME=VALUE. Raises: InvalidArgument for another text, or a name that stands twice."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise InvalidArgument(f"{text!r} is no attribute: NAME=VALUE")
        if name in found:
            raise InvalidArgument(f"attribute {name!r} is given twice")
        found[name] = value
    return found


def uuid(help_: str, known: Complete = complete.defined) -> Callable[[CommandT], CommandT]:
    """-u, --uuid; `known` completes it."""
    return click.option("-u", "--uuid", metavar="UUID", callback=_uuid, shell_complete=known, help=help_)


def which(known: Complete) -> Callable[[CommandT], CommandT]:
    """The UUID of an existing device as the argument `device` or as --uuid; `one` says which was given."""

    def decorate(command: CommandT) -> CommandT:
        argument = click.argument("device", metavar="[UUID]", required=False, callback=_uuid, shell_complete=known)
        return argument(uuid("The UUID, as mdevctl has it.", known)(command))

    return decorate


def one(device: str | None, uuid: str | None) -> str:
    """The UUID that `which` was given. Raises: UsageError for none, and for two."""
    if device is not None and uuid not in (None, device):
        raise click.UsageError(f"say one device: {device} or {uuid}")
    given = device or uuid
    if given is None:
        raise click.UsageError("say which device: its UUID")
    return given


def parent(help_: str) -> Callable[[CommandT], CommandT]:
    """-p, --parent."""
    return click.option("-p", "--parent", metavar="PARENT", shell_complete=complete.parents, help=help_)


def type_(help_: str) -> Callable[[CommandT], CommandT]:
    """-t, --type, as `type_`."""
    return click.option("-t", "--type", "type_", metavar="TYPE", shell_complete=complete.types, help=help_)


jsonfile = click.option(
    "--jsonfile", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Take the details from FILE."
)
dumpjson = click.option("--dumpjson", "--json", "dumpjson", is_flag=True, help="Write JSON instead of text.")
wire_log = click.option(
    "--wire-log",
    type=click.Path(dir_okay=False),
    callback=writable,
    help="Append every message of the bus to a file.",
)
attributes = click.option(
    "--attr",
    "attributes",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_attributes,
    help="Set an attribute of the type (umdev types lists them), also in place of a definition's. Repeatable.",
)
bus = click.option(
    "--bus", default="vfio-user", show_default=True, shell_complete=complete.buses, help="Bus that serves the device."
)
force = click.option("--force", is_flag=True, hidden=True, help="Accepted for mdevctl's sake; there are no call-outs.")
