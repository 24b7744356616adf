"""The C loop as an object: one domain's ring page, tables and processors."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from umdev.bus import api_address
from umdev.errors import Conflict, HypervisorError, NotSupported

from ._fast import ffi, lib
from .libraries import DEVICE_MODEL, EVENT_CHANNEL, FOREIGN_MEMORY
from .libraries import ffi as xen_ffi

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .handles import Handles

__all__ = ["CONFIG", "IDLE", "INVALIDATE", "STOPPED", "STORE", "Native", "NativeVcpu", "Wire"]

STOPPED: int = lib.UMDEV_XEN_STOPPED
CONFIG: int = lib.UMDEV_XEN_CONFIG
INVALIDATE: int = lib.UMDEV_XEN_INVALIDATE
STORE: int = lib.UMDEV_XEN_STORE
IDLE: int = lib.UMDEV_XEN_IDLE
_COUNTERS = ("requests", "accesses", "unclaimed", "malformed", "unreachable", "messages", "lost", "stores")


def _address(pointer: Any) -> Any:
    """A pointer of the other cffi module's, for this one's structs."""
    return ffi.cast("void *", int(xen_ffi.cast("uintptr_t", pointer)))


class Native:
    """A `umdev_xen`. Any thread; `free` when no other call is under way."""

    def __init__(self, handles: Handles, page: int) -> None:
        """`page`: the address of the ring page; borrowed, like the handles.

        Raises: NotSupported (the core's ABI, or a library too old), MemoryError.
        """
        api = ffi.cast("umdev_api *", api_address())
        if api.header.major != 1 or api.header.size < ffi.sizeof("umdev_api"):
            has = f"{api.header.major}.{api.header.minor}"
            raise NotSupported(f"umdev-xen was built for ABI 1 of the core, which has {has}: install both anew")
        calls = ffi.new("umdev_xen_calls *")
        for library, prefix, names in (
            (EVENT_CHANNEL, "xenevtchn_", {"evtchn_pending": "pending", "evtchn_unmask": "unmask"}),
            (EVENT_CHANNEL, "xenevtchn_", {"evtchn_notify": "notify"}),
            (DEVICE_MODEL, "xendevicemodel_", {name: name for name in ("inject_msi", "set_pci_intx_level")}),
            (FOREIGN_MEMORY, "xenforeignmemory_", {"foreign_map": "map", "foreign_unmap": "unmap"}),
        ):
            for member, name in names.items():
                setattr(calls, member, ffi.cast(_type(member), library.address(prefix + name)))
        calls.device_model = _address(handles.device_model)
        calls.foreign_memory = _address(handles.foreign_memory)
        pointer = lib.umdev_xen_new(api, calls, handles.domain, ffi.cast("void *", page))
        if pointer == ffi.NULL:
            raise MemoryError("no memory for a domain")
        self.pointer: Any = pointer
        """The `umdev_xen *`."""

    def publish(self, ranges: Sequence[tuple[object, ...]]) -> None:
        """Replace what leads to devices; each is the fields of `umdev_xen_range` in order. Raises: Conflict."""
        array = ffi.new("umdev_xen_range[]", [(s, n, _device(d), r, io) for s, n, d, r, io in ranges])
        code = lib.umdev_xen_publish(self.pointer, array, len(ranges))
        if code:
            raise Conflict(f"{len(ranges)} ranges can't be published: two overlap, or there is no memory")

    def set_function(self, slot: int, device: int) -> None:
        """Put a device (the address of its `umdev_device`, 0: none) into a PCI slot."""
        lib.umdev_xen_set_function(self.pointer, slot, _device(device))

    def set_bridge(self, present: bool) -> None:
        """Be the host bridge at 00:00.0, and the latch at port 0xCF8."""
        lib.umdev_xen_set_bridge(self.pointer, present)

    def set_emulated(self, frames: Sequence[int]) -> None:
        """Pages (frame numbers) whose stores `NativeVcpu.run` comes back for."""
        array = ffi.new("uint64_t[]", sorted(frames))
        if lib.umdev_xen_set_emulated(self.pointer, array, len(frames)):
            raise MemoryError

    def read_guest(self, address: int, length: int) -> bytes | None:
        """At most a page of guest memory through the loop's own mappings; None where there is none."""
        data = ffi.new("uint8_t[]", length)
        return None if lib.umdev_xen_copy(self.pointer, address, data, length, 0) else bytes(data)

    def write_guest(self, address: int, data: bytes) -> bool:
        """The other direction; False where there is none."""
        return not lib.umdev_xen_copy(self.pointer, address, ffi.from_buffer(data), len(data), 1)

    def set_tracked(self, first: int, count: int) -> None:
        """Remember stores to these frames that the loop lands itself."""
        if lib.umdev_xen_set_tracked(self.pointer, first, count):
            raise MemoryError

    def take_landed(self, count: int) -> bytes:
        """A bit for each of the `count` frames tracked that was stored to so since the last call."""
        bits = ffi.new("uint8_t[]", count // 8 + 1)
        lib.umdev_xen_take_landed(self.pointer, bits)
        return bytes(bits)

    @contextlib.contextmanager
    def answers_held(self) -> Iterator[None]:
        """No processor is answered meanwhile; only `is_busy` may be called."""
        lib.umdev_xen_hold(self.pointer)
        try:
            yield
        finally:
            lib.umdev_xen_unhold(self.pointer)

    def is_busy(self, frame: int) -> bool:
        """Whether a processor is in the middle of a store to the page; with answers held back."""
        return bool(lib.umdev_xen_is_busy(self.pointer, frame))

    def drain(self) -> None:
        """No processor's thread is inside a device that has been taken out of the tables."""
        lib.umdev_xen_drain(self.pointer)

    def forget(self) -> None:
        """Drop the loop's own mappings of guest memory."""
        lib.umdev_xen_forget(self.pointer)

    def stop(self) -> None:
        """Make every processor's `run` return STOPPED, for good."""
        lib.umdev_xen_stop(self.pointer)

    def counters(self) -> dict[str, int]:
        """What has happened so far."""
        found = ffi.new("umdev_xen_counters *")
        lib.umdev_xen_read_counters(self.pointer, found)
        return {name: int(getattr(found, name)) for name in _COUNTERS}

    def free(self) -> None:
        """Give its memory and mappings back. May be called twice."""
        if self.pointer is not None:
            lib.umdev_xen_free(self.pointer)
            self.pointer = None


class NativeVcpu:
    """One processor's slot of the ring page; `run` is for one thread."""

    def __init__(self, native: Native, index: int, channel: Any, descriptor: int, port: int) -> None:
        pointer = lib.umdev_xen_vcpu_new(native.pointer, index, _address(channel), descriptor, port)
        if pointer == ffi.NULL:
            raise HypervisorError(f"no memory for processor {index}")
        self._pointer = pointer
        self.event: Any = ffi.new("umdev_xen_event *")
        """What `run` came back for."""

    def run(self, patience: int) -> int:
        """Serve requests; returns an event's kind. `patience`: milliseconds until IDLE, -1: never."""
        return int(lib.umdev_xen_vcpu_run(self._pointer, patience, self.event))


class Wire:
    """Where the interrupts of the function in a slot go. The port's listeners must have ended before `free`."""

    level = lib.umdev_xen_wire_level
    message = lib.umdev_xen_wire_message

    def __init__(self, native: Native, slot: int, pin: int) -> None:
        """`pin` 0: none that the domain could deliver."""
        pointer = lib.umdev_xen_wire_new(native.pointer, slot, pin)
        if pointer == ffi.NULL:
            raise MemoryError
        self.pointer: Any = pointer
        """The listeners' context."""

    def set_msi(self, address: int, data: int, count: int) -> None:
        """Where MSI goes, and how many messages are allocated."""
        lib.umdev_xen_wire_set_msi(self.pointer, address, data, count)

    def free(self) -> None:
        """May be called twice."""
        if self.pointer is not None:
            lib.umdev_xen_wire_free(self.pointer)
            self.pointer = None


def _device(address: object) -> Any:
    return ffi.cast("umdev_device *", address)


def _type(member: str) -> Any:
    """The C type of a function pointer in `umdev_xen_calls`."""
    return dict(ffi.typeof("umdev_xen_calls").fields)[member].type
