"""Bound services that need nothing but a name: what they stand for is the bus's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..addresses import Iova
    from ..services import Protection


class Bound:
    """A service with nothing to give back: what it uses ends with the attachment."""

    def __init__(self, mechanism: str = "") -> None:
        self._mechanism = mechanism

    @property
    def mechanism(self) -> str:
        """How it is done."""
        return self._mechanism

    def close(self) -> None:
        """Nothing to do."""


class PushedMemory(Bound):
    """Service 4 where the bus maps memory before the device asks."""

    def map(self, address: Iova, length: int, protection: Protection, space: int) -> bool:  # noqa: ARG002 - MemoryMapper's signature
        """There is nothing more to map."""
        return False
