"""Service 6 by userfaultfd: stores through the guest's mapping are reported before they land, or remembered.

One `GuestProtector` per guest owns the userfaultfd, registers whole mappings and is shared by all devices; each device
asks through a `UserfaultProtector` of its own, which speaks in bus addresses. Between the two stands a `PageClient`,
which another process's protector can offer as well.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import weakref
from array import array
from typing import TYPE_CHECKING, Any, Protocol

from umdev._native import ffi, lib
from umdev.addresses import PAGE_MASK, PAGE_SIZE, Iova
from umdev.errors import InvalidArgument, NotMapped, NotSupported, ProtectError, ProtectorBusy, StateError
from umdev.services import PageWrite, ProtectMode

from .userfault import Userfault, open_userfault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .address_space import AddressSpace
    from .mapping import Mapping
    from .owner import LockOwner

logger = logging.getLogger("umdev.memory")

_MODES = {ProtectMode.TRAP: lib.UMDEV_PROTECT_TRAP, ProtectMode.TRACK: lib.UMDEV_PROTECT_TRACK}
_open_clients: set[NativeClient] = set()  # the protectors' threads hold plain pointers to their handles
_NOBODY: tuple[PageWrite, None] = (PageWrite(Iova(0)), None)
_new_pages = ffi.new_allocator(should_clear_after_alloc=False)


class Notified(Protocol):
    """Who hears of stores."""

    def notified(self, address: int) -> None:
        """A store to the guest's page (its address there) is about to land; the device lock is held.

        One at a time; stores to pages that other devices watch do not wait for it.
        """


class PageClient(Protocol):
    """One device's pages in the protector of a guest, by their addresses in the guest. Any thread."""

    @property
    def pages(self) -> int:
        """Pages armed (TRAP) or watched (TRACK) now."""

    def arm(self, addresses: Sequence[int]) -> tuple[int, int]:
        """Arm pages, ascending: (0, 0), or (errno, address of the page that failed) with none of them new."""

    def disarm(self, addresses: Sequence[int]) -> None:
        """Disarm; pages never armed are ignored."""

    def collect(self) -> list[int]:
        """TRACK: pages stored to since they were last reported, armed again. Raises: ProtectError."""

    def close(self) -> None:
        """Disarm everything; no notification comes later."""


class Guest(Protocol):
    """A guest whose pages can be protected: `GuestProtector`, or what stands for one of another process."""

    @property
    def mechanism(self) -> str:
        """One line for people."""

    def client(self, mode: ProtectMode, device: LockOwner | None, listener: Notified) -> PageClient:
        """A client for a mode; the listener is told with the device's lock held, if there is a device."""

    def locate(self, file: tuple[int, int], offset: int) -> int | None:
        """Where the guest has mapped the page at `offset` of `file` (device, inode); None: nowhere."""


