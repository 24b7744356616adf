"""The four engines of a Kaby Lake GT2: where each has its registers, its interrupt bits and its reset bit.

Facts: Intel Graphics PRM, Kaby Lake, volume 2c (registers); Linux, drivers/gpu/drm/i915, which drives them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine. `interrupt_block` is the number of its GT interrupt block, `shift` its half of that block's bits."""

    name: str
    base: int
    interrupt_block: int
    shift: int
    reset_bit: int
    context_pages: int


ENGINES = (
    EngineSpec("render", 0x02000, 0, 0, 1, 22),
    EngineSpec("blitter", 0x22000, 0, 16, 3, 2),
    EngineSpec("video", 0x12000, 1, 0, 2, 2),
    EngineSpec("enhance", 0x1A000, 3, 0, 4, 2),
)
"""i915 calls them rcs0, bcs0, vcs0 and vecs0."""

TIMESTAMP_HZ = 12_000_000
"""What the command streamers' timestamps count: a 24 MHz crystal, shifted down once (CTC_MODE says so)."""
