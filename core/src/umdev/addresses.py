"""Address kinds. Each is an `int` at run time; mypy keeps them apart.

An address says which space it lives in, so that a guest-physical address is never handed to something that wants a
host pointer. All are in bytes.
"""

from __future__ import annotations

from typing import NewType

Iova = NewType("Iova", int)
"""An address as the device puts it on the bus. Without an IOMMU it equals the guest-physical address."""

GuestPhys = NewType("GuestPhys", int)
"""An address in the guest's physical address space."""

HostVirt = NewType("HostVirt", int)
"""An address in this process's virtual address space."""

RegionOffset = NewType("RegionOffset", int)
"""An offset from the start of a region (a BAR, the ROM or the configuration space)."""

PAGE_SIZE = 4096
"""Bytes in the page that is pinned, protected and translated. x86 huge pages are reported as their 4 KiB pages."""

PAGE_MASK = PAGE_SIZE - 1
"""The low bits of an address that select a byte in a page."""
