"""Following devices of a host process: one trace for all who follow, which runs while anybody does.

A follower reads the rings of the trace (umdev.device.trace), names what it finds and sends it. The device doesn't wait
for its reader: while that is slow the rings go on, and what they overwrite is counted. Handlers go before its own work.
"""

from __future__ import annotations

import fnmatch
import logging
import select
import socket
import threading
from typing import TYPE_CHECKING

import msgspec
from umdev.device import give_way, trace
from umdev.errors import Conflict, UmdevError

from . import control

if TYPE_CHECKING:
    from collections.abc import Callable

    from umdev.device import Device

__all__ = ["Tracing"]

_log = logging.getLogger("umdev.cli")

FOLLOWERS_LIMIT = 16
END_SECONDS = 2.0
BATCH = 2048
"""Entries in a message: a few hundred KiB at most."""
LOOK_MS = 50
"""How often the rings are read."""
PATIENCE = 20
"""Looks at a reader that takes nothing, after the device has gone."""


class Tracing:
    """The trace of this process and those who follow it. Any thread."""

    def __init__(self) -> None:
        self._guard = threading.Condition()
        self._trace: trace.Trace | None = None
        self._followers = 0

    def follow(
        self, device: Device, request: control.Trace, connection: socket.socket, gone: Callable[[], bool]
    ) -> None:
        """Reply, and send what `device` does until the reader hangs up or `gone` is true.

        The first follower decides how many records the rings keep. What goes wrong once it has replied is logged, and
        ends the connection. Raises: Conflict (16 follow already), StateError (the process traces itself),
        InvalidArgument (records); OSError when the reader goes.
        """
        running = self._enter(request.records)
        try:
            follower = trace.Follower(running)
            try:
                control.send(connection, msgspec.msgpack.encode(control.Done()))
                connection.settimeout(None)
                self._send_all(device, request.patterns, follower, connection, gone)
            except UmdevError:
                _log.exception("following %s has ended", device)
            finally:
                follower.close()
        finally:
            self._leave()

    def _enter(self, records: int) -> trace.Trace:
        with self._guard:
            if self._followers == FOLLOWERS_LIMIT:
                raise Conflict(f"{FOLLOWERS_LIMIT} commands follow this process already: end one")
            if self._trace is None:
                started = trace.Trace(records)
                started.__enter__()
                self._trace = started
            self._followers += 1
            return self._trace

    def _leave(self) -> None:
        with self._guard:
            self._followers -= 1
            if self._followers == 0 and self._trace is not None:
                self._trace.__exit__(None, None, None)
                self._trace.close()
                self._trace = None
            self._guard.notify_all()

    def wait(self) -> None:
        """When every device is gone: give followers the time to say so, two seconds at most."""
        with self._guard:
            self._guard.wait_for(lambda: self._followers == 0, END_SECONDS)

    def _send_all(
        self,
        device: Device,
        patterns: list[str],
        follower: trace.Follower,
        connection: socket.socket,
        gone: Callable[[], bool],
    ) -> None:
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        over = False
        number = device.native.id
        while not over and not poll.poll(LOOK_MS):  # the reader says nothing: what comes is its end
            over = gone()
            records, lost = follower.read()
            found = []
            for record in records:
                give_way()
                if record.device == number and (entry := _entry(device, record, patterns)):
                    found.append(entry)
            for first in range(0, len(found), BATCH) or ((0,) if lost or over else ()):
                last = first + BATCH >= len(found)
                message = control.Traced(found[first : first + BATCH], lost if last else 0, over and last)
                if not _send(connection, msgspec.msgpack.encode(message), gone):
                    return


def _entry(device: Device, record: trace.Record, patterns: list[str]) -> control.Entry | None:
    name = trace.name(record, device.regions, device.trace, device.config)
    if patterns and not any(_matches(name, pattern) for pattern in patterns):
        return None
    return control.Entry(
        time=record.time,
        kind="event" if record.event else "write" if record.write else "read",
        name=name,
        text=trace.line(record, device.regions, device.trace, device.config),
        value=record.value,
        offset=record.offset,
        length=record.length,
        duration=record.duration,
        outcome=record.outcome,
        thread=record.thread,
    )


def _matches(name: str, pattern: str) -> bool:
    """Brackets stand for themselves: names of registers have them, as in `bar0.rings[2].tail`."""
    return fnmatch.fnmatchcase(name.lower(), pattern.lower().replace("[", "[[]"))


def _send(connection: socket.socket, body: bytes, gone: Callable[[], bool]) -> bool:
    """Send a message as fast as the reader takes it; False when the device went while the reader stood still."""
    left = memoryview(control.framed(body))
    poll = select.poll()
    poll.register(connection, select.POLLOUT)
    stood = 0
    while left:
        if not poll.poll(LOOK_MS):
            stood = stood + 1 if gone() else 0
            if stood > PATIENCE:
                return False
            continue
        sent = connection.send(left, socket.MSG_DONTWAIT)
        left = left[sent:]
    return True
