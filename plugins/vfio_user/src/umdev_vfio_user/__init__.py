"""The vfio-user bus driver of umdev: server and client."""

from __future__ import annotations

from .client import Client
from .function import VfioUserFunction
from .plugin import VfioUserBus, bus
from .server import Server

__all__ = ["Client", "Server", "VfioUserBus", "VfioUserFunction", "bus"]
