"""Asynchronous events and the error log (sections 5.2 and 5.14.1.1)."""

from __future__ import annotations

import enum
import struct

ERROR_STATUS = 0
"""The type of the only events that this controller has (section 5.2)."""
ERROR_LOG = 0x01
REQUESTS = 4
"""Asynchronous Event Requests that may wait (AERL + 1)."""
LOG_ENTRIES = 16
"""Entries of the error log (ELPE + 1), the newest first."""
NO_COMMAND = 0xFFFF


class ErrorEvent(enum.IntEnum):
    """Information on an event of type error status (section 5.2)."""

    INVALID_DOORBELL = 0x00
    INVALID_DOORBELL_VALUE = 0x01

    @property
    def result(self) -> int:
        """Dword 0 of the request's completion (section 5.2.1)."""
        return ERROR_STATUS | self << 8 | ERROR_LOG << 16


def error_entry(count: int, queue: int, command: int, status: int, lba: int, namespace: int) -> bytes:
    """An entry of the error log (section 5.14.1.1); the parameter's place in the command is not told."""
    return struct.pack("<QHHHHQI36x", count, queue, command, status << 1, NO_COMMAND, lba, namespace)
