"""Options that a bus brings to the command line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServeOption:
    """One option of `umdev serve` and `umdev start` that only one bus has.

    A bus object may have an attribute `serve_options`, a sequence of these; `serve` gets those that the user gave as
    keyword arguments: text, or True for a flag. Dashes in the name are underscores there.
    """

    name: str
    """Without the leading dashes: `domain`."""
    help: str
    flag: bool = False
    """It takes no value."""
    required: bool = False
