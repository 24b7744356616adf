"""VFIO's numbers for a PCI function's regions and interrupts (Linux uapi, linux/vfio.h): what buses speak."""

from __future__ import annotations

import enum


class RegionIndex(enum.IntEnum):
    """BAR n has index n."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


class IrqIndex(enum.IntEnum):
    """Kinds of interrupt; each has a number of vectors, maybe none."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    """An unrecoverable error was detected."""
    REQ = 4
    """The device asks its user to release it."""
