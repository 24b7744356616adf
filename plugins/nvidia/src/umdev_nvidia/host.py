"""The host's own methods, on every subchannel: binding engines, semaphores, interrupts.

Facts: NVIDIA, open-gpu-doc (class cla16f.h, KEPLER_CHANNEL_GPFIFO_B); methods below 0x100 are the host's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import semaphore
from .trouble import Client, HostError, PbdmaError

if TYPE_CHECKING:
    from .execution import Execution

METHODS_END = 0x100
SET_OBJECT, ILLEGAL, NOP = 0x00, 0x04, 0x08
SEMAPHORE_A, SEMAPHORE_B, SEMAPHORE_C, SEMAPHORE_D = 0x10, 0x14, 0x18, 0x1C
NON_STALL_INTERRUPT, FB_FLUSH, MEM_OP_C, MEM_OP_D = 0x20, 0x24, 0x28, 0x2C
SET_REFERENCE, WAIT_FOR_IDLE, CRC_CHECK, YIELD = 0x50, 0x78, 0x7C, 0x80


_ONE_WORD = 1 << 24
_UNSIGNED = 1 << 31
_NOTHING = frozenset((ILLEGAL, NOP, FB_FLUSH, MEM_OP_C, MEM_OP_D, WAIT_FOR_IDLE, CRC_CHECK, YIELD))
"""Commands run one after the other and memory has no cache: these are done before they begin."""


class Host:
    """One channel's semaphore registers and reference counter."""

    def __init__(self) -> None:
        self.semaphore = {SEMAPHORE_A: 0, SEMAPHORE_B: 0, SEMAPHORE_C: 0}
        self.reference = 0

    def execute(self, execution: Execution, method: int, data: int) -> bool:
        """One method; False: it waits for a semaphore, and is to be tried again. Raises: PageFault, HostError."""
        if method in self.semaphore:
            self.semaphore[method] = data
        elif method == SEMAPHORE_D:
            return self._operate(execution, data)
        elif method == NON_STALL_INTERRUPT:
            execution.non_stall_interrupt()
        elif method == SET_REFERENCE:
            self.reference = data
        elif method not in _NOTHING:
            raise HostError(PbdmaError.METHOD, method, data)
        return True

    def _operate(self, execution: Execution, data: int) -> bool:
        address = (self.semaphore[SEMAPHORE_A] & 0xFF) << 32 | self.semaphore[SEMAPHORE_B] & ~3
        payload, space = self.semaphore[SEMAPHORE_C], execution.space
        match data & 0x1F:
            case 2:
                time_ns = None if data & _ONE_WORD else execution.now_ns
                semaphore.store(space, address, payload, Client.HOST, time_ns=time_ns)
            case 1:
                return semaphore.load(space, address, Client.HOST) == payload
            case 4:
                ahead = (semaphore.load(space, address, Client.HOST) - payload) & semaphore.MASK
                return ahead < 1 << 31
            case 8:
                return bool(semaphore.load(space, address, Client.HOST) & payload)
            case 16 if (operation := data >> 27 & 0xF) in semaphore.REDUCTIONS:
                semaphore.reduce(space, address, payload, operation, Client.HOST, signed=not data & _UNSIGNED)
            case _:
                raise HostError(PbdmaError.SEMAPHORE, SEMAPHORE_D, data)
        return True
