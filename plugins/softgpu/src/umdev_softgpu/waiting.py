"""Steps that wait for a client to answer a message: others use the engine meanwhile."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._native import ffi, lib

if TYPE_CHECKING:
    from .budget import Budget
    from .client import Queue
    from .scheduler import Scheduler


@dataclass(eq=False, slots=True)
class Running:
    """A step under way."""

    scheduler: Scheduler
    queue: Queue
    budget: Budget
    began: int
    """When it got the engine, for the last time so far; nanoseconds of the scheduler's clock."""


class _Own(threading.local):
    step: Running | None = None


own = _Own()
"""The step that this thread is in."""


@ffi.def_extern(name="softgpu_wait_begins")  # type: ignore[untyped-decorator]  # cffi is untyped
def _begins() -> None:
    if own.step is not None:
        own.step.scheduler.leave(own.step)


@ffi.def_extern(name="softgpu_wait_ends")  # type: ignore[untyped-decorator]  # cffi is untyped
def _ends() -> None:
    if own.step is not None:
        own.step.scheduler.come_back(own.step)


lib.softgpu_on_wait(lib.softgpu_wait_begins, lib.softgpu_wait_ends)
