"""Devices attached with no VM, for tests that run one body on every bus.

`attach(device, "loopback")` gives the driver's view of a device on a bus of `ATTACHMENTS`; the fixtures
`loopback_function`, `vfio_user_function`, `kvm_function` and `any_function` call it and close what they opened.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from umdev.device import Device
    from umdev.driver import Function

ATTACHMENTS = ("loopback", "vfio-user", "vfio-user-messages", "kvm")
"""The same device: direct calls, a socket with shared memory, a socket with DMA by messages, a KVM machine."""


def attach(device: Device, attachment: str) -> Function:
    """Attach `device` and return the driver's view, with memory, I/O and bus mastering enabled.

    Raises: NotFound when the bus is not installed; NotSupported where this host lacks what it needs; ValueError for
    another name than those of `ATTACHMENTS`.
    """
    from umdev.plugins import plugins

    if attachment not in ATTACHMENTS:
        raise ValueError(f"{attachment!r} is none of {', '.join(ATTACHMENTS)}")
    messages = attachment.endswith("-messages")
    bus = plugins().load_bus(attachment.removesuffix("-messages"))
    function: Function = bus.open_function(device, share_memory=False) if messages else bus.open_function(device)
    function.enable(memory=True, io=True, bus_master=True)
    return function


@contextmanager
def attached(device: Device, attachment: str) -> Iterator[Function]:
    """`attach` for a `with` block; closes the function and the device."""
    with device, attach(device, attachment) as function:
        yield function
