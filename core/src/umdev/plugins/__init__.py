"""Plugins: found by entry point, loaded by name, asked through hooks.

Importing this package imports neither stevedore nor pluggy nor any plugin: `discovery` reads entry-point metadata and
imports stevedore when a plugin is loaded, `manager` is imported when `plugins()` is first called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .discovery import Group, PluginInfo, installed, load
from .offers import offering
from .options import ServeOption
from .rows import Row

if TYPE_CHECKING:
    from .manager import Plugins

__all__ = ["Group", "PluginInfo", "Row", "ServeOption", "installed", "load", "offering", "plugins"]


def plugins() -> Plugins:
    """The process's plugins; the same object on every call, from any thread."""
    from . import manager

    return manager.shared()
