"""What running commands comes to."""

from __future__ import annotations

import enum


class Outcome(enum.Enum):
    """Of a turn, and of one command where it is not simply done (None)."""

    DONE = enum.auto()
    """The ring is empty."""
    MORE = enum.auto()
    """The budget is spent."""
    BLOCKED = enum.auto()
    """A semaphore is not signalled: try again later."""
    FAILED = enum.auto()
    """An error, which stops the engine."""
