"""What a plugin may not do with hooks, each mistake refused with the plugin, the hook and the reason; and who failed.

pluggy itself accepts an unmarked function, a marker of another project and an ordering that depends on installation
silently, so they are looked for here. Attributes are inspected without running properties.
"""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any

from umdev import hookspecs
from umdev.errors import PluginError

from .discovery import Group

if TYPE_CHECKING:
    from collections.abc import Iterable

_SPECS = {
    name: getattr(function, f"{hookspecs.PROJECT}_spec")
    for name, function in vars(hookspecs).items()
    if hasattr(function, f"{hookspecs.PROJECT}_spec")
}
SERVICES = tuple(name for name, options in _SPECS.items() if options["firstresult"])
"""Hooks that are asked and answered."""
BROADCASTS = tuple(name for name in _SPECS if name not in SERVICES)
"""Hooks that everybody hears."""


def check(group: Group, label: str, plugin: object) -> None:
    """Raises: PluginError for the first mistake; `hook` names the function it is in."""
    if type(plugin).__hash__ is None:
        raise PluginError(label, "register", TypeError("the plugin object must be hashable"))
    hooks = 0
    for name in dir(plugin):
        function = _function(plugin, name)
        if function is None:
            continue
        options = getattr(function, f"{hookspecs.PROJECT}_impl", None)
        reason = _unmarked(name) if options is None else _misused(group, name, options)
        if reason is not None:
            raise PluginError(label, name, TypeError(reason))
        hooks += options is not None
    if not hooks:
        raise PluginError(
            label, "register", TypeError("it implements no umdev hook; each needs @umdev.hookspecs.hookimpl")
        )


def guilty(implementations: Iterable[Any], failure: BaseException) -> list[str]:
    """The add-on whose wrapper raised, by key; all wrapping add-ons when the traceback does not show it.

    It is the one in the innermost frame: on the way out the exception passes through the other wrappers too. Plugins
    may share a class, so the frame's `self` is compared as well as its code.
    """
    wrappers = [implementation for implementation in implementations if implementation.wrapper]
    frames = []
    traceback = failure.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    for frame in reversed(frames):
        for wrapper in wrappers:
            function = wrapper.function
            owner = getattr(function, "__self__", None)
            code = inspect.unwrap(function).__code__
            if code is frame.f_code and (owner is None or frame.f_locals.get(code.co_varnames[0]) is owner):
                return [wrapper.plugin_name]
    return [wrapper.plugin_name for wrapper in wrappers]


def _function(plugin: object, name: str) -> Any | None:
    found = inspect.getattr_static(plugin, name, None)
    if isinstance(found, staticmethod | classmethod):
        found = found.__func__
    return found if inspect.isroutine(found) else None


def _unmarked(name: str) -> str | None:
    if not name.startswith(f"{hookspecs.PROJECT}_"):
        return None
    return f"it is not marked as a hook by @umdev.hookspecs.hookimpl{_suggestion(name)}"


def _misused(group: Group, name: str, options: Any) -> str | None:
    if options["specname"] is not None:
        name = options["specname"]
    if name not in _SPECS:
        return f"there is no hook {name}{_suggestion(name)}"
    if options["tryfirst"] or options["trylast"]:
        return "the order of asking is fixed: tryfirst and trylast are not allowed"
    if options["hookwrapper"]:
        return "old-style hook wrappers are not allowed; use wrapper=True"
    if name in BROADCASTS:
        return "a broadcast has no answer to wrap; implement it plainly" if options["wrapper"] else None
    if group is Group.ADDONS and not options["wrapper"]:
        return "an add-on never answers a service hook; wrap it with wrapper=True"
    if group is not Group.ADDONS and options["wrapper"]:
        return "only add-ons wrap service hooks"
    return None


def _suggestion(name: str) -> str:
    if name in _SPECS:
        return ""
    near = difflib.get_close_matches(name, _SPECS, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(_SPECS)}"
