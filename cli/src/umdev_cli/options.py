"""Options that several commands share: mdevctl's names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .identity import parse_uuid

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["bus", "dumpjson", "force", "jsonfile", "parent", "type_", "uuid", "wire_log"]


CommandT = TypeVar("CommandT", bound="Callable[..., Any]")


def _uuid(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    return None if value is None else parse_uuid(value)


def uuid(help_: str, *, required: bool = False) -> Callable[[CommandT], CommandT]:
    """-u, --uuid."""
    return click.option("-u", "--uuid", metavar="UUID", required=required, callback=_uuid, help=help_)


def parent(help_: str) -> Callable[[CommandT], CommandT]:
    """-p, --parent."""
    return click.option("-p", "--parent", metavar="PARENT", help=help_)


def type_(help_: str) -> Callable[[CommandT], CommandT]:
    """-t, --type, as `type_`."""
    return click.option("-t", "--type", "type_", metavar="TYPE", help=help_)


jsonfile = click.option(
    "--jsonfile", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Take the details from FILE."
)
dumpjson = click.option("--dumpjson", "--json", "dumpjson", is_flag=True, help="Write JSON instead of text.")
wire_log = click.option(
    "--wire-log", type=click.Path(dir_okay=False), help="Append every message of the bus to a file."
)
bus = click.option("--bus", default="vfio-user", show_default=True, help="Bus that serves the device.")
force = click.option("--force", is_flag=True, hidden=True, help="Accepted for mdevctl's sake; there are no call-outs.")
