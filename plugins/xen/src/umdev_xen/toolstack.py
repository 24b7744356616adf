"""What the toolstack says of a domain, in xenstore."""

from __future__ import annotations

import contextlib
import enum
import select
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umdev.errors import NotFound, NotSupported, UmdevError

from .libraries import STORE, failure, ffi

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DomainType", "domain_type", "find_domain", "has_device_model", "named", "read", "wait_for"]

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


def has_device_model(domid: int) -> bool:
    """Whether the toolstack gives the domain a QEMU with the devices of a PC, as libxl does for every HVM domain."""
    return read(f"/libxl/{domid}/type") == "hvm"


def read(path: str) -> str | None:
    """A node of xenstore; None where there is none, or no xenstore."""
    with _store() as store:
        return None if store is None else _read(store, path)


@contextlib.contextmanager
def _store() -> Iterator[Any]:
    """A connection to xenstore, closed again: a restricted process could not use it. None where there is none."""
    store: Any = None
    if any(Path(socket).exists() for socket in _SOCKETS):  # else libxenstore would wait for the kernel's xenbus
        try:
            store = STORE.open("xs_open", 0)
        except UmdevError:
            store = None
    try:
        yield store
    finally:
        if store is not None:
            STORE.function("xs_close")(store)


def _read(store: Any, path: str) -> str | None:
    length = ffi.new("unsigned int *")
    found: Any = STORE.function("xs_read")(store, 0, path.encode(), length)
    if found == ffi.NULL:
        return None
    try:
        return bytes(ffi.buffer(found, length[0])).decode(errors="replace")
    finally:
        STORE.function("free")(found)


def _directory(store: Any, path: str) -> list[str]:
    count = ffi.new("unsigned int *")
    found: Any = STORE.function("xs_directory")(store, 0, path.encode(), count)
    if found == ffi.NULL:
        return []
    try:
        return [ffi.string(found[number]).decode(errors="replace") for number in range(count[0])]
    finally:
        STORE.function("free")(found)


def find_domain(text: str) -> int:
    """A domain by its number, or by the name that the toolstack gave it. Raises: NotFound."""
    if text.isdecimal():
        return int(text)
    found = named(text)
    if found is None:
        raise NotFound(f"no domain is named {text!r}: xl list shows names and numbers")
    return found


def named(name: str) -> int | None:
    """The number of the domain with a name; the newest where a reboot is under way."""
    with _store() as store:
        if store is None:
            return None
        return _named(store, name)


def wait_for(name: str, but: int | None, stop: int) -> int | None:
    """The number of a domain with a name, once there is one other than `but`; None when `stop` becomes readable.

    It is there while the toolstack still builds it, paused. Raises: NotSupported without xenstore.
    """
    with _store() as store:
        if store is None:
            raise NotSupported("xenstore does not answer: is xenstored running in this dom0?")
        if not STORE.function("xs_watch")(store, b"/local/domain", b"umdev"):
            raise failure("xs_watch", ffi.errno)
        descriptor = STORE.function("xs_fileno")(store)
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        waiting.register(stop, select.POLLIN)
        while True:
            found = _named(store, name)
            if found is not None and found != but:
                return found
            ready = dict(waiting.poll())
            if stop in ready:
                return None
            events = STORE.function("xs_read_watch")(store, ffi.new("unsigned int *"))
            if events == ffi.NULL:
                raise failure("xs_read_watch", ffi.errno)
            STORE.function("free")(events)


def _named(store: Any, name: str) -> int | None:
    numbers = [int(number) for number in _directory(store, "/local/domain") if number.isdecimal()]
    return max((n for n in numbers if _read(store, f"/local/domain/{n}/name") == name), default=None)
