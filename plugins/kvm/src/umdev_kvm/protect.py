"""Service 6, for every attachment that names this hypervisor: who protects which guest's pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import qemu

if TYPE_CHECKING:
    from umdev.hypervisor import Attachment, Decline, PageProtector, ProtectMode

__all__ = ["protect_pages"]


def protect_pages(attachment: Attachment, mode: ProtectMode, decline: Decline) -> PageProtector | None:
    """The hook's answer."""
    if attachment.bus == qemu.BUS:
        return qemu.protect_pages(attachment, mode, decline)
    decline(f"{mode.value}: this bus has no memory that KVM maps")
    return None
