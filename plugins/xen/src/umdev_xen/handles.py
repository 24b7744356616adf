"""The library handles of one domain, opened together and restricted to it together."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from umdev.errors import Conflict, HypervisorError

from .libraries import DEVICE_MODEL, EVENT_CHANNEL, FOREIGN_MEMORY, TOOLCORE, ffi

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Handles"]

_guard = threading.Lock()  # restrict_all and opening exclude each other (xentoolcore.h)
_restricted: dict[int, int] = {}  # domain -> open Handles that are restricted to it


class Handles:
    """Handles of the device model, foreign memory and one event channel for each processor. `close` may come twice.

    `restrict`: after the constructor, no handle of Xen's libraries in this process can touch another domain, whoever
    opened it; so such a process serves one domain. What is opened later (and closed again) is not restricted: a process
    that must not be able to opens nothing, as a user without access to /dev/xen.
    """

    def __init__(self, domain: int, *, restrict: bool) -> None:
        """Raises: NotSupported (no libraries, or too old), HypervisorError (no Xen, no domain), Conflict."""
        self.domain = domain
        self.restricted = False
        self.vcpus = 0
        self.channels: list[Any] = []
        """One `xenevtchn_handle *` for each virtual processor."""
        self._closers: list[Callable[[], None]] = []
        with _guard:
            others = sorted(known for known in _restricted if known != domain)
            if others:
                raise Conflict(f"this process is restricted to domain {others[0]}: serve domain {domain} from another")
            try:
                self.device_model = self._open(DEVICE_MODEL, "xendevicemodel")
                self.foreign_memory = self._open(FOREIGN_MEMORY, "xenforeignmemory")
                count = ffi.new("unsigned int *")
                DEVICE_MODEL.call("xendevicemodel_nr_vcpus", self.device_model, domain, count)
                self.vcpus = int(count[0])
                for _ in range(self.vcpus):
                    self.channels.append(self._open(EVENT_CHANNEL, "xenevtchn"))
                if restrict:
                    self._restrict()
            except BaseException:
                self._close()
                raise

    def close(self) -> None:
        """Close every handle; what is mapped stays mapped. May be called twice."""
        with _guard:
            self._close()

    def _open(self, library: Any, prefix: str) -> Any:
        handle = library.open(f"{prefix}_open", ffi.NULL, 0)
        self._closers.append(lambda: library.call(f"{prefix}_close", handle))
        return handle

    def _restrict(self) -> None:
        try:
            TOOLCORE.call("xentoolcore_restrict_all", self.domain)
        except HypervisorError as error:
            raise Conflict(
                f"this process can't be restricted to domain {self.domain} ({error}): it has handles of Xen's "
                "libraries that belong to another domain, or that can't be restricted"
            ) from error
        self.restricted = True
        _restricted[self.domain] = _restricted.get(self.domain, 0) + 1

    def _close(self) -> None:
        while self._closers:
            self._closers.pop()()
        if self.restricted:
            self.restricted = False
            _restricted[self.domain] -= 1
            if not _restricted[self.domain]:
                del _restricted[self.domain]
