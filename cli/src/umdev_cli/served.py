"""A device of a host process, with the bus server that serves it in a thread of its own."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from umdev.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from umdev.device import Device

__all__ = ["Served", "StillBusy"]

_log = logging.getLogger("umdev.host")


class StillBusy(StateError):
    """A device does not end: a handler of it has not returned."""


class Served:
    """A device while it is served; it and its server are closed when the server's `run` has returned, whatever that
    and they raise. Any thread.

    `over(self)` is called after that, in the thread that serves. `limit`: seconds that the end may take; None: any
    time.
    """

    def __init__(self, device: Device, server: Any, over: Callable[[Served], None], limit: float | None) -> None:
        self.device = device
        self.server = server
        self.ending = False
        """Somebody has asked for its end, or its bus has ended by itself."""
        self.error: BaseException | None = None
        """What its server or its model raised at the end."""
        self._over = over
        self._limit = limit
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"serve {device.context.uuid}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask for its end."""
        self.ending = True
        if self._deadline is None and self._limit is not None:
            self._deadline = time.monotonic() + self._limit
        self.server.stop()

    def wait(self) -> bool:
        """Until it is closed, but no longer than `limit` from the first `stop` on.

        False if it is stuck in a handler; then what the threads of the process do is in the log.
        """
        self._thread.join(None if self._deadline is None else max(0.0, self._deadline - time.monotonic()))
        if not self._thread.is_alive():
            return True
        _log.error("%s does not end; what the threads of the process do:\n%s", self.device, _stacks())
        return False

    def _run(self) -> None:
        try:
            with ExitStack() as always:
                always.callback(self.device.close)
                always.callback(self.server.close)
                try:
                    self.server.run()
                except BaseException:  # noqa: BLE001 - a bus may raise anything; the host's other devices go on
                    _log.exception("%s: its bus failed", self.device)
                self.ending = True
        except BaseException as error:  # noqa: BLE001 - so may a model; who has asked for the end is told
            _log.exception("%s: did not end cleanly", self.device)
            self.error = error
        finally:
            self._over(self)


def _stacks() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()  # noqa: SLF001 - documented in the module sys
    )
