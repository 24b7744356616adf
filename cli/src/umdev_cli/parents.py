"""What commands need of parents. Imports plugins, so only commands that can't do without import this."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.errors import UmdevError
from umdev.plugins import plugins

from .failures import Exit, exit_code, line
from .output import note

if TYPE_CHECKING:
    from umdev.device import Parent

    from .definitions import Definition

__all__ = ["check", "every"]


def every() -> tuple[list[Parent], int]:
    """All parents that can be loaded, by name; the others are told on stderr. Also the exit code for that: 5 where two
    distributions claim one name, else 0.
    """
    found, code = [], Exit.OK
    for name in sorted({info.name for info in plugins().parents()}):
        try:
            found.append(plugins().load_parent(name))
        except UmdevError as error:
            note(line(error))
            if exit_code(error) == Exit.CONFLICT:
                code = Exit.CONFLICT
    return found, code


def check(parent_name: str, definition: Definition) -> Parent:
    """The parent, which offers the type with these attributes.

    Raises: NotFound, InvalidArgument, PluginConflict, PluginError.
    """
    parent = plugins().load_parent(parent_name)
    parent.check_attributes(definition.mdev_type, definition.attributes())
    return parent
