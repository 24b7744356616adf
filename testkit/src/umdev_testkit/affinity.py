"""Which of the host's processors a thread and its children run on."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["one_cpu"]


@contextmanager
def one_cpu(choose: Callable[[set[int]], int] = max) -> Iterator[None]:
    """Keep the calling thread on one CPU of those that it may use, and what it starts meanwhile there for good.

    `choose`: which one; the last takes the fewest interrupts.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {choose(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
