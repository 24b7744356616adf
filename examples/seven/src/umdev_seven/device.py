"""A function whose registers make it use one service at a time, so that a driver can see the effect from its side.

A driver writes `address`, `length` and `argument`, then an `Operation` to `command`, and polls `status` until `busy` is
clear. `result` then holds what the operation gave, or `failed` is set.
"""

from __future__ import annotations

import enum
import logging
from typing import TYPE_CHECKING

from umdev.device import (
    PAGE_SIZE,
    RO,
    Block,
    Device,
    Flag,
    Interrupts,
    Iova,
    MemoryBar,
    PageWrite,
    PciId,
    ProtectMode,
    Register,
    Register64,
    ResetKind,
    ServiceUnavailable,
    State,
    UmdevError,
    Window,
    query,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

log = logging.getLogger("umdev.seven")

WINDOW_SIZE = 64 << 10
VECTORS = 8
TRANSFER_LIMIT = 1 << 20
"""Bytes: a driver could name gigabytes."""
PINS_LIMIT = 256
PROTECTED_LIMIT = 256
HITS_LIMIT = 4096
"""Stores that wait to be collected; older ones are forgotten."""
NO_FAILURE = ""


class Operation(enum.IntEnum):
    """What `command` takes."""

    REVERSE = 1
    """Read `length` bytes at `address` and write them back in reverse order (map)."""
    PIN = 2
    """Pin the pages of the range; `result`: pages pinned by the device altogether."""
    UNPIN = 3
    PROTECT = 4
    """Protect the page of `address` in the strongest mode there is; `result`: 1 TRAP, 2 TRACK."""
    COLLECT = 5
    """`result`: the address of a page stored to since PROTECT, plus 1; 0 for none."""
    UNPROTECT = 6
    TRANSLATE = 7
    """`result`: the host address of the range."""
    INTERRUPT = 8
    """Signal vector `argument`."""


class Status(Register):
    """The state of the last command."""

    busy = Flag(0, RO)
    failed = Flag(1, RO)


class SevenRegisters(Block["Seven"]):
    """BAR 0."""

    ident = Register(0x00, RO, reset=0x7_5E7E_1)
    scratch = Register(0x04)
    status = Status(0x08)
    command = Register(0x0C)
    address = Register64(0x10)
    length = Register(0x18)
    argument = Register(0x1C)
    result = Register64(0x20, RO)

    @scratch.on_write
    def remember(self, value: int) -> None:
        """The trap itself is the service: the model sees each store."""
        self.device.trapped.append(value)
        del self.device.trapped[:-16]

    @command.on_write
    def start(self, value: int) -> None:
        """Deferred, since it may need guest memory that is reached by messages."""
        self.status.failed = False
        if not self.status.busy:  # else the last command that comes is the one
            self.device.after(0, self.run)
        self.status.busy = True

    def run(self) -> None:
        """Carry the command out and report."""
        try:
            self.result.value = self.device.perform(Operation(self.command.value))
        except (UmdevError, ValueError) as error:
            log.warning("%s: %s", self.device, error)
            self.device.failure = str(error)
            self.status.failed = True
        self.status.busy = False


class SevenWindow(Block["Seven"]):
    """BAR 2."""

    window = Window(0, WINDOW_SIZE)


class Seven(Device):
    """The demonstration device."""

    pci = PciId(vendor=0x1234, device=0x5E7E, class_code=0x00FF00)
    interrupts = Interrupts(msi=VECTORS, intx=True)
    registers = MemoryBar(0, SevenRegisters, size=4096, sizes=(4, 8))
    memory_window = MemoryBar(2, SevenWindow, size=WINDOW_SIZE, prefetchable=True)
    trapped: State[list[int]] = State(list)
    pinned: State[list[tuple[int, int]]] = State(list, save=False)
    protected: State[dict[int, ProtectMode]] = State(dict, save=False)
    hits: State[list[int]] = State(list)
    failure = State(lambda: NO_FAILURE)

    def on_reset(self, kind: ResetKind) -> None:
        self._give_back()

    def on_close(self) -> None:
        self.pinned.clear()
        self.protected.clear()

    def perform(self, operation: Operation) -> int:
        """Do one operation on the range that the registers name; returns what `result` shows."""
        at, length = Iova(self.registers.address.value), self.registers.length.value
        page = Iova(at & -PAGE_SIZE)
        self._check(operation, page, length)
        match operation:
            case Operation.REVERSE:
                with self.memory.view(at, length, write=True) as view:
                    view[:] = bytes(view)[::-1]
            case Operation.PIN:
                self.memory.pin(at, length // PAGE_SIZE)
                self.pinned.append((at, length))
                return len(self.pinned)
            case Operation.UNPIN:
                self.pinned.remove((at, length))
                self.memory.unpin(at, length // PAGE_SIZE)
            case Operation.PROTECT:
                return self._protect(page)
            case Operation.COLLECT:
                if self.protected.get(page) is ProtectMode.TRACK:
                    self._note(self.memory.collect())
                return self.hits.pop(0) + 1 if self.hits else 0
            case Operation.UNPROTECT:
                self.memory.unprotect(self.protected.pop(page), [page])
            case Operation.TRANSLATE:
                return self.memory.translate(at, length)
            case Operation.INTERRUPT:
                self.interrupts.signal(self.registers.argument.value)
        return 0

    def _check(self, operation: Operation, page: Iova, length: int) -> None:
        """Raises: ValueError for what does not fit the device's state, or would cost the host too much."""
        if operation is Operation.REVERSE and length > TRANSFER_LIMIT:
            raise ValueError(f"{length} bytes at once: {TRANSFER_LIMIT} is the most")
        if operation is Operation.PIN and len(self.pinned) == PINS_LIMIT:
            raise ValueError(f"{PINS_LIMIT} ranges are pinned: unpin one")
        if operation is Operation.PROTECT and len(self.protected) == PROTECTED_LIMIT and page not in self.protected:
            raise ValueError(f"{PROTECTED_LIMIT} pages are protected: unprotect one")
        if operation is Operation.UNPROTECT and page not in self.protected:
            raise ValueError(f"page {page:#x} is not protected")

    def _protect(self, page: Iova) -> int:
        try:
            self.memory.protect(ProtectMode.TRAP, [page], self._stored)
            self.protected[page] = ProtectMode.TRAP
        except ServiceUnavailable:
            self.memory.protect(ProtectMode.TRACK, [page])
            self.protected[page] = ProtectMode.TRACK
        return 1 if self.protected[page] is ProtectMode.TRAP else 2

    def _stored(self, write: PageWrite) -> None:
        self._note([write.address])

    def _note(self, pages: Iterable[int]) -> None:
        self.hits += pages
        del self.hits[:-HITS_LIMIT]

    def _give_back(self) -> None:
        for at, length in self.pinned:
            self.memory.unpin(at, length // PAGE_SIZE)
        for page, mode in self.protected.items():
            self.memory.unprotect(mode, [Iova(page)])
        self.pinned.clear()
        self.protected.clear()

    @query
    def proof(self) -> dict[str, object]:
        """What the device's side saw: trapped stores, the window's first bytes, the last failure, mechanisms."""
        attachment = self.attachment
        return {
            "trapped": list(self.trapped),
            "window": bytes(self.memory_window.window.view[:64]),
            "failure": self.failure,
            "mechanisms": attachment.services.mechanisms if attachment else {},
        }
