"""The services of one attachment, each asked for when it is first needed and bound once."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING, TypeVar

from ..errors import ServiceUnavailable, StateError
from ..plugins import plugins
from ..services import (
    Area,
    InterruptSink,
    MemoryMapper,
    PagePinner,
    PageProtector,
    ProtectMode,
    Service,
    Translator,
    Trap,
)
from .bound import PushedMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from .attachment import Attachment

log = logging.getLogger("umdev.attach")

ServiceT = TypeVar("ServiceT", bound=Service)


class BoundServices:
    """What the plugins answered for one attachment.

    Traps, passthroughs and interrupts are bound when the device is attached; the others when the model first asks,
    since asking costs and most models use few. Any thread.
    """

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._guard = threading.RLock()
        self._bound: dict[str, Service] = {}
        self._refused: dict[str, ServiceUnavailable] = {}
        self._closed = False

    def trap(self, region: int) -> Trap:
        """Raises: ServiceUnavailable."""
        return self._bind(f"trap[{region}]", lambda: plugins().trap(self._attachment, region))

    def passthroughs(self) -> frozenset[Area]:
        """Offer every declared window to the bus; returns what it passes through.

        A window that is declined stays trapped, and `refused` says why.
        """
        areas = [area for info in self._attachment.regions.values() for area in info.areas]
        return frozenset(area for area in areas if self._pass(area))

    def _pass(self, area: Area) -> bool:
        name = f"passthrough[{area.region}+{area.offset:#x}]"
        try:
            self._bind(name, lambda: plugins().passthrough(self._attachment, area))
        except ServiceUnavailable:
            return False
        return True

    def interrupts(self) -> InterruptSink:
        """Raises: ServiceUnavailable."""
        vectors = max(self._attachment.irq_counts)
        return self._bind("interrupt", lambda: plugins().interrupts(self._attachment, vectors))

    def mapper(self) -> MemoryMapper:
        """Raises: ServiceUnavailable."""
        return self._bind("map", lambda: plugins().map_memory(self._attachment))

    def announce_mapper(self) -> None:
        """Bind the mapper now, if there is one, so that `mechanisms` tells of it and transfers in C use it."""
        with contextlib.suppress(ServiceUnavailable):
            mapper = self.mapper()
            if not isinstance(mapper, PushedMemory):
                self._attachment.memory.set_filler(mapper.map)

    def pinner(self) -> PagePinner:
        """Raises: ServiceUnavailable."""
        return self._bind("pin", lambda: plugins().pinner(self._attachment))

    def protector(self, mode: ProtectMode) -> PageProtector:
        """Raises: ServiceUnavailable, with what each plugin said."""
        return self._bind(f"protect[{mode.value}]", lambda: plugins().protector(self._attachment, mode))

    def translator(self) -> Translator:
        """Raises: ServiceUnavailable."""
        return self._bind("translate", lambda: plugins().translator(self._attachment))

    @property
    def mechanisms(self) -> dict[str, str]:
        """Name of each bound service -> how it is done."""
        with self._guard:
            return {name: service.mechanism for name, service in self._bound.items()}

    @property
    def refused(self) -> dict[str, ServiceUnavailable]:
        """Name of each service that nobody offered -> why."""
        with self._guard:
            return dict(self._refused)

    def close(self) -> None:
        """Close every bound service, last bound first. May be called twice; never raises."""
        with self._guard:
            self._closed = True
            bound, self._bound = self._bound, {}
        # Without the guard: a protector waits for its notification, and that may be asking for a service right now.
        for name, service in reversed(bound.items()):
            try:
                service.close()
            except Exception:  # a plugin that breaks its promise must not keep the others' resources
                log.exception("%s: closing %s failed", self._attachment.device, name)

    def _bind(self, name: str, ask: Callable[[], ServiceT]) -> ServiceT:
        with self._guard:
            if name in self._bound:
                return self._bound[name]  # type: ignore[return-value]  # bound by the same method under this name
            if self._closed:
                raise StateError(f"{name}: the attachment is detached")
            if name in self._refused:
                raise self._refused[name]
            try:
                service = ask()
            except ServiceUnavailable as refusal:
                self._refused[name] = refusal
                raise
            self._bound[name] = service
            return service
