"""Stores that cost no exit: what a user says of a device's registers when he plugs it in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Doorbell:
    """A register whose store only says that there is work: KVM signals an eventfd and the guest runs on at once.

    The device gets a write soon afterwards. Stores that come in quick succession may become one. `match`: only this
    value rings, others are ordinary stores; None: every store of `width` bytes rings, and the device sees `value`.
    """

    region: int
    offset: int
    width: int = 4
    match: int | None = None
    value: int = 0


@dataclass(frozen=True, slots=True)
class Posted:
    """Registers whose stores may wait: KVM keeps them in a ring, in order, with no exit.

    They reach their devices before anything else does that any processor or the host does later: at the next exit of
    any processor, doorbell or host access, and when the machine stops.
    """

    region: int
    offset: int
    length: int
