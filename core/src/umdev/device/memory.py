"""Guest memory as a device model sees it: `self.memory`."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple, Protocol

from umdev._calls import dma_read, dma_write
from umdev.addresses import PAGE_MASK, PAGE_SIZE, HostVirt, Iova
from umdev.errors import InvalidArgument, NotMapped, StateError
from umdev.services import Protection, ProtectMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager
    from typing import TypeVar

    from typing_extensions import Buffer

    from umdev.memory import AddressSpace, Mapping
    from umdev.services import MemoryMapper, PagePinner, PageProtector, PageWrite, Translator

    Result = TypeVar("Result")


class MemoryServices(Protocol):
    """Where the services come from that depend on the attachment; each is bound when it is first asked for."""

    def pinner(self) -> PagePinner:
        """Raises: ServiceUnavailable."""

    def protector(self, mode: ProtectMode) -> PageProtector:
        """Raises: ServiceUnavailable."""

    def translator(self) -> Translator:
        """Raises: ServiceUnavailable."""

    def mapper(self) -> MemoryMapper | None:
        """None where the bus maps memory before the device asks."""


class _Pin(NamedTuple):
    times: int
    host: HostVirt


class DeviceMemory:
    """DMA of one function, and the services on guest pages.

    Addresses are what the driver wrote into the device's registers (`Iova`, or a plain int), lengths are in bytes.
    `space` is the PASID, 0 without one. Any thread; no lock is needed, and the device lock may be held. After an error
    nothing at or after the error's `iova` was transferred.

    Where memory is reached by message, the device lock is let go while the driver's side is asked: handlers may run in
    between, and what they may change must be looked at again. Where it is mapped the lock is kept.
    """

    def __init__(
        self, memory: AddressSpace, services: MemoryServices, faulted: Callable[[BaseException], None] | None = None
    ) -> None:
        """`faulted` is told of a notification of `protect` that raised."""
        self._memory = memory
        self._address = memory.address
        self._services = services
        self._faulted = faulted
        self._pins: dict[tuple[int, int], _Pin] = {}  # by space and page
        self._lock = threading.Lock()
        self._cancel = memory.on_unmap(self._forget, late=True)

    # DMA.

    def read(self, address: int, length: int, *, space: int = 0) -> bytes:
        """Bytes, across adjacent maps; 1, 2, 4 or 8 aligned ones are one access.

        Raises: NotMapped (`iova` is the first address that failed), NotPermitted, BusMasterDisabled, MappingPoisoned,
        DmaWouldDeadlock (memory by message, from a handler), DmaAborted (by message, and a reset came), DmaError.
        """
        data = dma_read(self._address, address, length, space)  # at once where nothing is in the way
        if data is not None:
            return data
        try:
            return self._memory.read(address, length, space)
        except NotMapped as error:
            return self._again(error, lambda: self._memory.read(address, length, space), Protection.READ, space)

    def read_into(self, address: int, buffer: Buffer, *, space: int = 0) -> None:
        """Fill a writable buffer; after an error its content is undefined. Raises: as `read`."""
        try:
            self._memory.read_into(address, buffer, space)
        except NotMapped as error:
            self._again(error, lambda: self._memory.read_into(address, buffer, space), Protection.READ, space)

    def write(self, address: int, data: Buffer, *, space: int = 0) -> None:
        """Store bytes; the driver sees them before any interrupt that is raised later. Raises: as `read`."""
        if dma_write(self._address, address, data, space):
            return
        try:
            self._memory.write(address, data, space)
        except NotMapped as error:
            self._again(error, lambda: self._memory.write(address, data, space), Protection.WRITE, space)

    def read_u32(self, address: int, *, space: int = 0) -> int:
        """A little-endian 32-bit value. Raises: as `read`."""
        return int.from_bytes(self.read(address, 4, space=space), "little")

    def read_u64(self, address: int, *, space: int = 0) -> int:
        """A little-endian 64-bit value. Raises: as `read`."""
        return int.from_bytes(self.read(address, 8, space=space), "little")

    def write_u32(self, address: int, value: int, *, space: int = 0) -> None:
        """A little-endian 32-bit value; higher bits are dropped. Raises: as `read`."""
        self.write(address, (value & 0xFFFF_FFFF).to_bytes(4, "little"), space=space)

    def write_u64(self, address: int, value: int, *, space: int = 0) -> None:
        """A little-endian 64-bit value; higher bits are dropped. Raises: as `read`."""
        self.write(address, (value & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little"), space=space)

    def view(
        self, address: int, length: int, *, write: bool = False, space: int = 0
    ) -> AbstractContextManager[memoryview]:
        """The memory itself, without a copy; the range must lie in one map.

        Leave the `with` in `on_unmap` at the latest: a late view sees zeros.

        Raises: as `read`, and NotSupported (two maps, or by message only): then use `read` and `write`.
        """
        if self._memory.find(address, space) is None:
            self.ensure_mapped(address, length, Protection.WRITE if write else Protection.READ, space=space)
        return self._memory.view(address, length, write=write, space=space)

    @property
    def mappings(self) -> list[Mapping]:
        """What is mapped now, sorted by space and address."""
        return self._memory.mappings

    def ensure_mapped(
        self, address: int, length: int, protection: Protection = Protection.READ, *, space: int = 0
    ) -> None:
        """Have the range mapped where that is done on demand; elsewhere it is mapped already, or never.

        Raises: NotMapped.
        """
        end = address + length
        while address < end:
            mapping = self._memory.find(address, space)
            if mapping is None:
                text = f"{length} bytes up to {end:#x}: no map covers {address:#x}"
                self._map(NotMapped(text, address, end - address), protection, space)
                continue
            address = mapping.end

    # Pins.

    def pin(self, address: int, pages: int = 1, *, space: int = 0) -> None:
        """Keep pages resident from a page-aligned address on; counted per page. After an error none is pinned by it.

        An unmap unpins what it takes, after `on_unmap`.

        Raises: PinLimit, NotMapped, NotSupported (by message only), ServiceUnavailable.
        """
        wanted = _pages(address, pages)
        self.ensure_mapped(address, pages * PAGE_SIZE, space=space)
        translator, pinner = self._services.translator(), self._services.pinner()
        with self._lock:
            # A page that is still mapped here is not taken by an unmap before `_forget` has had the lock.
            hosts = [translator.translate(Iova(page), PAGE_SIZE, Protection.READ, space) for page in wanted]
            done: list[tuple[HostVirt, int]] = []
            try:
                for host, count in _runs(hosts):
                    pinner.pin(host, count)
                    done.append((host, count))
            except BaseException:
                for host, count in done:
                    pinner.unpin(host, count)
                raise
            for page, host in zip(wanted, hosts, strict=True):
                known = self._pins.get((space, page))
                self._pins[space, page] = _Pin(known.times + 1 if known else 1, host)

    def unpin(self, address: int, pages: int = 1, *, space: int = 0) -> None:
        """Undo one `pin` of the same pages; pages that an unmap has taken, or that never were pinned, are ignored."""
        freed = []
        with self._lock:
            for page in _pages(address, pages):
                known = self._pins.pop((space, page), None)
                if known is None:
                    continue
                if known.times > 1:
                    self._pins[space, page] = known._replace(times=known.times - 1)
                freed.append(known.host)
        if freed:
            pinner = self._services.pinner()
            for host, count in _runs(freed):
                pinner.unpin(host, count)

    @property
    def pinned(self) -> int:
        """Pages that this device has pinned, each counted once."""
        with self._lock:
            return len(self._pins)

    # Protection and translation.

    def protect(
        self, mode: ProtectMode, pages: Sequence[Iova], notify: Callable[[PageWrite], None] | None = None
    ) -> None:
        """Have the driver's stores to pages (page-aligned addresses) reported; `mode` names the guarantee.

        EMULATE and TRAP call `notify(PageWrite)` with the device lock held; a trapped page is writable afterwards until
        it is armed again (in deferred work: then read it). TRACK: see `collect`.

        A `notify` that raises loses nothing of the guest's: the store lands as the driver made it, in EMULATE too
        (unless another device emulates the page and has taken it). The exception is logged, and counted in the device's
        faults.

        Raises: ServiceUnavailable (nobody gives that guarantee here; with reasons), ProtectorBusy, NotMapped.
        """
        self._services.protector(mode).protect(pages, self._counting(notify))

    def _counting(self, notify: Callable[[PageWrite], None] | None) -> Callable[[PageWrite], None] | None:
        faulted = self._faulted
        if notify is None or faulted is None:
            return notify

        def told(write: PageWrite) -> None:
            try:
                notify(write)
            except Exception as error:
                faulted(error)
                raise

        return told

    def unprotect(self, mode: ProtectMode, pages: Sequence[Iova]) -> None:
        """Undo; pages never protected are ignored."""
        self._services.protector(mode).unprotect(pages)

    def collect(self) -> Iterable[Iova]:
        """TRACK: pages stored to since they were last reported, ascending; armed again, so read them now."""
        return self._services.protector(ProtectMode.TRACK).collect()

    def translate(
        self, address: int, length: int, protection: Protection = Protection.READ, *, space: int = 0
    ) -> HostVirt:
        """The address in this process of a range that is contiguous there, valid until `on_unmap` takes it.

        Raises: NotMapped, NotPermitted, NotSupported (by message only).
        """
        self.ensure_mapped(address, length, protection, space=space)
        return self._services.translator().translate(Iova(address), length, protection, space)

    def close(self) -> None:
        """Unpin everything. May be called twice."""
        self._cancel()
        with self._lock:
            pins, self._pins = self._pins, {}
        if pins:
            pinner = self._services.pinner()
            for times, host in pins.values():
                for _ in range(times):
                    pinner.unpin(host, 1)

    def _again(self, error: NotMapped, transfer: Callable[[], Result], protection: Protection, space: int) -> Result:
        """Map what was missing and try again, as often as that brings the transfer further."""
        while True:
            self._map(error, protection, space)
            try:
                return transfer()
            except NotMapped as later:
                if later.iova <= error.iova:
                    raise
                error = later

    def _map(self, error: NotMapped, protection: Protection, space: int) -> None:
        """Map what was missing; raises the error again where that can't be done, or did not help."""
        try:
            mapper = self._services.mapper()
        except StateError:  # not attached, so nothing is mapped
            raise error from None
        if mapper is None or error.iova >> 64 or not mapper.map(Iova(error.iova), error.length, protection, space):
            raise error
        if self._memory.find(error.iova, space) is None:
            raise error

    def _forget(self, mapping: Mapping) -> None:
        with self._lock:
            if len(self._pins) * PAGE_SIZE > mapping.length:  # a client may have thousands of small maps
                for page in range(mapping.iova, mapping.end, PAGE_SIZE):
                    self._pins.pop((mapping.space, page), None)
                return
            for space, page in list(self._pins):
                if space == mapping.space and mapping.iova <= page < mapping.end:
                    del self._pins[space, page]


def _pages(address: int, pages: int) -> range:
    if address & PAGE_MASK or pages <= 0:
        raise InvalidArgument(f"{pages} pages at {address:#x}: pins are whole pages")
    return range(address, address + pages * PAGE_SIZE, PAGE_SIZE)


def _runs(hosts: Sequence[HostVirt]) -> list[tuple[HostVirt, int]]:
    """(first, number) of pages next to each other."""
    runs: list[tuple[HostVirt, int]] = []
    for host in hosts:
        if runs and runs[-1][0] + runs[-1][1] * PAGE_SIZE == host:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((host, 1))
    return runs
