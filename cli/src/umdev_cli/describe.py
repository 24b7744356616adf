"""What a host process tells of a device: plain data, for `show` and for programs."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umdev.device import Device

__all__ = ["describe"]

CONFIG_BYTES = 256
IRQ_INDEXES = 3
"""INTx, MSI and MSI-X."""


def describe(
    device: Device,
    *,
    bus: str,
    socket: str | None,
    argument: str | None,
    log: str | None,
    environment: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Everything that `umdev show` prints, JSON-ready."""
    context = device.context
    attachment = device.attachment
    with device.locked():
        config = device.config.read(0, CONFIG_BYTES)
    pci = device.pci
    return {
        "uuid": str(context.uuid),
        "parent": context.parent.name if context.parent else "",
        "type": context.type.id if context.type else type(device).__name__,
        "attributes": dict(context.attributes),
        "pid": os.getpid(),
        "bus": bus,
        "state": attachment.state.value if attachment else "detached",
        "socket": socket,
        "device": argument,
        "environment": environment or {},
        "log": log,
        "pci": {"vendor": pci.vendor, "device": pci.device, "class": pci.class_code, "revision": pci.revision},
        "config": config.hex(),
        "regions": [
            {
                "index": region.index,
                "kind": region.kind,
                "size": region.size,
                "prefetchable": region.prefetchable,
                "areas": [{"offset": area.offset, "length": area.length} for area in region.areas],
            }
            for region in device.regions.values()
        ],
        "interrupts": {
            "mode": device.interrupts.mode or "none",
            "counts": [device.interrupts.vectors(index) for index in range(IRQ_INDEXES)],
            "counters": dict(device.interrupts.counters),
        },
        "services": dict(attachment.services.mechanisms) if attachment else {},
        "refused": {name: str(why) for name, why in attachment.services.refused.items()} if attachment else {},
        "counters": dict(device.native.counters),
        "burn_down": [dataclasses.asdict(entry) for entry in device.native.burn_down()],
        "burn_down_lost": device.native.burn_down_lost,
        "queries": dict(device.queries),
    }
