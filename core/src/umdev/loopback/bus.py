"""The bus plugin: services by shared mappings, direct calls, eventfds and userfaultfd."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..attach import Bound, PushedMemory
from ..errors import ProtectError
from ..hookspecs import hookimpl
from ..services import (
    Area,
    Decline,
    InterruptSink,
    MemoryMapper,
    PageProtector,
    Passthrough,
    ProtectMode,
    Trap,
)
from .function import DEFAULT_MEMORY, LoopbackFunction

if TYPE_CHECKING:
    from ..attach import Attachment
    from ..device import Device


class LoopbackBus:
    """Entry point `loopback` in the group `umdev.buses`."""

    name = "loopback"
    preference = 10

    def open_function(self, device: Device, *, memory: int = DEFAULT_MEMORY) -> LoopbackFunction:
        """Attach the device to `memory` bytes of guest memory and return the driver's view of it, running.

        Raises: StateError if the device is attached already, PluginError.
        """
        return LoopbackFunction(device, memory)

    @hookimpl
    def umdev_trap_region(self) -> Trap:
        """The driver's call goes straight to the device's dispatcher."""
        return Bound("direct call of the dispatcher")

    @hookimpl
    def umdev_passthrough_area(self, area: Area) -> Passthrough:
        """The driver maps the region's memory file."""
        return Bound(f"shared mapping of {area.length >> 10} KiB")

    @hookimpl
    def umdev_connect_interrupts(self) -> InterruptSink:
        """The driver waits on the eventfds."""
        return Bound("eventfds in this process")

    @hookimpl
    def umdev_map_memory(self) -> MemoryMapper:
        """All of guest memory is mapped from the start."""
        return PushedMemory("shared mapping of the guest's memory file")

    @hookimpl
    def umdev_protect_pages(self, attachment: Attachment, mode: ProtectMode, decline: Decline) -> PageProtector | None:
        """Userfaultfd on the driver's mapping of guest memory."""
        function = attachment.endpoint
        if mode is ProtectMode.EMULATE:
            decline("a store by this process can't be emulated: that needs a hypervisor's read-only memory")
            return None
        if not isinstance(function, LoopbackFunction):
            decline("the attachment was not made by the loopback bus")
            return None
        try:
            return function.protector(mode)
        except ProtectError as error:
            decline(str(error))
            return None


bus = LoopbackBus()
