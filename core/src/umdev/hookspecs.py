"""The hooks: the whole contract between the core and its plugins.

Service hooks are asked once per attachment and return a bound object of `umdev.services`, or call `decline(reason)` and
return None. The order of asking is fixed: category (a) the attachment's bus, then the fallback; category (b) its
hypervisor, its bus, then the fallback. Broadcasts reach every plugin, whoever fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from .attach import Attachment
    from .device import Device, ResetKind
    from .services import (
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

PROJECT = "umdev"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# Category (a): what a device driver does for a VM or a userspace driver.
@hookspec(firstresult=True)
def umdev_passthrough_area(attachment: Attachment, area: Area, decline: Decline) -> Passthrough | None:
    """Let the driver reach `area` directly. Asked once per declared window when the device is attached."""


@hookspec(firstresult=True)
def umdev_trap_region(attachment: Attachment, region: int, decline: Decline) -> Trap | None:
    """Bring accesses to the region (VFIO region index) to the device. Asked once per region."""


@hookspec(firstresult=True)
def umdev_connect_interrupts(attachment: Attachment, vectors: int, decline: Decline) -> InterruptSink | None:
    """Connect INTx, MSI, MSI-X, ERR and REQ; `vectors` is the largest number the function offers."""


# Category (b): what only the hypervisor can do for a device model.
@hookspec(firstresult=True)
def umdev_map_memory(attachment: Attachment, decline: Decline) -> MemoryMapper | None:
    """Map guest memory into this process."""


@hookspec(firstresult=True)
def umdev_pin_pages(attachment: Attachment, decline: Decline) -> PagePinner | None:
    """Keep guest pages resident."""


@hookspec(firstresult=True)
def umdev_protect_pages(attachment: Attachment, mode: ProtectMode, decline: Decline) -> PageProtector | None:
    """Report the driver's stores to pages. Asked when the model first asks for a mode."""


@hookspec(firstresult=True)
def umdev_translate(attachment: Attachment, decline: Decline) -> Translator | None:
    """Translate bus addresses to host addresses."""


# Broadcasts.
@hookspec
def umdev_device_created(device: Device) -> None:
    """A device exists; nothing is attached to it yet."""


@hookspec
def umdev_attached(attachment: Attachment) -> None:
    """The services are bound; the driver's first access comes after this returns."""


@hookspec
def umdev_device_reset(device: Device, kind: ResetKind) -> None:
    """A reset has completed; no work and no interrupt of the old life follows."""


@hookspec
def umdev_memory_changed(attachment: Attachment) -> None:
    """The address space gained or lost maps; told in the thread that did it, from before `umdev_attached` on."""


@hookspec
def umdev_detached(attachment: Attachment) -> None:
    """The driver is gone; every service of the attachment is closed."""


@hookspec
def umdev_device_closed(device: Device) -> None:
    """The device ends; its instance is free again when this returns."""
