"""Limits on a client: a share of the engine's time, and frames per second."""

from __future__ import annotations

from fractions import Fraction

from umdev.device import InvalidArgument

NANOSECONDS = 1_000_000_000
FOREVER = (1 << 63) - 1
BURST_NS = 10_000_000
"""How far a capped client may run ahead of its share."""


class Cap:
    """At most `share` of the engine's time, exactly, over any time that is long against 10 ms."""

    def __init__(self, share: float) -> None:
        """Raises: InvalidArgument for a share that is not above 0 and at most 1."""
        if not 0 < share <= 1:
            raise InvalidArgument(f"a cap is a share of the engine, above 0 and at most 1, not {share}")
        self.share = share
        self._cost = 1 / Fraction(share).limit_denominator(1_000_000)
        self._paid_until = Fraction(0)  # the time by which what was used is paid for

    @property
    def due_ns(self) -> int:
        """From when on the client may run again."""
        return int(self._paid_until) - BURST_NS

    def charge(self, start_ns: int, used_ns: int) -> None:
        """`used_ns` of the engine were used from `start_ns` on. Time not used is not saved up."""
        self._paid_until = max(self._paid_until, Fraction(start_ns)) + used_ns * self._cost


class FrameLimiter:
    """At most `per_second` frames: after one ends, the next begins when its turn has come. None is saved up."""

    def __init__(self, per_second: float) -> None:
        """Raises: InvalidArgument for a rate that is not above 0."""
        if not per_second > 0:
            raise InvalidArgument(f"a frame rate is above 0, not {per_second}")
        self.per_second = per_second
        self._period = NANOSECONDS / Fraction(per_second).limit_denominator(1_000_000)
        self._next: Fraction | None = None

    @property
    def due_ns(self) -> int:
        """From when on the client may run again; 0 before its first frame."""
        return 0 if self._next is None else int(self._next)

    def frame(self, now_ns: int) -> None:
        """A frame has ended."""
        now = Fraction(now_ns)
        self._next = now + self._period if self._next is None else max(self._next + self._period, now)