class GuestProtector:
    """Owns the write-protection of one guest's mappings. Any thread of the process.

    In a child that the process forks the guest is gone: nothing can be armed (`ProtectError`), and to close what the
    parent has open leaves the parent's pages armed.

    The guest is this process; another one (a VMM) hands over its userfaultfd by `opener`, which is called with
    `asynchronous=True` for TRACK alone and with False for TRAP, and its pagemap's path.
    """

    def __init__(self, opener: Callable[[bool], Userfault] | None = None, pagemap: str = "/proc/self/pagemap") -> None:
        self._open = opener or _open_own
        self._pagemap = pagemap
        self._ranges: list[tuple[tuple[int, int], int, int, int]] = []  # file, offset, address, length
        self._lock = threading.Lock()
        self._native: Any = None
        self._finalizer: Any = None
        self._closed = False
        self.mechanism = "userfaultfd (not opened yet)"

    def add_memory(self, file: tuple[int, int], offset: int, address: int, length: int) -> None:
        """Register a whole guest mapping (VMA) of `file` (device, inode) from `offset` on, at `address` in the guest.

        Raises: ProtectorBusy, ProtectError.
        """
        with self._lock:
            if self._native is not None:
                check(lib.umdev_protector_register(self._native, address, length), address)
            self._ranges.append((file, offset, address, length))

    def remove_memory(self, address: int) -> None:
        """The guest's mapping at `address` is gone, or about to go; pages in it are forgotten."""
        with self._lock:
            self._ranges = [known for known in self._ranges if known[2] != address]
            if self._native is not None:
                lib.umdev_protector_unregister(self._native, address)

    @property
    def faults(self) -> int:
        """Stores that were stopped so far (asynchronous ones aren't)."""
        with self._lock:
            return 0 if self._native is None else int(lib.umdev_protector_faults(self._native))

    def close(self) -> None:
        """Release every page and every blocked store. May be called twice."""
        with self._lock:
            self._closed = True
            finalizer, self._finalizer = self._finalizer, None
            self._native = None  # it is gone when the last client is
        if finalizer is not None:
            finalizer()

    # For UserfaultProtector.

    def client(self, mode: ProtectMode, device: LockOwner | None, listener: Notified) -> NativeClient:
        """A client of a mode.

        Raises: as `native_client`.
        """
        return NativeClient(self, mode, device, listener)

    def native_client(self, mode: ProtectMode, device: Any, notify: Any, context: Any) -> Any:
        """A `umdev_protect_client *` of a mode, to be freed by the caller; C plugins may pass their own
        `umdev_page_notify`.

        The userfaultfd is opened by the first client, and opened anew when TRAP is asked for after TRACK.

        Raises: NotSupported, ProtectorBusy, ProtectError, StateError (closed).
        """
        with self._lock:
            if self._closed:
                raise StateError("the guest's protector is closed")
            if self._native is None:
                self._start(mode)
            elif mode is ProtectMode.TRAP and lib.umdev_protector_asynchronous(self._native):
                userfault = self._open(False)
                check(lib.umdev_protector_upgrade(self._native, userfault.descriptor), 0)
                self.mechanism = _mechanism(userfault)
            client = lib.umdev_protect_client_new(self._native, _MODES[mode], device, notify, context)
            if client == ffi.NULL:
                raise MemoryError
            return client

    def locate(self, file: tuple[int, int], offset: int) -> int | None:
        """Where the guest has mapped the page at `offset` of `file`."""
        for known, start, address, length in self._ranges:
            if known == file and start <= offset < start + length:
                return address + offset - start
        return None

    def _start(self, mode: ProtectMode) -> None:
        reason = ""
        pagemap = -1
        if mode is ProtectMode.TRACK:
            # Trapping with release at once gives the same guarantee; it costs a switch of threads for each first store.
            try:
                pagemap = os.open(self._pagemap, os.O_RDONLY | os.O_CLOEXEC)
                userfault = self._open(True)
            except BaseException as error:
                if pagemap >= 0:
                    os.close(pagemap)
                    pagemap = -1
                if not isinstance(error, (NotSupported, OSError)):
                    raise
                reason = f"; trapped and released at once: {error}"
        if pagemap < 0:
            userfault = self._open(False)
        native = lib.umdev_protector_new(userfault.descriptor, pagemap, userfault.asynchronous)
        if native == ffi.NULL:
            raise ProtectError(f"the protector can't start: {os.strerror(ffi.errno)}")
        self._native = native
        self._finalizer = weakref.finalize(self, lib.umdev_protector_free, native)
        try:
            for _, _, address, length in self._ranges:
                check(lib.umdev_protector_register(native, address, length), address)
        except ProtectError:
            self._native = None
            self._finalizer()
            raise
        self.mechanism = _mechanism(userfault) + reason


class NativeClient:
    """A `PageClient` of this process's own protector."""

    def __init__(
        self,
        guest: GuestProtector,
        mode: ProtectMode,
        device: LockOwner | None,
        listener: Notified | None,
        *,
        notify: tuple[int, int] | None = None,
    ) -> None:
        """The listener hears of stores, or `notify` does: the addresses of a `umdev_page_notify` and of its context.

        Raises: NotSupported, ProtectorBusy, ProtectError, StateError (closed).
        """
        function, context = lib.umdev_protect_notify, ffi.NULL
        if notify is None:
            self._handle = context = ffi.new_handle(listener)
        else:
            function, context = ffi.cast("umdev_page_notify", notify[0]), ffi.cast("void *", notify[1])
        pointer = guest.native_client(mode, ffi.NULL if device is None else device.pointer, function, context)
        # Freed when the last thread that is in a call has left it, closed before.
        self._client: Any = ffi.gc(pointer, lib.umdev_protect_client_free)
        self._owner = device  # its C object outlives the client
        _open_clients.add(self)

    @property
    def pages(self) -> int:
        """Pages armed (TRAP) or watched (TRACK) now."""
        return int(lib.umdev_protect_client_pages(self._client))

    def arm(self, addresses: Sequence[int]) -> tuple[int, int]:
        """See `PageClient`."""
        failed = ffi.new("uint64_t *")
        code = -lib.umdev_protect_client_arm(self._client, _as_pages(addresses), len(addresses), failed)
        return code, failed[0]

    def disarm(self, addresses: Sequence[int]) -> None:
        """See `PageClient`."""
        lib.umdev_protect_client_disarm(self._client, _as_pages(addresses), len(addresses))

    def collect(self) -> list[int]:
        """See `PageClient`."""
        capacity = self.pages
        pages = _new_pages("uint64_t[]", capacity)
        count = lib.umdev_protect_client_collect(self._client, pages, capacity)
        check(count, 0)
        addresses: list[int] = ffi.unpack(pages, count)
        return addresses

    def close(self) -> None:
        """See `PageClient`. Once only."""
        lib.umdev_protect_client_close(self._client)
        _open_clients.discard(self)


