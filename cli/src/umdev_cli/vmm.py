"""What a VMM needs before it starts, so that a hypervisor plugin can serve the devices' models while it runs.

A hypervisor plugin object may have a method `prepare_client(bus)`. It gets ready for clients of that bus and returns an
object with `environment` (variables for the client's process) and `close()`; None if it has nothing for that bus.
"""

from __future__ import annotations

import logging
import shlex
from typing import TYPE_CHECKING, Any, Protocol

from umdev.errors import UmdevError
from umdev.plugins import plugins

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ClientSetup", "advice", "prepare"]

_log = logging.getLogger("umdev.host")


class ClientSetup(Protocol):
    """What a hypervisor plugin has made ready."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables for the VMM's process."""

    def close(self) -> None:
        """Give it up; devices are served no more. May be called twice."""


def prepare(bus: str) -> tuple[str | None, ClientSetup | None]:
    """The hypervisor plugin for clients of that bus, and what it has made ready; none is no failure."""
    for info in plugins().hypervisors():
        try:
            plugin: Any = plugins().load_hypervisor(info.name)
            setup = plugin.prepare_client(bus) if hasattr(plugin, "prepare_client") else None
        except (UmdevError, OSError) as error:
            _log.warning("the hypervisor plugin %s is of no use for %s: %s", info.name, bus, error)
            continue
        if setup is not None:
            return info.name, setup
    return None, None


def advice(environment: Mapping[str, str]) -> str:
    """One line for people; empty if nothing is needed."""
    if not environment:
        return ""
    words = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
    return f"to let the model protect guest memory, start QEMU with: {words}"
