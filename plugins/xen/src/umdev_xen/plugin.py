"""The plugin objects: the bus that a domain's ioreq server is, and the services of Xen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.addresses import PAGE_MASK
from umdev.bus import Bound, ProtectMode, ServeOption
from umdev.errors import HypervisorError, InvalidArgument, NotSupported
from umdev.hookspecs import hookimpl
from umdev.hypervisor import TableTranslator

from .doctor import rows
from .domain import Domain
from .emulate import StoreProtector
from .memory import ForeignMapper, MappingPins
from .served import Served
from .toolstack import find_domain
from .track import TrackProtector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from umdev.bus import Attachment, Row
    from umdev.device import Device
    from umdev.driver import Function
    from umdev.services import (
        Area,
        Decline,
        InterruptSink,
        MemoryMapper,
        PagePinner,
        PageProtector,
        Passthrough,
        Translator,
        Trap,
    )


class XenBus:
    """Entry point `xen` in the group `umdev.buses`: devices in the PCI slots of a domain."""

    name = "xen"
    preference = 10
    serve_options = (
        ServeOption("domain", "The domain, by its number or name (xl list).", required=True),
        ServeOption("slot", "The PCI slot, 1 to 31; else the lowest free one, or the highest beside a QEMU."),
        ServeOption("polled", "Its driver needs no interrupts: serve it where they can't be delivered.", flag=True),
    )

    def open_function(self, device: Device) -> Function:
        """Raises: NotSupported, always: a domain drives its devices, and making domains is the toolstack's work."""
        raise NotSupported(
            f"{device} on xen is driven by a domain that the toolstack has made: umdev serve --bus xen --domain NAME, "
            "or another bus to drive it from here"
        )

    def serve(
        self,
        device: Device,
        *,
        domain: str | int,
        slot: str | int | None = None,
        polled: bool = False,
        host_bridge: bool | None = None,
        restrict: bool = True,
        path: str | None = None,
        descriptor: int | None = None,
    ) -> Served:
        """Put the device into a slot of a domain, given by number or name; its end ends `Served.run`.

        `path` is of no use here: Xen itself is the connection. Other options are those of `Domain` and `Domain.plug`.

        Raises: InvalidArgument, NotFound (no such domain), and as `Domain` and `Domain.plug`.
        """
        del path
        if descriptor is not None:
            raise InvalidArgument("a device of a Xen domain is served by no socket: leave --fd out")
        number = domain if isinstance(domain, int) else find_domain(domain)
        try:
            place = None if slot is None else int(slot)
        except ValueError:
            raise InvalidArgument(f"slot {slot!r}: a domain has slots 1 to 31") from None
        return Served(device, number, slot=place, polled=polled, host_bridge=host_bridge, restrict=restrict)

    @hookimpl
    def umdev_trap_region(self, region: int) -> Trap:
        """Xen sends accesses to the ring page; C gives them to the dispatcher."""
        if region == 7:
            return Bound("ioreq server: configuration requests")
        return Bound("ioreq server ranges, dispatched in C")

    @hookimpl
    def umdev_passthrough_area(self, attachment: Attachment, area: Area, decline: Decline) -> Passthrough | None:
        """Pages of the domain under the area, which follow the BAR."""
        endpoint = attachment.endpoint
        if not isinstance(endpoint, Domain):
            decline("this attachment belongs to no domain")
            return None
        if (area.offset | area.length) & PAGE_MASK or attachment.device.region_infos[area.region].descriptor is None:
            decline(f"region {area.region} has no memory file, or parts of pages")
            return None
        try:
            return endpoint.pass_window(attachment, area)
        except (HypervisorError, NotSupported) as error:
            decline(str(error))
            return None

    @hookimpl
    def umdev_connect_interrupts(self, attachment: Attachment) -> InterruptSink:
        """By hypercall."""
        endpoint = attachment.endpoint
        if isinstance(endpoint, Domain) and not endpoint.type.delivers_intx:
            return Bound("inject_msi for MSI and MSI-X; this domain has no INTx")
        return Bound("inject_msi for MSI and MSI-X, set_pci_intx_level for INTx")

    @hookimpl
    def umdev_map_memory(self, attachment: Attachment, decline: Decline) -> MemoryMapper | None:
        """By foreign mappings."""
        endpoint = attachment.endpoint
        if not isinstance(endpoint, Domain):
            decline("this attachment belongs to no domain")
            return None
        mapper = ForeignMapper(attachment, endpoint.handles, endpoint.cache)
        endpoint.adopt_mapper(attachment, mapper)
        return mapper

    @hookimpl
    def umdev_device_reset(self, device: Device) -> None:
        """BARs are where reset put them: nowhere."""
        endpoint = device.attachment.endpoint if device.attachment is not None else None
        if isinstance(endpoint, Domain) and not endpoint.ended:
            endpoint.bridge.synchronise()


class XenHypervisor:
    """Entry point `xen` in the group `umdev.hypervisors`: services for devices of a `Domain`."""

    name = "xen"

    @hookimpl
    def umdev_pin_pages(self, attachment: Attachment, decline: Decline) -> PagePinner | None:
        """The mapping's references."""
        endpoint = attachment.endpoint
        mapper = endpoint.mapper(attachment) if isinstance(endpoint, Domain) else None
        if mapper is None:
            decline("this attachment has no foreign mappings")
            return None
        return MappingPins(mapper)

    @hookimpl
    def umdev_translate(self, attachment: Attachment) -> Translator:
        """The cached mappings."""
        return TableTranslator(attachment.memory, "p2m by the mapping cache")

    @hookimpl
    def umdev_protect_pages(self, attachment: Attachment, mode: ProtectMode, decline: Decline) -> PageProtector | None:
        """By page types, or by dirty tracking."""
        endpoint = attachment.endpoint
        if not isinstance(endpoint, Domain):
            decline(f"{mode.value}: this attachment belongs to no domain")
            return None
        if mode is ProtectMode.TRACK:
            return TrackProtector(endpoint.tracker, attachment)
        return StoreProtector(endpoint.emulator, attachment, mode)

    def doctor(self) -> Iterator[Row]:
        """What Xen's libraries and this dom0 offer."""
        return rows()


bus = XenBus()
hypervisor = XenHypervisor()
