"""The preload library: what makes a stock VMM lend its address space to the protector."""

from __future__ import annotations

import importlib.machinery
from pathlib import Path

from umdev.errors import NotFound

__all__ = ["ADDRESS_VARIABLE", "DEVICE_VARIABLE", "preload_path"]

ADDRESS_VARIABLE = "UMDEV_PROTECTOR"
"""Names the protector's socket to the library; without it nothing happens."""
DEVICE_VARIABLE = "UMDEV_USERFAULTFD"
"""Number of an open /dev/userfaultfd that the VMM inherits, for one that may not open it."""


def preload_path() -> Path:
    """The library, for LD_PRELOAD or `ld.so --preload`. It needs no C library, so any dynamic loader takes it.

    Raises: NotFound (umdev-kvm was built without it).
    """
    folder = Path(__file__).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"_preload{suffix}"
        if path.exists():
            return path
    raise NotFound(f"no preload library in {folder}: reinstall umdev-kvm with a C compiler at hand")
