"""The services of whatever attachment a device has at the moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ServiceUnavailable, StateError

if TYPE_CHECKING:
    from ..attach import BoundServices
    from ..services import MemoryMapper, PagePinner, PageProtector, ProtectMode, Translator
    from .model import Device


class CurrentServices:
    """What `DeviceMemory` asks: a device outlives its attachments. All raise StateError while there is none."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def pinner(self) -> PagePinner:
        """Raises: ServiceUnavailable."""
        return self._bound.pinner()

    def protector(self, mode: ProtectMode) -> PageProtector:
        """Raises: ServiceUnavailable."""
        return self._bound.protector(mode)

    def translator(self) -> Translator:
        """Raises: ServiceUnavailable."""
        return self._bound.translator()

    def mapper(self) -> MemoryMapper | None:
        """None where the bus maps memory by itself, before the device asks."""
        try:
            return self._bound.mapper()
        except ServiceUnavailable:
            return None

    @property
    def _bound(self) -> BoundServices:
        attachment = self._device.attachment
        if attachment is None:
            raise StateError(f"{self._device} is not attached: no bus has given it memory or services")
        return attachment.services
