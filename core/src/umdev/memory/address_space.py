"""The address space that a device's DMA sees: a table of maps, read by C and Python alike.

A bus maps and unmaps; the device model reads, writes and views. The table is immutable and replaced as a whole, so that
a reader never waits and an unmap knows when the last reader of the old one is gone.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from umdev._calls import dma_read, dma_write
from umdev._native import ffi, lib
from umdev.addresses import PAGE_MASK, PAGE_SIZE, HostVirt, Iova
from umdev.errors import Conflict, DmaError, InvalidArgument, MapLimit, NotSupported, StateError
from umdev.services import Protection

from .failures import POISONED, check_table, dma_error
from .mapping import Backing, Mapping
from .space_maps import SpaceMaps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

    from .owner import LockOwner

logger = logging.getLogger("umdev.memory")

MAPS_MAX: int = lib.UMDEV_MEMORY_MAPS_MAX
"""Maps that one address space takes."""

FILE_MAPS_MAX: int = min(MAPS_MAX, lib.umdev_memory_backings_max() // 4)
"""Maps of a descriptor among them; a vfio-user server tells its client (`max_dma_maps`).

Each costs the process one of its `vm.max_map_count` mappings (65,530 by default). An eighth of these is one client's,
half all clients' together.
"""

SECTION_MAX: int = lib.UMDEV_MEMORY_SECTION_MAX
"""Bytes that are copied before a waiting unmap gets its turn."""

ADDRESS_END = 1 << 64
"""One past the last bus address."""

SMALL = 1 << 16
"""Up to so many bytes are read without a look at the maps first: what is allocated for nothing is as small."""

MESSAGE_READ_MAX = 64 << 20
"""Bytes of one `read` that reaches maps without a file: a client may say that such a map is of any length."""

ListenerT = TypeVar("ListenerT")
Filler: TypeAlias = Callable[[Iova, int, Protection, int], bool]

_BYTES = ffi.typeof("char[]")
_ADDRESS = ffi.typeof("uint64_t *")
_transfer = lib.umdev_memory_transfer
_new_bytes = ffi.new_allocator(should_clear_after_alloc=False)


class AddressSpace:
    """Maps of guest memory, per PASID (`space`, 0 without one).

    Any thread may call any method. `read`, `write` and `view` need no lock; `unmap` takes the device lock, if there is
    a device. Bus mastering is on until someone turns it off: a function's configuration space does so at reset.
    """

    def __init__(self, native: LockOwner | None = None) -> None:
        pointer = lib.umdev_memory_new()
        if pointer == ffi.NULL:
            raise MemoryError
        self.pointer: Any = ffi.gc(pointer, lib.umdev_memory_free)
        """The `umdev_memory *` for C code, valid as long as this object."""
        self.address = int(ffi.cast("uintptr_t", pointer))
        """The same as a number."""
        self._native = native
        if native is not None:
            lib.umdev_memory_set_device(self.pointer, native.pointer)
        self._spaces: dict[int, SpaceMaps] = {}
        self._registry = threading.Lock()  # of _spaces; never held while a listener or the device lock is waited for
        self._listeners: list[Callable[[Mapping], None]] = []
        self._late_listeners: list[Callable[[Mapping], None]] = []
        self._change_listeners: list[Callable[[], None]] = []
        self._files = 0  # maps of descriptors
        self._closed = False
        self._fill: Filler | None = None
        self._handle: Any = ffi.NULL  # what C knows this object by

    # Maps.

    def map(
        self,
        iova: int,
        length: int,
        *,
        descriptor: int | None = None,
        offset: int = 0,
        host: HostVirt | None = None,
        protection: Protection = Protection.READ | Protection.WRITE,
        space: int = 0,
    ) -> Mapping:
        """Add a map; all numbers are in bytes and multiples of a page.

        `descriptor` is borrowed for the call: a memfd or another file on tmpfs or hugetlbfs that holds
        `offset + length` bytes. `host`: the bus has mapped the memory there by its own means, and gives the range away:
        zeros replace it at the unmap, and it is unmapped (munmap) when nothing points to it any more. Neither: the
        memory is reachable by message only (see `set_messages`). After an error nothing has changed.

        The process's handler of SIGBUS is umdev's from the first map on: it poisons the map of a file that shrank and
        passes other faults to the handler of before. Who installs one later (faulthandler.enable) does so before the
        next map, which goes above it. A thread that blocks SIGBUS must not touch guest memory: the kernel ends the
        process when it meets such a file.

        Raises: InvalidArgument, Conflict (a map overlaps), StateError (closed), MapLimit, UmdevError (no memory).
        """
        end = _check_range(iova, length, space)
        if (iova | length | offset) & PAGE_MASK or offset < 0:
            raise InvalidArgument(
                f"a DMA map needs multiples of {PAGE_SIZE} bytes: "
                f"iova {iova:#x}, length {length:#x}, offset {offset:#x}"
            )
        if not protection:
            raise InvalidArgument(f"the DMA map at {iova:#x} allows neither reading nor writing")
        with self._registry:
            if self._closed:
                raise StateError("the address space is closed")
            maps = self._spaces.get(space) or SpaceMaps()
            taken = maps.overlapping(iova, end)
            if taken:
                raise Conflict(f"DMA map {iova:#x}+{length:#x} overlaps {taken[0]!r}")
            if host is not None:
                backing: Backing | None = Backing.adopt(host, length, protection)
            elif descriptor is not None:
                if self._files >= FILE_MAPS_MAX:
                    raise MapLimit(
                        f"an address space takes {FILE_MAPS_MAX} maps of descriptors at most, an eighth of "
                        "vm.max_map_count: map longer ranges, unmap some, or raise that (sysctl)"
                    )
                backing = Backing(descriptor, offset, length, protection)
            else:
                backing = None
            mapping = Mapping(Iova(iova), length, protection, space, backing)
            entry = ffi.new("umdev_map_entry *")
            entry.space, entry.protection, entry.iova, entry.size = space, protection.value, iova, length
            entry.host = ffi.NULL if backing is None else backing.native.host
            entry.guard = -1 if backing is None else backing.guard
            try:
                check_table(lib.umdev_memory_insert(self.pointer, entry))
                maps.add(mapping)
            except BaseException:
                # Ctrl-C may come when C has the map already, whose memory goes with `backing`.
                lib.umdev_memory_remove(self.pointer, space, iova, end - 1)
                maps.discard(mapping)
                if host is not None and backing is not None:
                    backing.give_back()
                raise
            self._spaces[space] = maps
            self._files += descriptor is not None
        self._changed()
        return mapping

    def unmap(self, iova: int, length: int, space: int = 0) -> list[Mapping]:
        """Remove every map that lies in the range; returns them, or an empty list where nothing was mapped.

        When it returns, no reader uses the memory, the listeners have run with the device lock held, and views that
        somebody kept read zeros.

        Raises: InvalidArgument (a map lies partly in the range; nothing has changed).
        """
        end = _check_range(iova, length, space)
        with self._device_locked():
            with self._registry:
                maps = self._spaces.get(space)
                gone = maps.overlapping(iova, end) if maps else []
                for mapping in gone:
                    if mapping.iova < iova or mapping.end > end:
                        raise InvalidArgument(f"unmap of {iova:#x}+{length:#x} would split {mapping!r}")
                if maps and gone:
                    check_table(lib.umdev_memory_remove(self.pointer, space, iova, end - 1))
                    for mapping in gone:
                        self._drop(maps, mapping)
            self._release(gone)
        if gone:
            self._changed()
        return gone

    def evict(self, mapping: Mapping) -> bool:
        """Unmap one map for the time being, as a bus does that maps on demand; False where a view of it is open.

        Otherwise as `unmap`: models that keep host addresses are told, and ask anew.
        """
        with self._device_locked():
            with self._registry:
                maps = self._spaces.get(mapping.space)
                backing = mapping.backing
                if maps is None or maps.at(mapping.iova) is not mapping or (backing is not None and backing.views):
                    return False
                check_table(lib.umdev_memory_remove(self.pointer, mapping.space, mapping.iova, mapping.end - 1))
                self._drop(maps, mapping)
            self._release([mapping])
        self._changed()
        return True

    def unmap_all(self) -> list[Mapping]:
        """Remove every map of every space, as `unmap` does."""
        with self._device_locked():
            with self._registry:
                gone = [mapping for _, maps in sorted(self._spaces.items()) for mapping in maps.maps]
                if gone:
                    check_table(lib.umdev_memory_publish(self.pointer, ffi.NULL, 0))
                self._spaces.clear()
                self._files = 0
            self._release(gone)
        if gone:
            self._changed()
        return gone

    def close(self) -> None:
        """Remove every map; `map` raises StateError from now on. May be called twice."""
        with self._registry:
            self._closed = True
        self.unmap_all()

    @property
    def mappings(self) -> list[Mapping]:
        """Every map, sorted by space and address."""
        with self._registry:
            return [mapping for _, maps in sorted(self._spaces.items()) for mapping in maps.maps]

    @property
    def count(self) -> int:
        """How many maps there are; another thread may be changing that."""
        return int(lib.umdev_memory_count(self.pointer))

    def find(self, iova: int, space: int = 0) -> Mapping | None:
        """The map that covers the address."""
        with self._registry:
            maps = self._spaces.get(space)
            return maps.at(iova) if maps else None

    def on_unmap(self, listener: Callable[[Mapping], None], *, late: bool = False) -> Callable[[], None]:
        """Call `listener(mapping)` for each map that goes: the device lock held, no reader left, bytes still there.

        `late` ones (pins, protection) come after the others (the model). Returns what ends it. An exception of a
        listener is logged; the memory goes anyway.
        """
        return _listen(self._late_listeners if late else self._listeners, listener)

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener()` after maps have come or gone, in the thread that did it, without locks of this object.

        Returns what ends it. An exception of a listener is logged.
        """
        return _listen(self._change_listeners, listener)

    # Access.

    def read(self, iova: int, length: int, space: int = 0) -> bytes:
        """Bytes as the device reads them, across adjacent maps. 1, 2, 4 and 8 aligned bytes are one access.

        More than 64 MiB of memory that is reachable by message only are a DmaError, since no file bounds what a driver
        claims to have there: read such a range in parts.

        Raises: NotMapped, NotPermitted, BusMasterDisabled, MappingPoisoned, DmaWouldDeadlock, DmaAborted, DmaError;
        InvalidArgument for numbers that are no bus addresses.
        """
        data = dma_read(self.address, iova, length, space)
        return self._read_long(iova, length, space) if data is None else data

    def read_into(self, iova: int, buffer: Buffer, space: int = 0) -> None:
        """Fill a writable, contiguous buffer; after an error its content is undefined. Raises: as `read`."""
        with ffi.from_buffer(_BYTES, buffer, require_writable=True) as native:
            self._transfer(iova, native, len(native), space, write=False)

    def write(self, iova: int, data: Buffer, space: int = 0) -> None:
        """Store bytes as the device writes them. What lies before the address in an error may have been stored.

        Raises: as `read`.
        """
        if dma_write(self.address, iova, data, space):
            return
        with ffi.from_buffer(_BYTES, data) as native:
            self._transfer(iova, native, len(native), space, write=True)

    @contextlib.contextmanager
    def view(self, iova: int, length: int, *, write: bool = False, space: int = 0) -> Iterator[memoryview]:
        """The memory itself, without a copy. It must lie in one map.

        Leave the `with` in `on_unmap` at the latest: a view that is late sees zeros, and its stores are lost.

        Raises: as `read`, and NotSupported for a range in two maps or reachable by message only.
        """
        mapping, backing = self._hold(iova, length, space, Protection.WRITE if write else Protection.READ)
        start = iova - mapping.iova
        view = backing.buffer[start : start + length]
        if not write:
            view = view.toreadonly()
        try:
            yield view
        finally:
            with self._registry:
                backing.views -= 1
            # Somebody still exports it (a numpy array): it stays valid as long as that lives.
            with contextlib.suppress(BufferError):
                view.release()

    def translate(self, iova: int, length: int, protection: Protection = Protection.READ, space: int = 0) -> HostVirt:
        """The host address of a range inside one map, valid until `on_unmap` says that the map goes.

        Raises: NotMapped, NotPermitted, MappingPoisoned, NotSupported (two maps, or reachable by message only).
        """
        mapping, backing = self._locate(iova, length, space, protection)
        return HostVirt(backing.host + iova - mapping.iova)

    # What the function and the bus decide.

    @property
    def bus_master(self) -> bool:
        """Whether DMA is let through. When it has been set to False, no transfer is left inside mapped memory."""
        return bool(lib.umdev_memory_bus_master(self.pointer))

    @bus_master.setter
    def bus_master(self, enabled: bool) -> None:
        with self._registry:
            if lib.umdev_memory_set_bus_master(self.pointer, enabled):
                raise StateError("bus mastering is turned off inside a reader section")

    def drain(self) -> None:
        """Return when no transfer that began earlier is inside mapped memory."""
        if lib.umdev_memory_drain(self.pointer):
            raise StateError("drain is called inside a reader section")

    def set_messages(self, transfer: Any, context: Any = ffi.NULL, cancel: Any = ffi.NULL) -> None:
        """How maps without a descriptor are reached: a C `umdev_message_transfer`, or NULL, and its context.

        `cancel` is the `umdev_message_cancel` that ends transfers under way, for a reset; without one a reset waits for
        them. The transfer is called without the device lock, for at most 64 KiB at once. Waits for calls of the old one
        that are under way.
        """
        lib.umdev_memory_set_messages(self.pointer, transfer, cancel, context)

    def set_filler(self, fill: Filler | None) -> None:
        """Whom to ask for a map where a transfer meets none, C handlers' included: `fill(iova, length, protection,
        space)`, which says whether there is one now. It may be called with the device lock held, and by any thread.

        Waits for calls of the old one that are under way.
        """
        self._fill = fill
        self._handle = ffi.new_handle(self) if fill is not None else ffi.NULL
        function = lib.umdev_memory_fill if fill is not None else ffi.NULL
        lib.umdev_memory_set_filler(self.pointer, function, self._handle)

    def fill(self, iova: int, length: int, protection: Protection, space: int) -> bool:
        """For C: ask for a map."""
        fill = self._fill
        return fill is not None and fill(Iova(iova), length, protection, space)

    # Inside.

    def _drop(self, maps: SpaceMaps, mapping: Mapping) -> None:
        maps.drop(mapping)
        self._files -= mapping.file is not None

    def _device_locked(self) -> contextlib.AbstractContextManager[object]:
        if self._native is None or self._native.held:
            return contextlib.nullcontext()
        return self._native.locked()

    def _release(self, gone: list[Mapping]) -> None:
        """The client takes its memory back whatever a model does; what ends a process or a test passes afterwards."""
        passes: BaseException | None = None
        for mapping in gone:
            for listener in (*self._listeners, *self._late_listeners):
                try:
                    listener(mapping)
                except BaseException as error:
                    logger.exception("on_unmap listener failed for %r", mapping)
                    if not isinstance(error, Exception):
                        passes = passes or error
            mapping.forget()
        if passes is not None:
            raise passes

    def _changed(self) -> None:
        for listener in tuple(self._change_listeners):
            try:
                listener()
            except Exception:  # what has changed has changed, whatever an observer makes of it
                logger.exception("on_change listener failed")

    def _read_long(self, iova: int, length: int, space: int) -> bytes:
        if length == 0:
            return b""
        if not 0 < length <= SMALL:
            covering = self._check_covered(iova, length, space, Protection.READ)  # before memory is allocated for it
            by_message = [mapping for mapping in covering if mapping.backing is None]
            if sum(min(each.end, iova + length) - max(each.iova, iova) for each in by_message) > MESSAGE_READ_MAX:
                text = (
                    f"memory at {by_message[0].iova:#x} is by message: at most {MESSAGE_READ_MAX >> 20} MiB in one read"
                )
                raise DmaError(text, iova, length)
        native = _new_bytes(_BYTES, length)
        self._transfer(iova, native, length, space, write=False)
        return bytes(ffi.buffer(native))

    def _transfer(self, iova: int, native: Any, length: int, space: int, *, write: bool) -> None:
        failed = ffi.new(_ADDRESS)
        try:
            code = _transfer(self.pointer, space, iova, native, length, write, failed)
        except OverflowError:
            _check_range(iova, length, space)
            raise
        if code:
            where = failed[0] if failed[0] >= iova else ADDRESS_END  # it would go on at 0
            raise dma_error(-code, iova, length, where, space, write=write)

    def _check_covered(self, iova: int, length: int, space: int, protection: Protection) -> list[Mapping]:
        """The maps that cover the range. Raises: NotMapped, NotPermitted."""
        end = _check_range(iova, length, space)
        write = protection is Protection.WRITE
        with self._registry:
            found = list((self._spaces.get(space) or SpaceMaps()).overlapping(iova, end))
            reached = iova
            for mapping in found:
                if mapping.iova > reached:
                    break
                if protection not in mapping.protection:
                    raise dma_error(errno.EACCES, iova, length, reached, space, write=write)
                reached = mapping.end
        if reached < end:
            raise dma_error(errno.EFAULT, iova, length, reached, space, write=write)
        return found

    def _hold(self, iova: int, length: int, space: int, protection: Protection) -> tuple[Mapping, Backing]:
        """The map of a range for a view, which keeps it from being evicted."""
        while True:
            mapping, backing = self._locate(iova, length, space, protection)
            if not self.bus_master:
                raise dma_error(errno.EPERM, iova, length, iova, space, write=Protection.WRITE in protection)
            with self._registry:
                maps = self._spaces.get(space)
                if maps is not None and maps.at(iova) is mapping:
                    backing.views += 1
                    return mapping, backing

    def _locate(self, iova: int, length: int, space: int, protection: Protection) -> tuple[Mapping, Backing]:
        end = _check_range(iova, length, space)
        write = Protection.WRITE in protection
        with self._registry:
            maps = self._spaces.get(space)
            mapping = maps.at(iova) if maps else None
            backing = mapping.backing if mapping else None
        if mapping is None:
            raise dma_error(errno.EFAULT, iova, length, iova, space, write=write)
        if protection not in mapping.protection:
            raise dma_error(errno.EACCES, iova, length, iova, space, write=write)
        if end > mapping.end:
            self._check_covered(iova, length, space, protection)
            raise NotSupported(
                f"{iova:#x}+{length:#x} lies in two maps or more (the first: {mapping!r}): read or write it"
            )
        if backing is None:
            raise NotSupported(f"{iova:#x}+{length:#x} is reachable by message only: read or write it")
        if mapping.poisoned:
            raise dma_error(POISONED, iova, length, iova, space, write=write)
        return mapping, backing


@ffi.def_extern(name="umdev_memory_fill", error=0)  # type: ignore[untyped-decorator]  # cffi's handles are untyped
def _fill(context: Any, space: int, iova: int, length: int, write: int) -> int:
    try:
        protection = Protection.WRITE if write else Protection.READ
        return int(ffi.from_handle(context).fill(iova, length, protection, space))
    except Exception:  # a plugin's mapper may raise anything; the transfer fails as it would have
        logger.exception("no map could be made for %#x", iova)
        return 0


def _listen(listeners: list[ListenerT], listener: ListenerT) -> Callable[[], None]:
    listeners.append(listener)

    def cancel() -> None:
        with contextlib.suppress(ValueError):  # ended before
            listeners.remove(listener)

    return cancel


def _check_range(iova: int, length: int, space: int) -> int:
    """One past the last address."""
    if length <= 0 or iova < 0 or iova + length > ADDRESS_END:
        raise InvalidArgument(f"{length} bytes at {iova:#x} is no range of bus addresses")
    if not 0 <= space < 1 << 32:
        raise InvalidArgument(f"space {space} does not fit into 32 bits")
    return iova + length
