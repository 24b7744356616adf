"""What the toolstack says of a domain, in xenstore."""

from __future__ import annotations

import enum
import os
from typing import Any

from umdev.errors import UmdevError

from .libraries import STORE, ffi

__all__ = ["DomainType", "domain_type", "read"]

_SOCKETS = ("/run/xenstored/socket", "/var/run/xenstored/socket")


class DomainType(enum.Enum):
    """What kind of platform a domain has."""

    HVM = "hvm"
    PVH = "pvh"

    @classmethod
    def of(cls, intx: bool) -> DomainType:
        """The type of a domain that delivers INTx, or does not."""
        return cls.HVM if intx else cls.PVH

    @property
    def delivers_intx(self) -> bool:
        """PVH has neither PIC nor I/O APIC; asserting a line succeeds there, and nothing happens."""
        return self is DomainType.HVM


def domain_type(domid: int) -> DomainType:
    """As libxl notes it down; HVM for a domain that it knows nothing of."""
    return DomainType.PVH if read(f"/libxl/{domid}/type") == "pvh" else DomainType.HVM


def read(path: str) -> str | None:
    """A node of xenstore; None where there is none, or no xenstore."""
    if not any(os.path.exists(socket) for socket in _SOCKETS):  # noqa: PTH110 - a socket, by its plain name
        return None  # libxenstore would wait for the kernel's xenbus
    try:
        store = STORE.open("xs_open", 0)
    except UmdevError:
        return None
    try:
        length = ffi.new("unsigned int *")
        found: Any = STORE.function("xs_read")(store, 0, path.encode(), length)
        if found == ffi.NULL:
            return None
        try:
            return bytes(ffi.buffer(found, length[0])).decode(errors="replace")
        finally:
            STORE.function("free")(found)
    finally:
        STORE.function("xs_close")(store)
