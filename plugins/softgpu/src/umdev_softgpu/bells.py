"""How C gives work to the scheduler, and how the scheduler's thread sleeps: without the interpreter."""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any

from ._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable


class Bell:
    """C rings it (`softgpu_api.bell_ring`); the scheduler's thread calls `answer`. See `Queue.bell`."""

    __slots__ = ("__weakref__", "_native", "answer")

    def __init__(self, native: Any, answer: Callable[[], None]) -> None:
        """For `Bells.add`."""
        self._native = native
        self.answer = answer

    @property
    def pointer(self) -> int:
        """The `softgpu_bell *` (softgpu.h), valid as long as this object."""
        return int(ffi.cast("uintptr_t", self._native))

    def ring(self) -> None:
        """What C does. Any thread, whatever lock it holds."""
        lib.softgpu_bell_ring(self._native)


class Bells:
    """All bells of a scheduler. Any thread may call any method; `wait` is for one thread at a time."""

    def __init__(self) -> None:
        native = lib.softgpu_bells_new()
        if native == ffi.NULL:
            raise MemoryError("no memory for a scheduler's bells")
        self._native: Any = ffi.gc(native, lib.softgpu_bells_free)
        self._numbers = itertools.count(1)
        self._bells: weakref.WeakValueDictionary[int, Bell] = weakref.WeakValueDictionary()

    def add(self, answer: Callable[[], None]) -> Bell:
        """A bell, which is its owner's to keep."""
        number = next(self._numbers)
        native = lib.softgpu_bell_new(self._native, number)
        if native == ffi.NULL:
            raise MemoryError("no memory for a bell")
        bell = self._bells[number] = Bell(ffi.gc(native, lib.softgpu_bell_free), answer)
        return bell

    def __len__(self) -> int:
        """How many bells have an owner."""
        return len(self._bells)

    @property
    def rung(self) -> bool:
        """One has rung that was not taken."""
        return bool(lib.softgpu_bells_rung(self._native))

    def take(self) -> list[Bell]:
        """Those that have rung, in the order of their ringing; each may ring again from now on."""
        found = []
        for _ in range(len(self._bells)):  # as many as there are, not as often as they ring
            number = lib.softgpu_bells_take(self._native)
            if not number:
                break
            if (bell := self._bells.get(number)) is not None:
                found.append(bell)
        return found

    def wake(self) -> None:
        """End the wait under way, or else the next one."""
        lib.softgpu_bells_wake(self._native)

    def wait(self, ns: int) -> None:
        """Until a bell has rung, somebody wakes, or so much time has passed."""
        lib.softgpu_bells_wait(self._native, max(0, ns))
