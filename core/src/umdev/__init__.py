"""Userspace mediated devices: one parent device, many virtual PCI functions, for any vendor and any hypervisor.

Vendors import `umdev.device`, bus drivers `umdev.bus`, hypervisor services `umdev.hypervisor`. This module stays nearly
empty, so that a start-up budget can hold.
"""

from __future__ import annotations

__all__ = ["__version__", "get_include"]

__version__ = "0.1.0"


def get_include() -> str:
    """The folder of `umdev.h`, for the build of a third party's C handlers."""
    from pathlib import Path

    return str(Path(__file__).parent / "include")
