"""`NativeDevice`: the C half of a device, as Python sees it. Lock, accesses, gates, counters."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from typing_extensions import Buffer  # collections.abc.Buffer from Python 3.12

from umdev._calls import bind_handlers
from umdev._native import ffi, lib
from umdev.errors import InvalidArgument, StateError, UmdevError

if TYPE_CHECKING:
    from types import TracebackType

log = logging.getLogger("umdev.device")

ReadBytes: TypeAlias = Callable[[int, int], bytes]
"""`(offset, length)`: the bytes that a read answers."""
WriteBytes: TypeAlias = Callable[[int, bytes], None]
"""`(offset, data)`."""
FaultListener: TypeAlias = Callable[[BaseException, str], None]
"""`(exception, path of the register or region whose handler raised)`."""

ALL_BITS = (1 << 64) - 1
ACCESS_LIMIT = 1 << 20
"""The most bytes that `read` and `write` move in one access."""
UNMODELLED_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class Unmodelled:
    """An offset that the driver uses and the model does not declare. `value` is what was last written there."""

    region: int
    offset: int
    length: int
    reads: int
    writes: int
    value: int


class Owner(Protocol):
    """Who has the Python handlers of registers, which C calls with the device lock held.

    The lists, by slot of the layout, are changed in place only: C goes on looking at them.
    """

    reads: list[Callable[..., Any] | None]
    writes: list[Callable[..., Any] | None]

    def bind(self, slot: int, event: Literal["read", "write"]) -> Callable[..., Any]:
        """The handler that C does not find in its list yet; it looks there again next time."""

    def failed(self, slot: int, error: BaseException) -> None:
        """A handler raised, and its access ends as UMDEV_FAULT."""


class NativeDevice:
    """One `umdev_device`. Any thread may call any method; those that need the lock take it unless the caller has it.

    name: for people, in errors. raise_faults: `read` and `write` raise what a Python handler raised in their own
    thread, for tests; else an access whose handler failed answers all ones.
    """

    def __init__(self, name: str = "device") -> None:
        self.name = name
        self.raise_faults = False
        self.last_fault: BaseException | None = None
        pointer = lib.umdev_device_new()
        if pointer == ffi.NULL:
            raise MemoryError("no memory for a device")
        self.pointer: Any = ffi.gc(pointer, lib.umdev_device_free)
        """The `umdev_device *`. Whoever keeps it keeps this object too."""
        self._kept: list[Any] = []  # what C points to
        self._listeners: list[FaultListener] = []
        self._raising: tuple[int, BaseException] | None = None
        self._python_faults = 0
        self._locked = _Locked(self)
        self._closed = False

    @property
    def address(self) -> int:
        """The `umdev_device *` as a number."""
        return int(ffi.cast("uintptr_t", self.pointer))

    @property
    def id(self) -> int:
        """Names the device in trace records; unique in the process."""
        return int(lib.umdev_device_id(self.pointer))

    # The lock.

    def locked(self) -> _Locked:
        """A context manager that holds the device lock. It waits without the GIL.

        Raises: StateError if the calling thread holds it already (a handler does).
        """
        return self._locked

    @property
    def held(self) -> bool:
        """The calling thread holds the device lock."""
        return bool(lib.umdev_device_held(self.pointer))

    def settle(self, *, cancel: bool) -> None:
        """Return when no work is suspended in DMA by message. The lock is held by the caller, and free meanwhile.

        `cancel` ends such DMA with DmaAborted at once, and what that work asks for after it.
        """
        lib.umdev_device_settle(self.pointer, cancel)

    # What the driver does.

    def read(self, region: int, offset: int, length: int, *, initiator: int = 0, space: int = 0) -> bytes:
        """Read as the driver does; all ones where the access is aborted or the handler failed.

        Raises: StateError if the access needs the device lock and the calling thread holds it; InvalidArgument for
        more than 1 MiB.
        """
        if not 0 <= length <= ACCESS_LIMIT:
            raise InvalidArgument(f"an access of {length} bytes; at most {ACCESS_LIMIT}")
        data = bytearray(length)
        target = ffi.from_buffer(data)
        result = lib.umdev_device_access(self.pointer, region, _offset(offset), target, length, 0, initiator, space)
        if result < 0 or result == lib.UMDEV_FAULT:
            self._failed(result, f"read of region {region} at {offset:#x}")
        return bytes(data)

    def write(
        self, region: int, offset: int, data: Buffer, *, posted: bool = False, initiator: int = 0, space: int = 0
    ) -> None:
        """Write as the driver does. posted: the initiator waits for no answer (memory BARs).

        Raises: as `read`.
        """
        source = ffi.from_buffer(data)
        if len(source) > ACCESS_LIMIT:
            raise InvalidArgument(f"an access of {len(source)} bytes; at most {ACCESS_LIMIT}")
        flags = lib.UMDEV_WRITE | lib.UMDEV_POSTED if posted else lib.UMDEV_WRITE
        # C does not change what is written, but an intercept may look at it: hence no const in the prototype.
        result = lib.umdev_device_access(
            self.pointer, region, _offset(offset), source, len(source), flags, initiator, space
        )
        if result < 0 or result == lib.UMDEV_FAULT:
            self._failed(result, f"write to region {region} at {offset:#x}")

    def complete(self, token: int, value: int = 0) -> bool:
        """End an access that a native handler left pending; False if none has this token."""
        return bool(lib.umdev_device_complete(self.pointer, token, value & ALL_BITS) == 0)

    def abort_pending(self) -> None:
        """End every pending access with all ones, as a reset does."""
        lib.umdev_device_abort_pending(self.pointer)

    # Regions and gates.

    def set_parts(self, memory: Any, irq: Any, user_data: Any = ffi.NULL) -> None:
        """What C handlers get from `umdev_api`: pointers that outlive the device."""
        lib.umdev_device_set_parts(self.pointer, memory, irq, user_data)

    def set_user_data(self, pointer: Any) -> None:
        """What `umdev_api.user_data` gives the model's C handlers: cdata, kept as long as the device.

        Before the first access: in `Device.on_open`.
        """
        self._kept.append(pointer)
        lib.umdev_device_set_user_data(self.pointer, pointer)

    def add_region(self, region: int, size: int) -> None:
        """Declare a region of `size` bytes, enabled. Raises: InvalidArgument if the index is bad or taken."""
        self._check(lib.umdev_device_add_region(self.pointer, region, size), f"region {region} of {size:#x} bytes")

    def add_window(
        self, region: int, offset: int, length: int, memory: Buffer, start: int = 0, *, readonly: bool = False
    ) -> None:
        """Let `memory[start : start + length]` answer `[offset, offset + length)`. It is kept as long as the device.

        Raises: InvalidArgument for a bad range or an overlap.
        """
        # The object itself, no memoryview of it: the garbage collector can't clear a memoryview that is in use.
        host = ffi.from_buffer("uint8_t[]", memory)
        if not 0 <= start <= start + length <= len(host):
            raise InvalidArgument(f"{self.name}: {length:#x} bytes at {start:#x} of {len(host):#x} bytes of memory")
        flags = lib.UMDEV_AREA_READONLY if readonly else 0
        self._kept.append(host)
        self._check(
            lib.umdev_device_add_window(self.pointer, region, offset, length, host + start, flags),
            f"window at {offset:#x} of region {region}",
        )

    def overlay(
        self, region: int, offset: int, length: int, handler: Any, context: Any, *, lockless: bool = False
    ) -> None:
        """Let a C function (`umdev_bytes_handler`) answer part of a region; it sees offsets from the part's start.

        The device lock is held unless `lockless`. Raises: InvalidArgument for a bad range or an overlap.
        """
        self._kept.append(context)
        flags = lib.UMDEV_AREA_LOCKLESS if lockless else 0
        self._check(
            lib.umdev_device_add_overlay(self.pointer, region, offset, length, handler, context, flags),
            f"overlay of {length:#x} bytes at {offset:#x} of region {region}",
        )

    def add_callback_overlay(self, region: int, offset: int, length: int, read: ReadBytes, write: WriteBytes) -> None:
        """Let Python functions answer part of a region, with the device lock held; offsets are from the part's start.

        Raises: InvalidArgument for a bad range or an overlap.
        """
        handle = ffi.new_handle(_Bytes(self, read, write, f"region {region} at {offset:#x}"))
        self.overlay(region, offset, length, lib.umdev_python_bytes, handle)

    def add_callback_region(self, region: int, size: int, read: ReadBytes, write: WriteBytes) -> None:
        """A region that is nothing but Python functions, such as configuration space."""
        self.add_region(region, size)
        self.add_callback_overlay(region, 0, size, read, write)

    def set_layout(self, region: int, layout: Any, state: Any, owner: Owner) -> None:
        """Put registers into a region; `owner` has their handlers. For `Region`."""
        handlers = ffi.new("umdev_python_handlers *")
        bind_handlers(int(ffi.cast("uintptr_t", handlers)), owner, owner.reads, owner.writes)
        self._kept += [layout, state, handlers, owner, owner.reads, owner.writes]
        self._check(
            lib.umdev_device_set_layout(
                self.pointer, region, layout, ffi.cast("uint8_t *", state), lib.umdev_python_callbacks(), handlers
            ),
            f"registers of region {region}",
        )

    def set_region_enabled(self, region: int, enabled: bool) -> None:
        """Closed: reads give all ones and writes are dropped. Configuration space stays open."""
        self._check(lib.umdev_device_set_region_enabled(self.pointer, region, enabled), f"region {region}")

    def set_gone(self, gone: bool) -> None:
        """Gone: every access gives all ones, pending ones end. On return no handler runs (but the caller's own)."""
        lib.umdev_device_set_gone(self.pointer, gone)

    def set_intercept(self, function: Any, context: Any = ffi.NULL) -> None:
        """A C function (`umdev_intercept`) that sees every access first, or NULL. Fault injection, replay."""
        self._kept.append(context)
        lib.umdev_device_set_intercept(self.pointer, function, context)

    def close(self) -> None:
        """The device is gone for good. May be called twice. C memory is freed with this object."""
        self._closed = True
        self.set_gone(gone=True)

    # What happened.

    @property
    def counters(self) -> dict[str, int]:
        """Accesses by outcome: reads, writes, unhandled, aborted, faulted, illegal."""
        counters = ffi.new("umdev_counters *")
        lib.umdev_device_counters(self.pointer, counters)
        found = {name: int(getattr(counters, name)) for name, _ in ffi.typeof("umdev_counters").fields}
        found["faulted"] += self._python_faults
        return found

    def burn_down(self) -> list[Unmodelled]:
        """What the driver uses and the model does not declare, by region and offset; at most 4,096 offsets."""
        entries = ffi.new("umdev_unmodelled[]", UNMODELLED_LIMIT)
        count = lib.umdev_device_unmodelled(self.pointer, entries, UNMODELLED_LIMIT, ffi.new("uint64_t *"))
        found = [Unmodelled(e.region, e.offset, e.length, e.reads, e.writes, e.value) for e in entries[0:count]]
        return sorted(found, key=lambda entry: (entry.region, entry.offset))

    @property
    def burn_down_lost(self) -> int:
        """Accesses that the full burn-down list could not keep."""
        lost = ffi.new("uint64_t *")
        lib.umdev_device_unmodelled(self.pointer, ffi.NULL, 0, lost)
        return int(lost[0])

    def forget_burn_down(self) -> None:
        """Empty the burn-down list."""
        lib.umdev_device_forget_unmodelled(self.pointer)

    def on_fault(self, listener: FaultListener) -> None:
        """Tell `listener(exception, path)` of each handler that raises, in its thread, with the device lock held.

        Without a listener it is logged by `umdev.device`.
        """
        self._listeners.append(listener)

    def take_interrupt(self) -> BaseException | None:
        """What a handler raised in this thread that is no Exception (KeyboardInterrupt, SystemExit), once.

        For message loops, which call handlers from C: they raise it when C has come back. `read` and `write` do so by
        themselves.
        """
        raising = self._raising
        if raising is None or raising[0] != threading.get_ident():
            return None
        self._raising = None
        return None if isinstance(raising[1], Exception) else raising[1]

    def count_fault(self, error: BaseException) -> None:
        """Count a failure outside an access (deferred work, notifications of stores). Device lock held."""
        self._python_faults += 1
        self.last_fault = error

    def report(self, error: BaseException, path: str) -> None:
        """A handler raised. For the core."""
        self.last_fault = error
        if self.raise_faults or not isinstance(error, Exception):  # KeyboardInterrupt must not end in a handler
            self._raising = (threading.get_ident(), error)
        for listener in self._listeners:
            listener(error, path)
        if not self._listeners:
            log.error("%s: the handler of %s failed", self.name, path, exc_info=error)

    def _failed(self, result: int, what: str) -> None:
        """The access ended in a fault or an errno: raise what there is to raise."""
        if result == lib.UMDEV_FAULT:
            raising = self._raising
            if raising is not None and raising[0] == threading.get_ident():
                self._raising = None
                raise raising[1]
            return
        raise StateError(f"{self.name}: {what} needs the device lock, which this thread holds already")

    def _check(self, error: int, what: str) -> None:
        if error:
            why = {-17: "overlaps a register, a window or an overlay", -12: "no memory"}.get(
                error, "is out of range or given twice"
            )
            raise InvalidArgument(f"{self.name}: {what} {why}")


class _Locked:
    """The device lock as a context manager; not re-entrant, and one object serves all threads."""

    __slots__ = ("_native",)

    def __init__(self, native: NativeDevice) -> None:
        self._native = native

    def __enter__(self) -> None:
        pointer = self._native.pointer
        if lib.umdev_device_held(pointer):
            raise StateError(f"{self._native.name}: this thread holds the device lock already")
        try:
            lib.umdev_device_lock(pointer)
        except BaseException:  # Ctrl-C while C waited: Python raises it when C has come back, with the lock
            if lib.umdev_device_held(pointer):
                lib.umdev_device_unlock(pointer)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lib.umdev_device_unlock(self._native.pointer)


@dataclass(frozen=True, slots=True)
class _Bytes:
    """The Python functions behind an overlay."""

    native: NativeDevice
    read: ReadBytes
    write: WriteBytes
    path: str


def _offset(offset: int) -> int:
    if not 0 <= offset <= ALL_BITS:
        raise InvalidArgument(f"offset {offset:#x} is no 64-bit number")
    return offset


# C calls this with the device lock held and no GIL; cffi takes the GIL, and on an exception calls `_raised`.


def _raised(_: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The access ends as UMDEV_FAULT; whoever is concerned hears of it, found in the locals of the function below."""
    lib.umdev_device_fault()
    frame = trace and trace.tb_frame
    if frame is not None:
        owner: _Bytes = ffi.from_handle(frame.f_locals["context"])
        owner.native.report(error, owner.path)


@ffi.def_extern(onerror=_raised)  # type: ignore[untyped-decorator]  # cffi's handle has no types
def umdev_python_bytes(context: Any, offset: int, bytes_: Any, length: int, flags: int) -> int:
    """An access to an overlay that Python serves."""
    owner = ffi.from_handle(context)
    target = ffi.buffer(bytes_, length)
    if flags & lib.UMDEV_WRITE:
        owner.write(offset, bytes(target))
        return int(lib.UMDEV_OK)
    answer = owner.read(offset, length)
    if len(answer) != length:
        raise UmdevError(f"{owner.path}: a read of {length} bytes was answered with {len(answer)}")
    target[:] = answer
    return int(lib.UMDEV_OK)
