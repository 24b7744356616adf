"""Which parent a device type belongs to, when a person names the type alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import Conflict, NotFound, UmdevError

if TYPE_CHECKING:
    from ..device.parent import Parent

__all__ = ["offering"]


def offering(name: str) -> tuple[Parent, str]:
    """The parent and the type id that `name` means: PARENT/TYPE, or TYPE where one parent alone offers it.

    A type alone imports every parent; those that can't be imported offer nothing, and are named when nobody else does.

    Raises: NotFound; Conflict when several parents offer it; for PARENT/TYPE as `Plugins.load_parent`.
    """
    from . import plugins

    parent_name, _, type_id = name.rpartition("/")
    if parent_name:
        return plugins().load_parent(parent_name), type_id
    parents, broken = [], []
    for known in sorted({info.name for info in plugins().parents()}):
        try:
            parents.append(plugins().load_parent(known))
        except UmdevError as error:
            broken.append(str(error))
    found = [parent for parent in parents if type_id in parent.types]
    if not found:
        types = ", ".join(sorted({offered for parent in parents for offered in parent.types})) or "none"
        failed = "".join(f"; not to be loaded: {text}" for text in broken)
        raise NotFound(f"no parent offers a type {type_id!r}; there are: {types}{failed}")
    if len(found) > 1:
        names = ", ".join(f"{parent.name}/{type_id}" for parent in found)
        raise Conflict(f"several parents offer {type_id!r}; say which: {names}")
    return found[0], type_id
