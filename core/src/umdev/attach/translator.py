"""Service 7 by what the bus has mapped."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..addresses import HostVirt, Iova
    from ..memory.address_space import AddressSpace
    from ..services import Protection

__all__ = ["TableTranslator"]


class TableTranslator:
    """Looks addresses up in the attachment's table of DMA maps; `mechanism` tells where the table comes from."""

    def __init__(self, memory: AddressSpace, mechanism: str = "table of DMA maps") -> None:
        self._memory = memory
        self.mechanism = mechanism

    def translate(self, address: Iova, length: int, protection: Protection, space: int) -> HostVirt:
        """Raises: NotMapped, NotPermitted."""
        return self._memory.translate(address, length, protection, space)

    def close(self) -> None:
        """Nothing to give back: the maps are the bus's."""
