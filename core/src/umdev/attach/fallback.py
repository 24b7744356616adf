"""The fallback: services that need nothing but the bus's own mappings. Asked last, for every attachment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..hookspecs import hookimpl
from ..memory.compare import ComparisonProtector
from ..memory.pins import PinTable
from ..services import Decline, PagePinner, PageProtector, ProtectMode, Translator
from .translator import TableTranslator

if TYPE_CHECKING:
    from .attachment import Attachment


class Fallback:
    """Pins and translates what is mapped; reports stores by comparison."""

    name = "fallback"

    @hookimpl
    def umdev_pin_pages(self, attachment: Attachment) -> PagePinner:
        """mlock on the device mapping."""
        return PinTable(attachment.memory)

    @hookimpl
    def umdev_translate(self, attachment: Attachment) -> Translator:
        """The table of DMA maps."""
        return TableTranslator(attachment.memory)

    @hookimpl
    def umdev_protect_pages(self, attachment: Attachment, mode: ProtectMode, decline: Decline) -> PageProtector | None:
        """TRACK only: pages are compared with what they held."""
        if mode is not ProtectMode.TRACK:
            decline("comparing pages can only TRACK; TRAP and EMULATE need the VMM's page tables")
            return None
        return ComparisonProtector(attachment.memory)


fallback = Fallback()
