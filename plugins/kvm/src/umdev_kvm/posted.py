"""Stores that may wait: what a user says of a device's registers when he plugs it in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Posted:
    """Registers whose stores may wait: KVM keeps them in a ring, in order, with no exit.

    They reach their devices before anything else does that any processor or the host does later: at the next exit of
    any processor, doorbell or host access, and when the machine stops.
    """

    region: int
    offset: int
    length: int
