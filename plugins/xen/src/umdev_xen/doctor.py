"""Rows for `umdev doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.bus import Row
from umdev.errors import UmdevError

from .libraries import DEVICE_MODEL, LIBRARIES, ffi

if TYPE_CHECKING:
    from collections.abc import Iterator

_LIMITS = (
    ("passthrough", "Xen windows", "the domain's own pages, moved under the BAR; else trapped"),
    ("trap", "Xen ioreq server", "up to 256 ranges of addresses and 256 of ports for each domain"),
    ("interrupt", "Xen interrupts", "MSI and MSI-X injected; INTx for HVM domains alone, not behind bridges"),
    ("map", "Xen mappings", "foreign mappings, cached, dropped when the guest gives memory back"),
    ("pin", "Xen pins", "the mappings' page references"),
    ("protect", "Xen EMULATE, TRAP", "one device model of a domain has HVMMEM_ioreq_server; not in a migration"),
    ("protect", "Xen TRACK", "one range of 1 GiB for each domain, comparison beyond"),
    ("translate", "Xen translation", "by the mapping cache"),
)


def rows() -> Iterator[Row]:
    """What Xen offers here, service by service, limits included."""
    for library in LIBRARIES:
        try:
            library.check()
        except UmdevError as error:
            absent = isinstance(error.__cause__, OSError)
            text = f"{library.soname} is not installed" if absent else str(error)
            yield Row("host", "Xen library", None, text, f"apt install {library.package}")
            return
    try:
        handle = DEVICE_MODEL.open("xendevicemodel_open", ffi.NULL, 0)
    except UmdevError as error:
        text, _, remedy = str(error).partition(" (")
        yield Row("host", "Xen dom0", None, f"{text}: no device of a Xen domain", remedy.rstrip(")"))
        return
    DEVICE_MODEL.call("xendevicemodel_close", handle)
    yield Row("host", "Xen dom0", ok=True, text="devices of HVM and PVH domains")
    for service, check, text in _LIMITS:
        yield Row(service, check, ok=True, text=text)
