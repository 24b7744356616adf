"""Pages that the engines come back to: rings, contexts, status pages. They stay in memory while they are used."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

from umdev.device import PAGE_SIZE, NotMapped, PinLimit, UmdevError
from umdev_softgpu import Fault, Target

if TYPE_CHECKING:
    from umdev.device import DeviceMemory
    from umdev_softgpu import Space

log = logging.getLogger("umdev.intel_gvt")

LIMIT = 512
"""Pages that one vGPU pins; of more the ones used longest ago are given back."""


class PinnedPages:
    """Of one vGPU. Every method is called with the device lock held.

    A pin spares the engine a page fault in the middle of a submission; without one everything works as well, so a host
    that allows none is told once and not asked again.
    """

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._pages: OrderedDict[int, None] = OrderedDict()
        self._refused = False

    def hold(self, space: Space, address: int, length: int) -> None:
        """Pin the pages behind graphics addresses; those that lead nowhere are left out.

        The first that leads to an address without memory is the last looked at: a driver may name hundreds.
        """
        for at in range(address & -PAGE_SIZE, address + length, PAGE_SIZE):
            run = space.translate(at)
            if self._refused or isinstance(run, Fault) or run.target is not Target.SYSTEM:
                continue
            page = run.address & -PAGE_SIZE
            if page in self._pages:
                self._pages.move_to_end(page)
            elif self._pin(page):
                self._pages[page] = None
                if len(self._pages) > LIMIT:
                    self._memory.unpin(self._pages.popitem(last=False)[0])
            else:
                return

    def unmapped(self, first: int, end: int) -> None:
        """Guest memory goes; the core has undone its pins."""
        for page in [page for page in self._pages if first <= page < end]:
            del self._pages[page]

    def clear(self) -> None:
        """A reset."""
        while self._pages:
            self._memory.unpin(self._pages.popitem()[0])

    @property
    def count(self) -> int:
        """Pages that are pinned."""
        return len(self._pages)

    def _pin(self, page: int) -> bool:
        try:
            self._memory.pin(page)
        except NotMapped:  # the driver's mistake, which it may mend
            return False
        except PinLimit as error:
            self._refused = True
            log.warning("pages of the GPU are not pinned: %s", error)
        except UmdevError as error:
            self._refused = True
            log.info("pages of the GPU are not pinned: %s", error)
        else:
            return True
        return False
