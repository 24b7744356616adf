"""Semaphores in memory: releases with or without a time, and the reductions that host and copy engine share.

Facts: NVIDIA, open-gpu-doc (classes cla16f.h and clb0b5.h): the numbers of the first eight reductions agree.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from umdev_softgpu import Fault

from .trouble import Client, PageFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from umdev_softgpu import Space

MASK = 0xFFFF_FFFF
_FULL = struct.Struct("<IIQ")


def _signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


REDUCTIONS: dict[int, Callable[[int, int], int]] = {
    0: min,
    1: max,
    2: lambda old, payload: old ^ payload,
    3: lambda old, payload: old & payload,
    4: lambda old, payload: old | payload,
    5: lambda old, payload: old + payload,
    6: lambda old, payload: 0 if old >= payload else old + 1,
    7: lambda old, payload: payload if old == 0 or old > payload else old - 1,
}
"""By number: of what is there and the payload. Floating point is not among them."""


def load(space: Space, address: int, client: Client) -> int:
    """The 32-bit word. Raises: PageFault."""
    value = space.read_u32(address)
    if isinstance(value, Fault):
        raise PageFault(value, client)
    return value


def store(space: Space, address: int, payload: int, client: Client, *, time_ns: int | None = None) -> None:
    """Release it: one word, or with a time four, payload first. Raises: PageFault."""
    data = payload.to_bytes(4, "little") if time_ns is None else _FULL.pack(payload, 0, time_ns)
    fault = space.write(address, data)
    if fault is not None:
        raise PageFault(fault, client)


def reduce(space: Space, address: int, payload: int, operation: int, client: Client, *, signed: bool) -> None:
    """Combine the word with the payload; `operation` is one of REDUCTIONS. Not atomic to the guest's processors.

    Raises: PageFault.
    """
    old = load(space, address, client)
    read = _signed if signed else int
    store(space, address, REDUCTIONS[operation](read(old), read(payload)) & MASK, client)
