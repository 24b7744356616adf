"""The bus plugin: entry point `vfio-user` in the group `umdev.buses`."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

from umdev.bus import Bound, PushedMemory
from umdev.errors import StateError, TransportError
from umdev.hookspecs import hookimpl

from .function import VfioUserFunction
from .server import Server

if TYPE_CHECKING:
    import os

    from umdev.bus import AddressSpace, Attachment
    from umdev.device import Device
    from umdev.services import (
        Area,
        Decline,
        InterruptSink,
        MemoryMapper,
        PageProtector,
        Passthrough,
        ProtectMode,
        Trap,
    )

JOIN_TIMEOUT = 10.0
"""Seconds for a server's thread to end once its client is gone: the handler that runs then must return."""


class PushedMaps(PushedMemory):
    """Service 4: the client maps its memory before the device asks for it."""

    def __init__(self, memory: AddressSpace) -> None:
        super().__init__()
        self._memory = memory

    @property
    def mechanism(self) -> str:
        """How the client's memory is reached now."""
        maps = self._memory.mappings
        shared = sum(mapping.backing is not None for mapping in maps)
        ways = []
        if shared or not maps:
            ways.append("mmap of DMA_MAP descriptors")
        if shared < len(maps):
            ways.append("DMA_READ and DMA_WRITE messages")
        return ", ".join(ways)


class VfioUserBus:
    """Serves devices to QEMU and other vfio-user clients, and drives them itself."""

    name = "vfio-user"
    preference = 20

    def serve(
        self,
        device: Device,
        *,
        path: str | None = None,
        descriptor: int | None = None,
        wire_log: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Server:
        """A server of the device at a socket path, or on an inherited socket; see `Server` for options and errors."""
        return Server(device, path=path, descriptor=descriptor, wire_log=wire_log, **options)

    def open_function(
        self, device: Device, *, wire_log: str | os.PathLike[str] | None = None, **options: Any
    ) -> VfioUserFunction:
        """Server and client of the device in this process, joined by a socket pair; the server has a thread.

        Closing the function ends both, and the device keeps none of it. Options are those of `VfioUserFunction`.

        Raises: StateError if the device is attached already; TransportError when no thread is left.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            server = Server(device, descriptor=theirs.detach(), wire_log=wire_log)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        thread = threading.Thread(target=server.run, name=f"vfio-user server of {device}", daemon=True)

        def end() -> None:
            server.stop()
            if thread.ident is not None:
                thread.join(JOIN_TIMEOUT)
            if thread.is_alive():
                raise StateError(
                    f"{device}: a handler has not returned for {JOIN_TIMEOUT} s; the device stays attached"
                )
            server.close()

        try:
            try:
                thread.start()
            except RuntimeError as error:
                raise TransportError(f"{device}: no thread is left to serve it: {error}") from error
            return VfioUserFunction(ours, on_close=end, **options)
        except BaseException:
            ours.close()
            end()
            raise

    def connect(self, path: str | os.PathLike[str], **options: Any) -> VfioUserFunction:
        """The driver's view of what a server offers at `path`; options and errors are those of `VfioUserFunction`."""
        return VfioUserFunction(path, **options)

    @hookimpl
    def umdev_trap_region(self) -> Trap:
        """The message loop gives every access to the dispatcher."""
        return Bound("REGION_READ and REGION_WRITE messages")

    @hookimpl
    def umdev_passthrough_area(self, attachment: Attachment, area: Area, decline: Decline) -> Passthrough | None:
        """The client maps the region's memory file."""
        if attachment.regions[area.region].descriptor is None:
            decline(f"region {area.region} has no memory file that a client could map")
            return None
        return Bound("descriptor + sparse mmap area")

    @hookimpl
    def umdev_connect_interrupts(self) -> InterruptSink:
        """The client sends eventfds."""
        return Bound("eventfds by SET_IRQS")

    @hookimpl
    def umdev_map_memory(self, attachment: Attachment) -> MemoryMapper:
        """The client maps its memory by message."""
        return PushedMaps(attachment.memory)

    @hookimpl
    def umdev_protect_pages(self, mode: ProtectMode, decline: Decline) -> PageProtector | None:
        """Stores by the client's processors do not pass through this process."""
        decline(f"{mode.value}: the client's page tables are out of reach of its socket; a hypervisor plugin is needed")
        return None


bus = VfioUserBus()
