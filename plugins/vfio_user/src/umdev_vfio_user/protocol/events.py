"""What a message means: one dataclass per request, and `Reply`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from .constants import Command, DmaMapFlag, HeaderFlag, IrqAction, IrqData

if TYPE_CHECKING:
    from .version import Capabilities


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message as it came: the header's fields, payload and descriptors.

    Whoever takes it closes the descriptors that it does not keep.
    """

    id: int
    command: int
    flags: int
    error: int = 0
    payload: bytes = b""
    descriptors: tuple[int, ...] = ()

    @property
    def wants_reply(self) -> bool:
        """False for a posted command: answering it breaks the client."""
        return not self.flags & HeaderFlag.NO_REPLY


@dataclass(frozen=True, slots=True)
class Version:
    """The first message of a client, or the server's answer."""

    major: int
    minor: int
    capabilities: Capabilities


@dataclass(frozen=True, slots=True)
class DmaMap:
    """`descriptor` None: the memory is reached by DMA_READ and DMA_WRITE only."""

    address: int
    size: int
    offset: int
    flags: DmaMapFlag
    descriptor: int | None


@dataclass(frozen=True, slots=True)
class DmaUnmap:
    """`all_maps`: address and size are zero, every map goes. `payload` is what the reply echoes."""

    address: int
    size: int
    all_maps: bool
    payload: bytes


@dataclass(frozen=True, slots=True)
class GetDeviceInfo:
    """`room` is how many bytes of reply payload the client takes."""

    room: int


@dataclass(frozen=True, slots=True)
class GetRegionInfo:
    """As above, for one region."""

    index: int
    room: int


@dataclass(frozen=True, slots=True)
class GetRegionIoFds:
    """As above, for the descriptors of one region."""

    index: int
    room: int


@dataclass(frozen=True, slots=True)
class GetIrqInfo:
    """As above, for one interrupt type."""

    index: int
    room: int


@dataclass(frozen=True, slots=True)
class SetIrqs:
    """`chosen[i]` says whether the action is meant for vector `start + i` (DATA_BOOL); all are otherwise.

    `descriptors` holds one eventfd per vector, or none, which takes the connected ones away.
    """

    index: int
    start: int
    count: int
    data: IrqData
    action: IrqAction
    chosen: tuple[bool, ...] = ()
    descriptors: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RegionRead:
    """`count` bytes at `offset` of region `region`."""

    region: int
    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class RegionWrite:
    """Bytes for `offset` of region `region`."""

    region: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class RegionWriteMulti:
    """Writes of at most eight bytes each, in order."""

    writes: tuple[RegionWrite, ...]


@dataclass(frozen=True, slots=True)
class DmaRead:
    """The server wants `count` bytes of the client's memory."""

    address: int
    count: int


@dataclass(frozen=True, slots=True)
class DmaWrite:
    """The server stores to the client's memory."""

    address: int
    data: bytes


@dataclass(frozen=True, slots=True)
class DeviceReset:
    """No payload either way."""


@dataclass(frozen=True, slots=True)
class DeviceFeature:
    """Get, set or probe a feature: migration and dirty logging."""

    feature: int
    flags: int
    data: bytes


Request: TypeAlias = (
    Version
    | DmaMap
    | DmaUnmap
    | GetDeviceInfo
    | GetRegionInfo
    | GetRegionIoFds
    | GetIrqInfo
    | SetIrqs
    | RegionRead
    | RegionWrite
    | RegionWriteMulti
    | DmaRead
    | DmaWrite
    | DeviceReset
    | DeviceFeature
)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to a request of ours; `error` is an errno or 0. The taker closes `descriptors`."""

    id: int
    command: Command
    error: int
    payload: bytes
    descriptors: tuple[int, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Event:
    """A request of the peer with the message that carried it, for the answer. `refused` is the errno to answer."""

    message: Message
    request: Request | None
    refused: int = 0
