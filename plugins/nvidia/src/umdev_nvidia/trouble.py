"""What ends a channel's work, or a part of it: raised by what executes commands, caught where a channel is run."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from umdev_softgpu import Fault


class Client(enum.IntEnum):
    """Who asked the memory unit: numbers of hub clients (Linux, drivers/gpu/drm/nouveau, nvkm/engine/fifo/gk104.c)."""

    HOST = 0x06
    COPY2 = 0x19


class PageFault(Exception):
    """An access that did not happen: the channel is dead."""

    def __init__(self, fault: Fault, client: Client) -> None:
        super().__init__(f"{client.name}: {fault}")
        self.fault, self.client = fault, client


class PbdmaError(enum.IntFlag):
    """Interrupts of a PBDMA, the unit that fetches and decodes commands (same source)."""

    GPPTR = 1 << 14
    """The put pointer is not in the ring."""
    GPENTRY = 1 << 15
    """An entry of the ring makes no sense."""
    PBENTRY = 1 << 18
    """A header in a push buffer makes no sense: the rest of that buffer is dropped."""
    METHOD = 1 << 21
    """A method that the host does not know."""
    DEVICE = 1 << 23
    """A method that no engine takes."""
    SEMAPHORE = 1 << 25
    """A semaphore operation that makes no sense."""


class HostError(Exception):
    """A command that is passed over, and reported."""

    def __init__(self, error: PbdmaError, method: int = 0, data: int = 0, subchannel: int = 0) -> None:
        super().__init__(f"{error.name} subchannel {subchannel} method {method:#x} data {data:#x}")
        self.error, self.method, self.data, self.subchannel = error, method, data, subchannel


class LaunchError(Exception):
    """A copy that makes no sense: it is passed over, and the copy engine reports it."""
