"""Control messages as lines of the wire log."""

from __future__ import annotations

import dataclasses
import enum
import os

from .protocol import DeviceReset, HeaderFlag, Message, Request
from .protocol.constants import command_name

_BYTES_SHOWN = 32


def _value(value: object) -> str:
    if isinstance(value, enum.Enum):
        return str(value.name or value.value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, bytes):
        return value[:_BYTES_SHOWN].hex() + ("..." if len(value) > _BYTES_SHOWN else "")
    if isinstance(value, int):
        return hex(value) if value > 0xFFFF else str(value)
    if dataclasses.is_dataclass(value):
        return "{" + ",".join(f"{f.name}:{_value(getattr(value, f.name))}" for f in dataclasses.fields(value)) + "}"
    if isinstance(value, tuple):
        return f"({len(value)})"
    return str(value)


def describe(message: Message, request: Request | None, result: str) -> str:
    """`NAME id=1 field=value ... -> result`, one line."""
    parts = [command_name(message.command), f"id={message.id}"]
    if request is None:
        parts.append(f"payload={_value(message.payload)}")
    elif not isinstance(request, DeviceReset):
        parts += [
            f"{field.name}={_value(getattr(request, field.name))}"
            for field in dataclasses.fields(request)
            if field.name not in ("payload", "room")
        ]
    if message.flags & HeaderFlag.NO_REPLY:
        parts.append("no-reply")
    return " ".join(parts) + f" -> {result}"


def refusal(code: int) -> str:
    """An errno for the log."""
    return f"error={code} ({os.strerror(code)})"
