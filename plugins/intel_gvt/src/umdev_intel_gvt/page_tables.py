"""The per-process page tables that the driver has announced."""

from __future__ import annotations

from umdev.device import PAGE_SIZE

LIMIT = 4096
"""Roots that one driver may have; more are not noted."""


class PageTables:
    """Bus addresses of top-level tables. The device lock is held for every call.

    Linux's driver reuses pages before it says that a table is gone, so what is noted here decides nothing about what
    memory holds: tables are read when they are used.
    """

    def __init__(self) -> None:
        self.roots: set[int] = set()
        self.refused = 0

    def create(self, root: int) -> None:
        """A table begins."""
        if root % PAGE_SIZE or len(self.roots) >= LIMIT:
            self.refused += 1
            return
        self.roots.add(root)

    def destroy(self, root: int) -> None:
        """A table ends; one that never began is ignored."""
        self.roots.discard(root)
