"""Stores that may wait: what a user says of a device's registers when he plugs it in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Posted:
    """Registers whose stores may wait: KVM keeps them in a ring, in order, with no exit.

    They reach their devices before anything else does that any processor or the host does later: at the next exit of
    any processor, doorbell or host access, and when the machine stops. So a device that keeps its lock while such a
    store waits for it delays the others, too. No part of an MSI-X table can be posted: a store there changes routes.
    """

    region: int
    offset: int
    length: int
