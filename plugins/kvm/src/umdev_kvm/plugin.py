"""The plugin objects: the bus that a machine is, and the hypervisor services of KVM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.bus import Bound, PushedMemory
from umdev.hookspecs import hookimpl
from umdev.hypervisor import TableTranslator

from .doctor import rows
from .function import KvmFunction
from .machine import Machine
from .pins import open_pins

if TYPE_CHECKING:
    from collections.abc import Iterator

    from umdev.bus import Attachment, Row
    from umdev.device import Device
    from umdev.services import (
        Area,
        Decline,
        InterruptSink,
        MemoryMapper,
        PagePinner,
        PageProtector,
        Passthrough,
        ProtectMode,
        Translator,
        Trap,
    )

    from .qemu import ClientSetup


class KvmBus:
    """Entry point `kvm` in the group `umdev.buses`: devices in the PCI slots of a `Machine`."""

    name = "kvm"
    preference = 30

    def open_function(self, device: Device, *, memory: int = 16 << 20) -> KvmFunction:
        """The driver's view of the device in a machine of its own, whose processors never run.

        The host makes the accesses, through the table that processors' exits go through. Raises: NotSupported without a
        usable /dev/kvm; StateError if the device is attached already; HypervisorError.
        """
        return KvmFunction(device, memory)

    @hookimpl
    def umdev_trap_region(self, region: int) -> Trap:
        """Exits are looked up in a table and given to the dispatcher, in C."""
        if region == 7:
            return Bound("configuration space by ports 0xCF8, 0xCFC and by ECAM")
        return Bound("KVM_RUN exits, dispatched in C")

    @hookimpl
    def umdev_passthrough_area(self, attachment: Attachment, area: Area, decline: Decline) -> Passthrough | None:
        """A memory slot over the area, wherever the guest puts the BAR."""
        if attachment.device.region_infos[area.region].descriptor is None:
            decline(f"region {area.region} has no memory file that a memory slot could show")
            return None
        return Bound(f"memory slot of {area.length >> 10} KiB that follows the BAR")

    @hookimpl
    def umdev_connect_interrupts(self, attachment: Attachment) -> InterruptSink:
        """By irqfd; the driver's view of a function hears eventfds."""
        if isinstance(attachment.endpoint, KvmFunction):
            return Bound("eventfds in this process: the host drives the function")
        return Bound("irqfd: INTx with resampling, MSI and MSI-X by interrupt routes")

    @hookimpl
    def umdev_map_memory(self) -> MemoryMapper:
        """All memory is mapped from the start."""
        return PushedMemory("the machine's own memory, mapped a second time for the device")

    @hookimpl
    def umdev_device_reset(self, device: Device) -> None:
        """BARs are where reset put them: nowhere."""
        endpoint = device.attachment.endpoint if device.attachment is not None else None
        if isinstance(endpoint, KvmFunction):
            endpoint.machine.bridge.synchronise()
        elif isinstance(endpoint, Machine):
            endpoint.bridge.synchronise()

    def doctor(self) -> Iterator[Row]:
        """What /dev/kvm can do here."""
        return rows()


class KvmHypervisor:
    """Entry point `kvm` in the group `umdev.hypervisors`: services for devices of a `Machine`."""

    name = "kvm"

    @hookimpl
    def umdev_pin_pages(self, attachment: Attachment, decline: Decline) -> PagePinner | None:
        """A long-term pin by io_uring; where the kernel has none, the core's mlock is next."""
        return open_pins(attachment.memory, decline)

    @hookimpl
    def umdev_translate(self, attachment: Attachment) -> Translator:
        """The machine's memory map."""
        return TableTranslator(attachment.memory, "the machine's memory map, hot-added memory included")

    @hookimpl
    def umdev_protect_pages(self, attachment: Attachment, mode: ProtectMode, decline: Decline) -> PageProtector | None:
        """By the machine's page tables, or by those that a VMM of another process has lent."""
        from .protect import protect_pages

        return protect_pages(attachment, mode, decline)

    def prepare_client(self, bus: str) -> ClientSetup | None:
        """Have a protector ready for VMMs that a bus will serve; see `umdev_kvm.qemu.prepare_client`."""
        from .qemu import prepare_client

        return prepare_client(bus)

    def doctor(self) -> Iterator[Row]:
        """What protection of a stock QEMU's memory needs."""
        from .qemu import doctor

        return doctor()


bus = KvmBus()
hypervisor = KvmHypervisor()
