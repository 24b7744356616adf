"""One pluggy manager per process: registration that refuses mistakes, typed service calls, blame, broadcasts.

With `hookspecs`, the only module that imports pluggy. Nothing here is on a hot path: a service is asked for once per
attachment and used without pluggy afterwards.

The order of asking never depends on what was installed or loaded first. Category (a) asks the attachment's bus, then
the core's fallback; category (b) its hypervisor, its bus, then the fallback. Broadcasts go to the fallback, buses,
hypervisors and add-ons, by name within each. Add-ons wrap service hooks, the later name outside, and never answer them.

Any thread may call anything here. No lock is held while a hook runs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pluggy

from umdev import hookspecs
from umdev.errors import InvalidArgument, PluginError, ServiceUnavailable, UmdevError

from . import discovery, environment, refusals, trace
from .discovery import Group, PluginInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from umdev.attach import Attachment
    from umdev.device.parent import Parent
    from umdev.services import (
        Area,
        InterruptSink,
        MemoryMapper,
        PagePinner,
        PageProtector,
        Passthrough,
        ProtectMode,
        Translator,
        Trap,
    )

__all__ = ["Plugins", "shared"]

_log = logging.getLogger("umdev.plugins")

_FALLBACK = "core/fallback"
_ANSWER = "core/answer"
_ORDER = (Group.BUSES, Group.HYPERVISORS, Group.ADDONS)


@dataclass(frozen=True, slots=True)
class _Registry:
    """An immutable picture of what is registered: calls in progress keep theirs while another thread registers."""

    manager: pluggy.PluginManager
    plugins: Mapping[str, Any]
    """Key (`buses/loopback`, `core/fallback`) -> plugin object, in the fixed order."""
    labels: Mapping[str, str]

    def caller(self, hook: str, keys: set[str]) -> pluggy.HookCaller:
        others = [plugin for key, plugin in self.manager.list_name_plugin() if key not in keys]
        return self.manager.subset_hook_caller(hook, others)


class _Question:
    """One service asked for. Plugins get it as `decline`; who declines is known because they are asked one by one."""

    def __init__(self, ask: Callable[[_Question], Any]) -> None:
        self._ask = ask
        self.asked = "an add-on"
        self.reasons: list[tuple[str, str]] = []
        self.answer: Any = None

    def __call__(self, reason: str) -> None:
        self.reasons.append((self.asked, reason))

    def put(self) -> Any:
        """Ask the plugins in order; add-ons wrap this call."""
        self.answer = self._ask(self)
        self.asked = "an add-on"
        return self.answer


class Plugins:
    """The plugins of a process. Programs use the shared one from `umdev.plugins.plugins()`; tests make their own."""

    def __init__(self, fallback: object | None = None) -> None:
        """`fallback` stands in for the core's own services, which are imported when they are first needed."""
        self._fallback = fallback
        self._lock = threading.RLock()
        self._registered: dict[tuple[Group, str], tuple[Any, str]] = {}
        self._parents: dict[str, Any] = {}
        self._failures: dict[tuple[Group, str], str] = {}
        self._addons_loaded = False
        self._registry: _Registry | None = None

    # Listing: metadata only.
    def parents(self) -> list[PluginInfo]:
        """Installed parents; imports none, as all four listings. Raises: InvalidArgument (UMDEV_PLUGINS)."""
        return self._listed(Group.PARENTS)

    def buses(self) -> list[PluginInfo]:
        """Installed buses."""
        return self._listed(Group.BUSES)

    def hypervisors(self) -> list[PluginInfo]:
        """Installed hypervisors."""
        return self._listed(Group.HYPERVISORS)

    def addons(self) -> list[PluginInfo]:
        """Installed add-ons."""
        return self._listed(Group.ADDONS)

    # Loading, by name.
    def load_parent(self, name: str) -> Parent:
        """The parent object of that name, the same on every call.

        Raises: NotFound, PluginConflict, PluginError.
        """
        from umdev.device.parent import Parent

        with self._lock:
            if name not in self._parents:
                parent = self._load(Group.PARENTS, name)
                if not isinstance(parent, Parent):
                    self._refuse(Group.PARENTS, name, "load", TypeError(f"{parent!r} is not an umdev.device.Parent"))
                if parent.name != name:
                    reason = f"the parent's name is {parent.name!r}, the entry point's {name!r}; they must agree"
                    self._refuse(Group.PARENTS, name, "load", ValueError(reason))
                self._parents[name] = parent
            loaded: Parent = self._parents[name]
            return loaded

    def load_bus(self, name: str) -> Any:
        """The bus plugin of that name, registered. Raises: NotFound, PluginConflict, PluginError."""
        return self._load_registered(Group.BUSES, name)

    def load_hypervisor(self, name: str) -> Any:
        """The hypervisor plugin of that name, registered. Raises: NotFound, PluginConflict, PluginError."""
        return self._load_registered(Group.HYPERVISORS, name)

    def load_addon(self, name: str) -> Any:
        """The add-on of that name, registered. Raises: NotFound, PluginConflict, PluginError."""
        return self._load_registered(Group.ADDONS, name)

    def load_addons(self) -> None:
        """Register every add-on; the first service or broadcast does it. One that fails is logged, not raised."""
        with self._lock:
            if self._addons_loaded:
                return
            self._addons_loaded = True
            for name in sorted({info.name for info in self.addons()}):
                try:
                    self._load_registered(Group.ADDONS, name)
                except UmdevError as failure:
                    self._failures[Group.ADDONS, name] = str(failure)
                    _log.warning("%s", failure)

    def register(self, group: Group, name: str, plugin: object, source: str = "registered by the program") -> None:
        """Add a plugin object that was not loaded by entry point. After a failure the plugins are as before.

        Raises: PluginError naming plugin, hook and reason when a hook is unknown, unmarked or not allowed in the group,
        or when the plugin has no hook at all; InvalidArgument for a name that is taken or a group without hooks.
        """
        if group not in _ORDER:
            raise InvalidArgument(f"plugins of {group.value} have no hooks to register")
        with self._lock:
            if (group, name) in self._registered:
                raise InvalidArgument(f"{group.short}/{name} is registered already")
            refusals.check(group, f"{group.short}/{name} ({source})", plugin)
            added = {**self._registered, (group, name): (plugin, source)}
            self._registry = self._build(added)
            self._registered = added

    # Services, category (a).
    def passthrough(self, attachment: Attachment, area: Area) -> Passthrough:
        """Raises: ServiceUnavailable with every reason; PluginError when a plugin fails. So do all services."""
        service: Passthrough = self._ask(
            "passthrough", "umdev_passthrough_area", attachment, (Group.BUSES,), {"area": area}
        )
        return service

    def trap(self, attachment: Attachment, region: int) -> Trap:
        """Service 2 for one region (VFIO region index)."""
        service: Trap = self._ask("trap", "umdev_trap_region", attachment, (Group.BUSES,), {"region": region})
        return service

    def interrupts(self, attachment: Attachment, vectors: int) -> InterruptSink:
        """Service 3."""
        service: InterruptSink = self._ask(
            "interrupt", "umdev_connect_interrupts", attachment, (Group.BUSES,), {"vectors": vectors}
        )
        return service

    # Services, category (b).
    def map_memory(self, attachment: Attachment) -> MemoryMapper:
        """Service 4."""
        service: MemoryMapper = self._ask("map", "umdev_map_memory", attachment, (Group.HYPERVISORS, Group.BUSES))
        return service

    def pinner(self, attachment: Attachment) -> PagePinner:
        """Service 5."""
        service: PagePinner = self._ask("pin", "umdev_pin_pages", attachment, (Group.HYPERVISORS, Group.BUSES))
        return service

    def protector(self, attachment: Attachment, mode: ProtectMode) -> PageProtector:
        """Service 6 with the guarantee that `mode` names."""
        service: PageProtector = self._ask(
            f"protect ({mode.value})",
            "umdev_protect_pages",
            attachment,
            (Group.HYPERVISORS, Group.BUSES),
            {"mode": mode},
        )
        return service

    def translator(self, attachment: Attachment) -> Translator:
        """Service 7."""
        service: Translator = self._ask("translate", "umdev_translate", attachment, (Group.HYPERVISORS, Group.BUSES))
        return service

    # Broadcasts.
    def tell(self, hook: str, **arguments: Any) -> None:
        """Call a broadcast hook in every plugin that is registered, whoever fails.

        Raises: ExceptionGroup of PluginError, one for each plugin that failed, after all have heard it;
        InvalidArgument when there is no such broadcast.
        """
        if hook not in refusals.BROADCASTS:
            raise InvalidArgument(f"{hook!r} is not a broadcast; there are: {', '.join(refusals.BROADCASTS)}")
        registry = self._ready()
        failures: list[PluginError] = []
        for key in registry.plugins:
            try:
                registry.caller(hook, {key})(**arguments)
            except PluginError as failure:
                failures.append(failure)
            except Exception as failure:  # noqa: BLE001 - a plugin may raise anything; the others still hear the hook
                blamed = PluginError(registry.labels[key], hook, failure)
                blamed.__cause__ = failure
                failures.append(blamed)
        if failures:
            raise ExceptionGroup(f"{hook}: {len(failures)} plugin(s) failed", failures)

    # Inside.
    def _listed(self, group: Group) -> list[PluginInfo]:
        return [
            info if info.error else replace(info, error=self._failures.get((group, info.name)))
            for info in discovery.installed(group)
        ]

    def _load(self, group: Group, name: str) -> Any:
        try:
            return discovery.load(group, name)
        except PluginError as failure:
            self._failures[group, name] = str(failure)
            raise

    def _refuse(self, group: Group, name: str, hook: str, cause: Exception) -> None:
        failure = PluginError(discovery.find(group, name).label, hook, cause)
        self._failures[group, name] = str(failure)
        raise failure

    def _load_registered(self, group: Group, name: str) -> Any:
        with self._lock:
            if (group, name) not in self._registered:
                source = discovery.find(group, name).source
                plugin = self._load(group, name)
                try:
                    self.register(group, name, plugin, source)
                except PluginError as failure:
                    self._failures[group, name] = str(failure)
                    raise
            return self._registered[group, name][0]

    def _build(self, registered: Mapping[tuple[Group, str], tuple[Any, str]]) -> _Registry:
        if self._fallback is None:
            from umdev.attach.fallback import fallback

            self._fallback = fallback
        plugins: dict[str, Any] = {_FALLBACK: self._fallback}
        labels = {_FALLBACK: _FALLBACK}
        for group, name in sorted(registered, key=lambda key: (_ORDER.index(key[0]), key[1])):
            key = f"{group.short}/{name}"
            plugins[key], source = registered[group, name]
            labels[key] = f"{key} ({source})"
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        answers = {hook: staticmethod(hookspecs.hookimpl(_answering())) for hook in refusals.SERVICES}
        manager.register(type("Answer", (), answers), _ANSWER)
        for key, plugin in plugins.items():
            try:
                manager.register(plugin, key)
                manager.check_pending()
            except (pluggy.PluginValidationError, ValueError, TypeError) as refusal:
                raise PluginError(labels[key], "register", refusal) from refusal
        if environment.tracing():
            manager.add_hookcall_monitoring(trace.before, trace.after)
        return _Registry(manager, plugins, labels)

    def _ready(self) -> _Registry:
        with self._lock:
            self.load_addons()
            if self._registry is None:
                self._registry = self._build(self._registered)
            return self._registry

    def _ask(
        self,
        service: str,
        hook: str,
        attachment: Attachment,
        groups: tuple[Group, ...],
        arguments: Mapping[str, Any] | None = None,
    ) -> Any:
        """Ask the attachment's plugins of these groups in this order, then the fallback, wrapped by the add-ons."""
        names = {Group.BUSES: attachment.bus, Group.HYPERVISORS: attachment.hypervisor}
        order = [f"{group.short}/{self._loaded(group, name)}" for group in groups if (name := names[group]) is not None]
        registry = self._ready()

        def ask(question: _Question) -> Any:
            for key in [*order, _FALLBACK]:
                question.asked = registry.labels[key]
                with _blame(question.asked, hook):
                    answer = registry.caller(hook, {key})(attachment=attachment, decline=question, **(arguments or {}))
                    if answer is not None:
                        return _checked(answer)
            return None

        question = _Question(ask)
        wrappers = {key for key in registry.plugins if key.startswith(f"{Group.ADDONS.short}/")}
        call = registry.caller(hook, {_ANSWER, *wrappers})
        try:
            answer = call(attachment=attachment, decline=question, **(arguments or {}))
            if answer is not None and question.answer is None:
                raise TypeError("it answers the hook; an add-on may only wrap it")
        except Exception as failure:
            _close(question.answer)
            if isinstance(failure, UmdevError):
                raise
            guilty = refusals.guilty(call.get_hookimpls(), failure)
            raise PluginError(", ".join(registry.labels[key] for key in guilty), hook, failure) from failure
        if answer is None:
            _close(question.answer)  # an add-on vetoed it
            raise ServiceUnavailable(service, question.reasons)
        return answer

    def _loaded(self, group: Group, name: str) -> str:
        self._load_registered(group, name)
        return name


def _answering() -> Callable[[_Question], Any]:
    """The marker writes on the function it is given, so each hook needs one of its own."""

    def answer(decline: _Question) -> Any:
        return decline.put()

    return answer


@contextlib.contextmanager
def _blame(label: str, hook: str) -> Iterator[None]:
    """Named errors pass, with a note that says whose they are; anything else becomes a PluginError."""
    try:
        yield
    except UmdevError as error:
        error.add_note(f"raised by plugin {label} in {hook}")
        raise
    except Exception as failure:
        raise PluginError(label, hook, failure) from failure


def _checked(answer: Any) -> Any:
    if not isinstance(getattr(answer, "mechanism", None), str) or not callable(getattr(answer, "close", None)):
        raise TypeError(f"{answer!r} is no bound service: it needs a `mechanism` text and `close()`")
    return answer


def _close(service: Any) -> None:
    if service is not None:
        service.close()


_shared: Plugins | None = None
_shared_lock = threading.Lock()


def shared() -> Plugins:
    """The process's `Plugins`; use `umdev.plugins.plugins()`."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Plugins()
        return _shared
