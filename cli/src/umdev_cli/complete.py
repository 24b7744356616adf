"""What the shell completes beside commands and options: types, parents, buses, UUIDs. What fails offers nothing."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import click

__all__ = ["Complete", "buses", "defined", "devices", "parents", "running", "types"]


class Complete(Protocol):
    """As click calls it."""

    def __call__(self, context: click.Context, parameter: click.Parameter, incomplete: str, /) -> list[str]:
        """The words that begin so."""


def _offering(find: Callable[[], Iterable[str]]) -> Complete:
    def complete(_context: click.Context, _parameter: click.Parameter, incomplete: str, /) -> list[str]:
        found: list[str] = []
        with contextlib.suppress(Exception):  # plugins may raise anything, and nobody reads what a completion says
            found += sorted(word for word in find() if word.startswith(incomplete))
        return found

    return complete


def _types() -> Iterator[str]:
    """Types that can be loaded; as PARENT/TYPE where several parents offer one."""
    from umdev.errors import UmdevError
    from umdev.plugins import plugins

    offered: dict[str, list[str]] = {}
    for name in {info.name for info in plugins().parents()}:
        with contextlib.suppress(UmdevError):
            for type_id in plugins().load_parent(name).types:
                offered.setdefault(type_id, []).append(name)
    for type_id, owners in offered.items():
        yield from [type_id] if len(owners) == 1 else [f"{owner}/{type_id}" for owner in owners]


def _plugins(group: str) -> Iterable[str]:
    from umdev.plugins import Group, installed

    return {info.name for info in installed(Group[group])}


def _running() -> Iterable[str]:
    from . import hosts

    return hosts.running()


def _defined() -> Iterable[str]:
    from .definitions import Definitions

    return {named.uuid for named in Definitions().all()}


types = _offering(_types)
parents = _offering(lambda: _plugins("PARENTS"))
buses = _offering(lambda: _plugins("BUSES"))
running = _offering(_running)
defined = _offering(_defined)
devices = _offering(lambda: [*_types(), *_defined()])
