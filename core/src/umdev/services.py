"""What a service hook returns: bound once per attachment, used without pluggy.

Verbs come in pairs. Every bound service names its `mechanism` (one line for people) and has `close()`, which may be
called twice and never raises. Unless a method says otherwise, any thread may call it and no lock needs to be held.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from .addresses import HostVirt, Iova, RegionOffset

Decline: TypeAlias = Callable[[str], None]
"""A service hook calls `decline(reason)` and returns None when it can't serve; the reason reaches the user."""


class ProtectMode(enum.Enum):
    """What a device model asks of write-protection; the guarantees are in DESIGN section 5."""

    EMULATE = "emulate"
    TRAP = "trap"
    TRACK = "track"


class Protection(enum.Flag):
    """What a DMA map allows the device to do."""

    READ = enum.auto()
    WRITE = enum.auto()


@dataclass(frozen=True, slots=True)
class Area:
    """A part of a region that the driver may map: `offset` and `length` in bytes, both multiples of a page."""

    region: int
    offset: RegionOffset
    length: int


@dataclass(frozen=True, slots=True)
class Doorbell:
    """A register that the driver may ring without a trap: `width` bytes at `offset` of a region.

    `value`: the stores that ring are those of this value; None: all. What KVM calls an ioeventfd.
    """

    region: int
    offset: RegionOffset
    width: int
    value: int | None = None


@dataclass(frozen=True, slots=True)
class PageWrite:
    """A store that a protector reports. `value`, `width` are set in EMULATE mode only."""

    address: Iova
    value: int | None = None
    width: int | None = None


class Service(Protocol):
    """Every bound service."""

    @property
    def mechanism(self) -> str:
        """One line that names how it is done, for `show` and `demo`."""

    def close(self) -> None:
        """Give everything back. May be called twice; never raises."""


class Passthrough(Service, Protocol):
    """Service 1: the driver reaches an area with no exit and no message."""


class Trap(Service, Protocol):
    """Service 2: accesses to a region reach the device model."""


class InterruptSink(Service, Protocol):
    """Service 3: interrupts reach the driver through the device's connected eventfds."""


class MemoryMapper(Service, Protocol):
    """Service 4, for hosts where memory is mapped on demand; push-style buses map before the device asks."""

    def map(self, address: Iova, length: int, protection: Protection, space: int) -> bool:
        """Try to add a map that covers the range to the attachment's address space; False when it can't."""


class PagePinner(Service, Protocol):
    """Service 5: pages stay resident until unpinned. Counted per page."""

    def pin(self, address: HostVirt, pages: int) -> None:
        """Raises: PinLimit."""

    def unpin(self, address: HostVirt, pages: int) -> None:
        """Undo one `pin` of the same pages."""


class PageProtector(Service, Protocol):
    """Service 6: the driver's stores to protected pages are reported."""

    @property
    def mode(self) -> ProtectMode:
        """The guarantee this protector gives."""

    def protect(self, pages: Sequence[Iova], notify: Callable[[PageWrite], None] | None = None) -> None:
        """Arm pages (page-aligned addresses) in one batch. TRAP, EMULATE: `notify` is called with the device lock held.

        After a `notify` that raised the store lands as it was made; with EMULATE, unless another device has taken it.

        Raises: ProtectError, NotMapped.
        """

    def unprotect(self, pages: Sequence[Iova]) -> None:
        """Disarm; pages never armed are ignored."""

    def collect(self) -> Iterable[Iova]:
        """TRACK: the pages stored to since they were last reported, in ascending order; they are armed again."""


class Translator(Service, Protocol):
    """Service 7: from what the device puts on the bus to this process's memory."""

    def translate(self, address: Iova, length: int, protection: Protection, space: int) -> HostVirt:
        """The host address of a range that is contiguous there.

        The pointer is valid until the range is unmapped; the model learns that by `on_unmap`.

        Raises: NotMapped, NotPermitted.
        """
