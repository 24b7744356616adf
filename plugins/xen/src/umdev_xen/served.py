"""One device of a domain, as `umdev serve` and `umdev start` serve it."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from umdev.errors import Conflict, NotFound, StateError

from .domain import Domain

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from umdev.device import Device

__all__ = ["Served"]

_open: dict[Domain, list[Served]] = {}
_guard = threading.RLock()


class Served:
    """A device in a slot of a domain. Devices of one process share the domain's one ioreq server.

    `run` waits for the end, in one thread; `stop` may be called from any.
    """

    socket_path = None
    device_argument = None

    def __init__(
        self, device: Device, domid: int, *, slot: int | None, polled: bool, host_bridge: bool | None, restrict: bool
    ) -> None:
        """Raises: as `Domain` and `Domain.plug`; Conflict where the domain was opened otherwise."""
        self._stopped = threading.Event()
        self._closed = False
        with _guard:
            domain = next((known for known in _open if known.domid == domid and known.reason is None), None)
            if domain is None:
                domain = Domain(domid, host_bridge=host_bridge, restrict=restrict)
                _open[domain] = []
            elif host_bridge is not None and host_bridge != domain.host_bridge:
                raise Conflict(
                    f"{domain} is served already, {'with' if domain.host_bridge else 'without'} a host bridge"
                )
            self.domain = domain
            """Shared with the process's other devices of the same domain."""
            try:
                self.slot = domain.plug(device, slot=slot, polled=polled)
                """Where it is, on bus 0."""
            except BaseException:
                self._leave()
                raise
            _open[domain].append(self)

    def run(self) -> None:
        """Wait until the domain has gone, or `stop`."""
        threading.Thread(target=self._watch, name=f"end of {self.domain}", daemon=True).start()
        self._stopped.wait()

    def stop(self) -> None:
        """Make `run` return. Any thread; may be called twice."""
        self._stopped.set()

    def close(self) -> None:
        """Take the device out; the last one closes the domain. May be called twice, and again when it was refused.

        Raises: as `Domain.close`.
        """
        with _guard:
            try:
                if not self._closed:
                    self._closed = True
                    self.stop()
                    _open[self.domain].remove(self)
                    with contextlib.suppress(StateError, NotFound):  # the domain has gone
                        self.domain.unplug(self.slot)
            finally:
                self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _watch(self) -> None:
        self.domain.wait()
        self.stop()

    def _leave(self) -> None:
        if _open.get(self.domain) == []:
            try:
                self.domain.close()
            finally:
                if self.domain.ended:  # else a handler does not return, and who closes again finds it
                    del _open[self.domain]
