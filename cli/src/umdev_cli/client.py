"""Talking to running devices, for commands of umdev and of add-ons. Imports no plugin."""

from __future__ import annotations

import os
import select
from typing import Any

from umdev.errors import NotFound, NotSupported, StateError

from . import control, hosts
from .identity import parse_uuid

__all__ = ["query", "show", "stop"]

_END_SECONDS = 15.0


def query(uuid: str, name: str, **arguments: Any) -> Any:
    """Call a query of a running device's model; arguments and result are plain data.

    Raises: InvalidArgument (UUID), NotFound (not running), NotSupported (not in a host process), RemoteError.
    """
    uuid = parse_uuid(uuid)
    return control.call(_host(uuid).path, control.Query(uuid, name, arguments))


def show(uuid: str) -> dict[str, Any]:
    """Describe a running device. Raises: as `query`."""
    uuid = parse_uuid(uuid)
    described: dict[str, Any] = control.call(_host(uuid).path, control.Show(uuid))
    return described


def stop(uuid: str) -> None:
    """End a running device, and its process if it was the last one there; nothing of it is left on return.

    Raises: as `query`; StateError when the process does not end.
    """
    uuid = parse_uuid(uuid)
    host = _host(uuid)
    process = os.pidfd_open(host.pid)
    try:
        last = control.call(host.path, control.Stop(uuid))
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if last and not poll.poll(_END_SECONDS * 1000):
            raise StateError(f"process {host.pid} has stopped {uuid} and does not end; its log is {host.log}")
    finally:
        os.close(process)
    hosts.tidy()


def _host(uuid: str) -> hosts.HostFolder:
    claimed = hosts.running().get(uuid)
    if claimed is None:
        raise NotFound(f"{uuid} is not running")
    host = hosts.find(uuid, claimed)
    if host is None:
        raise NotSupported(
            f"{uuid} lives in process {claimed.pid}, which was not started by umdev start or umdev serve"
        )
    return host
