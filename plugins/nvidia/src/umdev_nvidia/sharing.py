"""How vGPUs share the engine's time: best effort, equal share, fixed share; one choice for the whole GPU.

Facts: NVIDIA, "Virtual GPU Software User Guide" (changing scheduling behaviour): best effort is the default, slices are
1 to 30 ms long, by default 2 ms where at most 8 vGPUs fit and 1 ms where more do, and frames are limited by best effort
alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from umdev.device import InvalidArgument
from umdev_softgpu import BestEffort, EqualShare, FixedShare, Policy

BEST_EFFORT, EQUAL_SHARE, FIXED_SHARE = "best-effort", "equal-share", "fixed-share"
NAMES = (BEST_EFFORT, EQUAL_SHARE, FIXED_SHARE)
MILLISECOND = 1_000_000
SLICES = range(1, 31)
_MANY = 8


@dataclass(frozen=True, slots=True)
class Sharing:
    """A policy as it is asked for; slice in milliseconds, None: as long as the number of vGPUs suggests."""

    name: str = BEST_EFFORT
    slice_ms: int | None = None

    @classmethod
    def parse(cls, text: str) -> Sharing:
        """`fixed-share` or `fixed-share/3`. Raises: InvalidArgument."""
        name, slash, slice_ = text.partition("/")
        if name not in NAMES:
            raise InvalidArgument(f"scheduler is one of {', '.join(NAMES)}, not {name!r}")
        if not slash:
            return cls(name)
        if not slice_.isascii() or not slice_.isdecimal() or int(slice_) not in SLICES:
            raise InvalidArgument(
                f"scheduler: a slice is {SLICES[0]} to {SLICES[-1]} ms, as in {name}/2, not {slice_!r}"
            )
        return cls(name, int(slice_))

    def policy(self, slots: int) -> Policy:
        """Where `slots` vGPUs fit."""
        slice_ns = (self.slice_ms or (2 if slots <= _MANY else 1)) * MILLISECOND
        if self.name == FIXED_SHARE:
            return FixedShare(slots, slice_ns)
        return EqualShare(slice_ns) if self.name == EQUAL_SHARE else BestEffort(slice_ns)

    @property
    def limits_frames(self) -> bool:
        """Whether the frame-rate limiter counts."""
        return self.name == BEST_EFFORT

    def __str__(self) -> str:
        return self.name if self.slice_ms is None else f"{self.name}/{self.slice_ms}"
