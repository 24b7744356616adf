"""The kinds of reset that a function can go through."""

from __future__ import annotations

import enum


class ResetKind(enum.Enum):
    """Why the function is reset. What survives in configuration space is told at `ConfigSpace.reset`."""

    POWER_ON = "power-on"
    """The device was made; also how a reset by the VMM of the whole machine with loss of power looks."""
    BUS = "bus"
    """Conventional reset: RST#, or a hot reset of the link (PCI Express Base 5.0, 6.6.1)."""
    FLR = "flr"
    """Function Level Reset, by the driver (PCI Express Base 5.0, 6.6.2)."""
    D3HOT = "d3hot"
    """From D3hot to D0 without No_Soft_Reset (PCI Bus Power Management 1.2, 5.4.1)."""
    CLIENT_LOST = "client-lost"
    """The VMM or userspace driver is gone: everything it set up goes."""
