"""Service 6 where nothing can watch stores: TRACK by comparison."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING

from umdev.addresses import PAGE_MASK, PAGE_SIZE, Iova
from umdev.errors import DmaError, InvalidArgument, NotMapped, NotSupported
from umdev.services import ProtectMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Protocol

    from umdev.services import PageWrite

    class Readable(Protocol):
        """The part of an address space that comparing needs."""

        def read(self, iova: int, length: int, space: int = 0, /) -> bytes:
            """Raises: NotMapped, DmaError."""


_GONE = b"not readable"


class ComparisonProtector:
    """A `PageProtector` that gives TRACK on any address space, by message too, and nothing else.

    It keeps a 128-bit BLAKE2 digest per page and reads every watched page at each `collect`: the cost is that of the
    pages that are watched, not of those that change. What it can't see: a store of what was there already, and one that
    was undone before `collect`. What it reports beyond others: the device's own DMA, and stores through any mapping.
    A page that was being stored to while it was read is reported by this `collect` or the next.
    """

    mechanism = "comparison of page digests"
    mode = ProtectMode.TRACK

    def __init__(self, memory: Readable, mode: ProtectMode = ProtectMode.TRACK, space: int = 0) -> None:
        """`memory`: an AddressSpace, or what maps memory before it reads it."""
        if mode is not ProtectMode.TRACK:
            raise NotSupported(f"comparison gives TRACK; {mode.name} needs userfaultfd or a hypervisor")
        self._memory = memory
        self._space = space
        self._digests: dict[Iova, bytes] = {}
        self._lock = threading.Lock()

    def protect(self, pages: Sequence[Iova], notify: Callable[[PageWrite], None] | None = None) -> None:
        """Watch pages from now on; those watched already keep what they were compared with. `notify` is not used.

        Raises: NotMapped and other `DmaError`; then no page is new.
        """
        del notify  # TRACK never calls it
        with self._lock:
            fresh: dict[Iova, bytes] = {}
            for page in pages:
                if page & PAGE_MASK:
                    raise InvalidArgument(f"page address {page:#x} is not a multiple of {PAGE_SIZE}")
                if page not in self._digests:
                    fresh[page] = self._digest(page)
            self._digests.update(fresh)

    def unprotect(self, pages: Sequence[Iova]) -> None:
        """Forget; pages never watched are ignored."""
        with self._lock:
            for page in pages:
                self._digests.pop(page, None)

    def collect(self) -> Iterable[Iova]:
        """Pages whose content differs from the last look, ascending. One that is unmapped counts as changed, once.

        A page that can't be read for another reason (bus mastering is off) keeps what it was compared with.
        """
        changed = []
        with self._lock:
            for page in sorted(self._digests):
                try:
                    digest = self._digest(page)
                except NotMapped:
                    digest = _GONE
                except DmaError:
                    continue
                if digest != self._digests[page]:
                    self._digests[page] = digest
                    changed.append(page)
        return changed

    def close(self) -> None:
        """Forget every page."""
        with self._lock:
            self._digests.clear()

    def _digest(self, page: Iova) -> bytes:
        return hashlib.blake2b(self._memory.read(page, PAGE_SIZE, self._space), digest_size=16).digest()