class UserfaultProtector:
    """A `PageProtector` for one device and one mode (TRAP or TRACK) on a guest that a `GuestProtector` serves.

    TRAP: `notify` is called by a thread of the guest's protector with the device lock held, before the store lands,
    once for each time that the page was armed; after it the page is writable until it is armed again, which the
    notification itself can't do (`StateError`): defer it, then read the page. Notifications come one at a time; stores
    to pages that are not armed here do not wait for them. TRACK: see `collect`.
    Stores through the guest's mapping are covered, and pages that it gives back by madvise(2) count as changed: not the
    device's own DMA, nor other mappings of the same memory, nor holes punched into the file alone.
    """

    def __init__(self, guest: Guest, memory: AddressSpace, mode: ProtectMode, native: LockOwner | None = None) -> None:
        if mode not in _MODES:
            raise NotSupported(f"userfaultfd gives TRAP and TRACK; {mode.name} shows no value of a store")
        self._guest = guest
        self._memory = memory
        self._mode = mode
        # By guest address. The report is made here, not while a store waits.
        self._armed: dict[int, tuple[PageWrite, Callable[[PageWrite], None] | None]] = {}
        self._gone: set[Iova] = set()
        self._lock = threading.Lock()  # of _armed and _gone; a leaf
        self._client: PageClient | None = guest.client(mode, native, self)
        self._cancel = memory.on_unmap(self._unmapped, late=True)

    @property
    def mechanism(self) -> str:
        """One line for people."""
        return f"{self._guest.mechanism}: {self._mode.name}"

    @property
    def mode(self) -> ProtectMode:
        """TRAP or TRACK."""
        return self._mode

    @property
    def pages(self) -> int:
        """Pages armed (TRAP) or watched (TRACK) now."""
        client = self._client
        return 0 if client is None else client.pages

    def protect(self, pages: Sequence[Iova], notify: Callable[[PageWrite], None] | None = None) -> None:
        """Arm pages in one batch; those armed already stay so, with the new `notify`. After an error none is new.

        Raises: NotMapped (not in a map with a descriptor, or in no guest mapping), StateError, ProtectError.
        """
        if self._mode is ProtectMode.TRAP and notify is None:
            raise InvalidArgument("TRAP needs a function to notify")
        if not pages:
            return
        found = {self._locate(page): page for page in pages}
        with self._lock:
            before = {address: self._armed.get(address) for address in found}
            self._armed.update((address, (PageWrite(page), notify)) for address, page in found.items())
        code, failed = self._opened().arm(sorted(found))
        if code:
            with self._lock:
                for address, known in before.items():
                    if known is None:
                        self._armed.pop(address, None)
                    else:
                        self._armed[address] = known
            page = found.get(failed, Iova(0))
            if code == errno.EBUSY:
                raise StateError(f"page {page:#x} is being notified: the store must land before it can be armed again")
            check(-code, page)

    def unprotect(self, pages: Sequence[Iova]) -> None:
        """Disarm; pages never armed are ignored."""
        wanted = set(pages)
        with self._lock:
            addresses = sorted(address for address, (write, _) in self._armed.items() if write.address in wanted)
            for address in addresses:
                del self._armed[address]
            self._gone -= wanted
        self._disarm(addresses)

    def collect(self) -> Iterable[Iova]:
        """TRACK: pages stored to since they were last reported, ascending; they are armed again, so read them now.

        A store that completed before the call is in it, or was in an earlier one; a concurrent one is in this or the
        next. A page whose map has gone is reported once, and forgotten.

        Raises: StateError (a TRAP protector, or closed), ProtectError.
        """
        if self._mode is not ProtectMode.TRACK:
            raise StateError("collect is for TRACK; this protector traps")
        addresses = self._opened().collect()
        with self._lock:
            changed, self._gone = self._gone, set()
            # A page that was unmapped meanwhile is in _gone already, or will be.
            found = (self._armed.get(address) for address in addresses)
            changed.update(known[0].address for known in found if known)
        return sorted(changed)

    def close(self) -> None:
        """Disarm everything; no notification comes later. May be called twice."""
        with self._lock:
            client, self._client = self._client, None
            self._armed.clear()
        if client is not None:
            self._cancel()
            client.close()

    def notified(self, address: int) -> None:
        """See `Notified`."""
        # One lookup needs no lock. The entry stays: another thread may be arming the page again right now.
        write, notify = self._armed.get(address, _NOBODY)
        if notify is not None:
            notify(write)

    def _opened(self) -> PageClient:
        client = self._client
        if client is None:
            raise StateError("the protector is closed")
        return client

    def _locate(self, page: Iova) -> int:
        if page & PAGE_MASK:
            raise InvalidArgument(f"page address {page:#x} is not a multiple of {PAGE_SIZE}")
        mapping = self._memory.find(page)
        if mapping is None:
            raise NotMapped(f"page {page:#x} is in no map", page, PAGE_SIZE)
        if mapping.file is None:
            raise NotMapped(f"page {page:#x} is reachable by message only, so nothing can protect it", page, PAGE_SIZE)
        address = self._guest.locate(mapping.file, mapping.file_offset + page - mapping.iova)
        if address is None:
            raise NotMapped(f"page {page:#x} is in no mapping of the guest that is known here", page, PAGE_SIZE)
        return address

    def _unmapped(self, mapping: Mapping) -> None:
        if mapping.space:
            return  # protection is asked for in space 0
        with self._lock:
            pages = {address: write.address for address, (write, _) in self._armed.items()}
            gone = {address: page for address, page in pages.items() if mapping.iova <= page < mapping.end}
            for address in gone:
                del self._armed[address]
            if self._mode is ProtectMode.TRACK:
                self._gone.update(gone.values())
        self._disarm(sorted(gone))

    def _disarm(self, addresses: list[int]) -> None:
        client = self._client
        if addresses and client is not None:
            client.disarm(addresses)


