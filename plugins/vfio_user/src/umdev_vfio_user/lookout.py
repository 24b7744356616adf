"""What must be noticed while the message loop may be inside the device."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Self

from . import sockets

if TYPE_CHECKING:
    import socket
    from types import TracebackType

    from umdev.device import Device

log = logging.getLogger("umdev.vfio_user")

ACCEPT_PAUSE = 0.1
"""Seconds before another try when a connection can't be accepted."""

ABORT_PAUSE_MS = 1  # each access that is left may wait for one
"""Between two looks for accesses that wait, when nobody waits for them any more."""


class Lookout:
    """A thread beside the loop, from the first while one client is served; leaving it as a context manager ends it.

    Once the client is gone, or the server stopped, it ends accesses that a handler left pending, for which the loop
    would wait. Other clients that come meanwhile are turned away at once; who comes when the client has gone waits.
    """

    def __init__(self, device: Device, client: int, pid: int, listener: socket.socket | None) -> None:
        """`client`: the connected descriptor, open until the end; `pid`: its process, for the log.

        Raises: OSError when there is no descriptor left. Entering it: RuntimeError when there is no thread left.
        """
        self._device = device
        self._client = client
        self._pid = pid
        self._listener = listener
        self._end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=f"vfio-user lookout of {device}", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._thread.start()
        except BaseException:
            os.close(self._end)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.eventfd_write(self._end, 1)
        self._thread.join()
        os.close(self._end)

    def _run(self) -> None:
        waiting = select.poll()
        waiting.register(self._end, select.POLLIN)
        waiting.register(self._client, select.POLLRDHUP)
        if self._listener is not None:
            waiting.register(self._listener, select.POLLIN)
        while True:
            ready = dict(waiting.poll())
            if self._end in ready:
                return
            if self._leaving():
                break
            self._turn_away()
        waiting = select.poll()
        waiting.register(self._end, select.POLLIN)
        waiting.register(self._client, 0)  # POLLHUP: it does not read either
        if self._end in dict(waiting.poll()):
            return
        waiting.unregister(self._client)
        # More than once: what the client sent before it left is still served.
        while not waiting.poll(ABORT_PAUSE_MS):
            self._device.native.abort_pending()

    def _leaving(self) -> bool:
        """The client sends no more. Asked once somebody else is there: who comes after its end is not turned away."""
        now = select.poll()
        now.register(self._client, select.POLLRDHUP)
        return bool(now.poll(0))

    def _turn_away(self) -> None:
        assert self._listener is not None, "nothing else can be ready"
        try:
            other, _ = self._listener.accept()
        except BlockingIOError:  # another process was faster
            return
        except OSError as error:
            log.warning("%s: no connection: %s", self._device, error)
            time.sleep(ACCEPT_PAUSE)
            return
        with other:
            log.warning(
                "%s: process %d is turned away: process %d is connected",
                self._device,
                sockets.peer_pid(other),
                self._pid,
            )
