"""Which device a command means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec
from umdev.errors import Conflict
from umdev.plugins import offering

from umdev_cli.definitions import Definition, Definitions, Named, read
from umdev_cli.identity import is_uuid, new_uuid

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["by_options", "by_word", "with_attributes"]


def by_word(device: str, parent: str | None, uuid: str | None) -> Named:
    """A defined device by its UUID, or a new one of a type, TYPE or PARENT/TYPE.

    Raises: UsageError, NotFound, Conflict.
    """
    if is_uuid(device):
        if uuid is not None:
            raise click.UsageError(f"{device} is a UUID already: leave out --uuid")
        return Definitions().one(device.lower(), parent)
    if parent is None:
        owner, device = offering(device)
        parent = owner.name
    return Named(uuid or new_uuid(), parent, Definition(device))


def with_attributes(named: Named, attributes: Mapping[str, str]) -> Named:
    """The device with these attributes beside or in place of its definition's. Raises: InvalidArgument."""
    return msgspec.structs.replace(named, definition=named.definition.changed(attributes))


def by_options(uuid: str | None, parent: str | None, type_: str | None, jsonfile: Path | None) -> Named:
    """The device that the options mean, as mdevctl reads them. Raises: UsageError, NotFound, Conflict."""
    if uuid is None and parent is None:
        raise click.UsageError("say which device: its type or UUID")
    if jsonfile is not None:
        if type_ is not None:
            raise click.UsageError("--jsonfile excludes --type")
        if parent is None:
            raise click.UsageError("--jsonfile needs --parent")
        return Named(uuid or new_uuid(), parent, read(jsonfile))
    if uuid is not None and Definitions().all(uuid, parent):
        named = Definitions().one(uuid, parent)
        if type_ not in (None, named.definition.mdev_type):
            raise Conflict(f"{uuid} is defined for {named.parent} with type {named.definition.mdev_type}, not {type_}")
        return named
    if parent is None or type_ is None:
        if uuid is not None and parent is None and type_ is None:
            return Definitions().one(uuid)
        raise click.UsageError("a device that is not defined needs --parent and --type")
    return Named(uuid or new_uuid(), parent, Definition(type_))
