"""Service 6, for every attachment that names this hypervisor: who protects which guest's pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.errors import NotSupported
from umdev.hypervisor import ProtectMode

from . import qemu
from .function import KvmFunction
from .machine import Machine

if TYPE_CHECKING:
    from umdev.hypervisor import Attachment, Decline, PageProtector

__all__ = ["protect_pages"]


def protect_pages(attachment: Attachment, mode: ProtectMode, decline: Decline) -> PageProtector | None:
    """The hook's answer. Raises: ProtectorBusy, ProtectError."""
    if attachment.bus == qemu.BUS:
        return qemu.protect_pages(attachment, mode, decline)
    endpoint = attachment.endpoint
    machine = endpoint.machine if isinstance(endpoint, KvmFunction) else endpoint
    if not isinstance(machine, Machine):
        decline(f"{mode.value}: this bus has no memory that KVM maps")
        return None
    if mode is ProtectMode.EMULATE and machine is not endpoint:
        decline("emulate: the host makes this function's accesses; only stores of a machine's processors are exits")
        return None
    try:
        return machine.protection.protector(attachment, mode)
    except NotSupported as error:
        decline(str(error))
        return None
