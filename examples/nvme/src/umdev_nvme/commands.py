"""What goes through the queues: submission and completion entries, and the status of a command."""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple, Self

ENTRY_SIZE = 64
"""Bytes of a submission queue entry (section 4.2, CC.IOSQES = 6)."""
COMPLETION_SIZE = 16
"""Bytes of a completion queue entry (section 4.6, CC.IOCQES = 4)."""
DO_NOT_RETRY = 1 << 14
_ENTRY = struct.Struct("<BBHI16xQQ6I")  # section 4.2: opcode, flags, CID, NSID, (MPTR,) PRP1, PRP2, CDW10 to 15


class Status(enum.IntEnum):
    """Status code type (bits 10:8) and status code (bits 7:0) of section 4.6.1."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    DATA_TRANSFER_ERROR = 0x004
    INTERNAL_ERROR = 0x006
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    PRP_OFFSET_INVALID = 0x013
    LBA_OUT_OF_RANGE = 0x080
    COMPLETION_QUEUE_INVALID = 0x100
    INVALID_QUEUE_IDENTIFIER = 0x101
    INVALID_QUEUE_SIZE = 0x102
    ASYNC_EVENT_LIMIT_EXCEEDED = 0x105
    INVALID_INTERRUPT_VECTOR = 0x108
    INVALID_LOG_PAGE = 0x109
    INVALID_QUEUE_DELETION = 0x10C
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_CHANGEABLE = 0x10E
    WRITE_FAULT = 0x280
    UNRECOVERED_READ_ERROR = 0x281

    @property
    def field(self) -> int:
        """As it stands in a completion entry (section 4.6.1). Only what the medium refused is worth another try."""
        return self | (DO_NOT_RETRY if 0 < self < Status.WRITE_FAULT else 0)


class CommandError(Exception):
    """The command ends with this status."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


class Command(NamedTuple):
    """A submission queue entry (section 4.2). `prp1` and `prp2` are addresses in the driver's memory."""

    opcode: int
    flags: int
    """FUSE in bits 1:0, PSDT in bits 7:6: neither fused operations nor SGLs are offered, so both are 0."""
    id: int
    namespace: int
    prp1: int
    prp2: int
    cdw10: int
    cdw11: int
    cdw12: int
    cdw13: int
    cdw14: int
    cdw15: int

    @classmethod
    def parse(cls, entry: bytes) -> Self:
        """From the 64 bytes of an entry; every one of them means something."""
        return cls._make(_ENTRY.unpack(entry))
