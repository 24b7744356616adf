"""Queries: methods of a model that tools may call by name, across processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import NotFound

if TYPE_CHECKING:
    from .model import Device

QueryT = TypeVar("QueryT", bound=Callable[..., object])
MARK = "__umdev_query__"


def query(method: QueryT) -> QueryT:
    """Let tools call this method: `umdev` commands reach it through the process that hosts the device.

    It runs with the device lock held, takes keyword arguments of plain data and returns plain data (None, bool, int,
    float, str, bytes, list, dict).
    """
    setattr(method, MARK, True)
    return method


def queries(device: Device) -> dict[str, str]:
    """Name of each query -> first line of its docstring."""
    found = {}
    for name in dir(type(device)):
        method = getattr(type(device), name)
        if getattr(method, MARK, False):
            found[name] = (method.__doc__ or "").strip().partition("\n")[0]
    return found


def call(device: Device, name: str, arguments: dict[str, Any]) -> object:
    """Raises: NotFound for a name that is no query; whatever the query raises."""
    offered = queries(device)
    if name not in offered:
        raise NotFound(f"{device} has no query {name!r}; it has: {', '.join(offered) or 'none'}")
    with device.locked():
        return getattr(device, name)(**arguments)
