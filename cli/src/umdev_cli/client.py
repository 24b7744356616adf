"""Talking to running devices, for commands of umdev and of add-ons. Imports no plugin."""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from umdev.errors import Disconnected, NotFound, NotSupported, ProtocolError, StateError

from . import control, hosts
from .failures import RemoteError
from .identity import is_uuid, parse_uuid

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

__all__ = ["query", "show", "stop", "trace"]

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


def trace(device: str, patterns: list[str], records: int) -> Iterator[control.Traced]:
    """Follow a running device, given by UUID or by the path of its socket, until it is gone.

    Ends without an error when the device ends. Raises: as `query`; RemoteError; Disconnected when its process dies.
    """
    uuid = parse_uuid(device) if is_uuid(device) else _listening_at(device)
    host = _host(uuid)
    with control.connect(host.path, 60.0) as connection:
        body = _asked(connection, msgspec.msgpack.encode(control.Trace(uuid, patterns, records)))
        if body is not None:
            control.unwrap(body)
        connection.settimeout(None)  # a device may do nothing for long
        over = False
        while not over:
            body = _next(connection)
            if body is None:
                raise Disconnected(f"process {host.pid} of {uuid} ended without a word; its log is {host.log}")
            traced = msgspec.msgpack.decode(body, type=control.Traced)
            over = traced.over
            yield traced


def _asked(connection: socket.socket, request: bytes) -> bytes | None:
    """The reply; None as for `_next`."""
    try:
        control.send(connection, request)
    except OSError:
        return None
    return _next(connection)


def _next(connection: socket.socket) -> bytes | None:
    """A message; None where the process has ended, be it in the middle of one."""
    try:
        return control.receive(connection, control.REPLY_LIMIT)
    except (OSError, ProtocolError):
        return None


def _listening_at(path: str) -> str:
    """The running device whose bus listens at a path. Raises: NotFound."""
    wanted = Path(path).absolute()
    for uuid in hosts.running():
        try:
            listening = show(uuid)["socket"]
        except (NotFound, NotSupported, Disconnected, RemoteError):  # of another program, or just ended
            continue
        if listening and Path(listening).absolute() == wanted:
            return uuid
    raise NotFound(f"{path} is neither the UUID of a running device nor the socket of one")


def stop(uuid: str) -> None:
    """End a running device, and its process if it was the last one there; nothing of it is left on return.

    Raises: as `query`; StateError when the process does not end.
    """
    uuid = parse_uuid(uuid)
    host = _host(uuid)
    try:
        process = os.pidfd_open(host.pid)
    except ProcessLookupError:
        raise NotFound(f"{uuid} is not running: process {host.pid} has just ended") from None
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