def _as_pages(addresses: Sequence[int]) -> Any:
    """A `uint64_t[]`; an array of such numbers is one as it is."""
    if isinstance(addresses, array) and addresses.typecode == "Q":
        return ffi.from_buffer("uint64_t[]", addresses)
    return ffi.new("uint64_t[]", addresses)


@ffi.def_extern(name="umdev_protect_notify")  # type: ignore[untyped-decorator]  # cffi's handles are untyped
def _notify(context: Any, address: int) -> None:
    try:
        ffi.from_handle(context).notified(address)
    except Exception:  # the store lands whatever a model does
        logger.exception("the notification of a page write failed")


def _open_own(asynchronous: bool) -> Userfault:
    return open_userfault(asynchronous=asynchronous, user_only=True)


def _mechanism(userfault: Userfault) -> str:
    kind = "asynchronous, PAGEMAP_SCAN; " if userfault.asynchronous else ""
    return f"userfaultfd write-protection ({kind}{userfault.how})"


def check(result: int, page: int) -> None:
    """Raise what a negative errno of the protector means. Raises: ProtectorBusy, NotMapped, ProtectError."""
    if result >= 0:
        return
    code = -result
    if code == errno.EBUSY:
        raise ProtectorBusy(
            "another userfaultfd owns the guest's memory: QEMU's post-copy migration or background snapshot, "
            "or a second protector"
        )
    if code == errno.EFAULT:
        raise NotMapped(f"page {page:#x} is in no guest mapping", page, PAGE_SIZE)
    text = {
        errno.ESRCH: "the guest is gone, or belongs to the process that forked this one",
        errno.ENOSPC: f"a guest has {lib.UMDEV_PROTECT_RANGES_MAX} mappings at most",
        errno.EAGAIN: "for seconds the guest gave memory back without a pause, and the kernel arms nothing meanwhile",
        errno.EOPNOTSUPP: "the kernel can't write-protect this kind of memory",
        errno.EINVAL: f"the kernel can't write-protect page {page:#x} (huge pages are protected as a whole only)",
    }.get(code, os.strerror(code))
    error = ProtectError(f"the guest's pages can't be protected: {text}")
    error.errno = code
    raise error
