"""Which plugins are installed, and loading one by name. The only module that imports stevedore, and only to load.

Listing reads entry-point metadata and imports no plugin. A name belongs to one distribution; when two claim it, neither
is loaded. One plugin that fails to import never keeps another from working.
"""

from __future__ import annotations

import enum
import importlib.metadata
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umdev.errors import InvalidArgument, NotFound, PluginConflict, PluginError

from . import environment

if TYPE_CHECKING:
    from collections.abc import Iterator


class Group(enum.Enum):
    """The entry-point groups. The value is the group's full name."""

    PARENTS = "umdev.parents"
    BUSES = "umdev.buses"
    HYPERVISORS = "umdev.hypervisors"
    ADDONS = "umdev.addons"
    COMMANDS = "umdev.commands"
    """Sub-commands of the `umdev` command: the entry point's name is the command, its object a `click.Command`."""

    @property
    def short(self) -> str:
        """The group's name without the project's: `parents`."""
        return self.value.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """What metadata tells of a plugin; nothing was imported to know it."""

    group: Group
    name: str
    distribution: str
    version: str
    target: str
    """`module:object`, as the entry point says."""
    error: str | None = None
    """Why it can't be used, as far as known: a conflict, or the failure of an earlier load in this process."""

    @property
    def label(self) -> str:
        """How messages name it: `buses/vfio-user (umdev-vfio-user 0.1.0)`."""
        return f"{self.group.short}/{self.name} ({self.source})"

    @property
    def source(self) -> str:
        """The distribution with its version, or the environment variable that adds it."""
        return f"{self.distribution} {self.version}".rstrip()


class _FileEntryPoint(importlib.metadata.EntryPoint):
    """An entry of UMDEV_PLUGINS whose module is a file: it is run once, under a name of its own."""

    def load(self) -> Any:
        path, _, attribute = self.value.rpartition(":")
        name = "umdev_plugin_" + "".join(letter if letter.isalnum() else "_" for letter in self.name)
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, Path(path).absolute())
            if spec is None or spec.loader is None:
                raise ImportError(f"{path} is not a Python file")
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
        return getattr(sys.modules[name], attribute)


def installed(group: Group) -> list[PluginInfo]:
    """The group's plugins by name, installed ones and those of UMDEV_PLUGINS, without the disabled ones.

    Every claim is listed: a name that two distributions claim appears twice, each with the conflict as its `error`.

    Raises: InvalidArgument when UMDEV_PLUGINS is malformed.
    """
    infos = sorted(
        (_describe(group, point) for point in _entry_points(group)), key=lambda info: (info.name, info.label)
    )
    claims: dict[str, list[PluginInfo]] = {}
    for info in infos:
        claims.setdefault(info.name, []).append(info)
    return [
        info
        if len(claims[info.name]) == 1
        else PluginInfo(group, info.name, info.distribution, info.version, info.target, _conflict(claims[info.name]))
        for info in infos
    ]


def find(group: Group, name: str) -> PluginInfo:
    """The one plugin of that name; imports nothing.

    Raises: NotFound, PluginConflict (both distributions are named), InvalidArgument (UMDEV_PLUGINS is malformed).
    """
    infos = installed(group)
    claims = [info for info in infos if info.name == name]
    if len(claims) > 1:
        raise PluginConflict(_conflict(claims))
    if not claims:
        names = ", ".join(info.name for info in infos) or "none"
        raise NotFound(f"no plugin {name!r} in {group.value}; there are: {names}")
    return claims[0]


def load(group: Group, name: str) -> Any:
    """Import the plugin and return the object that its entry point names.

    Raises: NotFound, PluginConflict, InvalidArgument as `find`; PluginError when the import fails, with the cause.
    """
    from stevedore.named import NamedExtensionManager

    class Catalogue(NamedExtensionManager[Any]):
        """Reads live metadata: stevedore's disk cache goes stale and forgets which distribution an entry came from."""

        def list_entry_points(self) -> list[importlib.metadata.EntryPoint]:
            return list(_entry_points(group))

    info = find(group, name)
    failures: list[BaseException] = []
    try:
        found = Catalogue(
            group.value,
            [name],
            on_load_failure_callback=lambda _manager, _point, failure: failures.append(failure),
            on_missing_entrypoints_callback=None,
        )
    except (AssertionError, SystemExit) as failure:  # stevedore lets these through
        failures.append(failure)
    if failures:
        raise PluginError(info.label, "import", _advised(info, failures[0])) from failures[0]
    return found[name].plugin


def _entry_points(group: Group) -> Iterator[importlib.metadata.EntryPoint]:
    for point in importlib.metadata.entry_points(group=group.value):
        if not environment.disabled(group.short, point.name, _describe(group, point).distribution):
            yield point
    for entry in environment.added():
        if entry.group not in (known.short for known in Group):
            groups = ", ".join(known.short for known in Group)
            raise InvalidArgument(f"{environment.PLUGINS}: no group {entry.group!r}; there are: {groups}")
        if entry.group == group.short:
            module = entry.target.rpartition(":")[0]
            kind = _FileEntryPoint if module.endswith(".py") else importlib.metadata.EntryPoint
            yield kind(entry.name, entry.target, group.value)


def _describe(group: Group, point: importlib.metadata.EntryPoint) -> PluginInfo:
    if point.dist is None:
        return PluginInfo(group, point.name, environment.PLUGINS, "", point.value)
    return PluginInfo(group, point.name, point.dist.name, point.dist.version, point.value)


def _advised(info: PluginInfo, failure: BaseException) -> BaseException:
    """The failure; with how to name a file of the current folder, which a command doesn't import from."""
    module, _, attribute = info.target.rpartition(":")
    if (
        isinstance(failure, ModuleNotFoundError)
        and failure.name == module
        and info.distribution == environment.PLUGINS
        and Path(f"{module}.py").is_file()
    ):
        name = info.name if info.group is Group.PARENTS else f"{info.group.short}/{info.name}"
        return ModuleNotFoundError(f"{failure}; it is a file here: write {name}=./{module}.py:{attribute}", name=module)
    return failure


def _conflict(claims: list[PluginInfo]) -> str:
    name = f"{claims[0].group.short}/{claims[0].name}"
    sources = " and by ".join(info.source for info in claims)
    return f"{name} is claimed by {sources}; uninstall one or hide it with {environment.DISABLE}"
