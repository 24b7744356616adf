"""Devices attached with no VM, for tests that run one body on every bus.

`attach(device, "loopback")` gives the driver's view of a device on a bus of `ATTACHMENTS`; the fixtures
`loopback_function`, `vfio_user_function`, `kvm_function` and `any_function` call it and close what they opened.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from umdev.errors import NotSupported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from umdev.device import Device
    from umdev.driver import Function

ATTACHMENTS = ("loopback", "vfio-user", "vfio-user-messages", "kvm", "xen")
"""The same device: direct calls, a socket with shared memory, a socket with DMA by messages, a KVM machine, a domain of
Xen (in its test bed alone).
"""


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
    if attachment == "xen":
        return _in_a_domain(device)
    function: Function = bus.open_function(device, share_memory=False) if messages else bus.open_function(device)
    function.enable(memory=True, io=True, bus_master=True)
    return function


def _in_a_domain(device: Device) -> Function:
    if "UMDEV_XEN_BED" not in os.environ:
        raise NotSupported("domains of Xen are made in its test bed only")
    from umdev_testkit.xen_function import XenFunction

    function = XenFunction(device)
    try:
        function.enable(memory=True, io=True, bus_master=True)
    except BaseException:
        function.close()
        raise
    return function


@contextmanager
def attached(device: Device, attachment: str) -> Iterator[Function]:
    """`attach` for a `with` block; closes the function and the device."""
    with device, attach(device, attachment) as function:
        yield function
