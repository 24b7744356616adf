"""What plugins contribute to `umdev doctor`."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was looked at on this host.

    A bus or hypervisor plugin object may have a method `doctor()` that yields rows; it must not change the host, and a
    row says what is missing instead of raising.
    """

    service: str
    """`passthrough trap interrupt map pin protect translate`, or `host` for what concerns several."""
    check: str
    """What was looked at, in a word or two: `/dev/kvm`."""
    ok: bool | None
    """None: missing, and umdev does without it."""
    text: str
    """What was found."""
    remedy: str = ""
    """What the user can do, as a command where there is one."""
