"""From what went wrong to one line and an exit code.

0 ok, 1 failed, 2 usage, 3 not found, 4 not supported here, 5 conflict.
"""

from __future__ import annotations

import enum

from umdev.errors import (
    Conflict,
    InvalidArgument,
    NotFound,
    NotSupported,
    ServiceUnavailable,
    SocketPathError,
    UmdevError,
)

__all__ = ["Exit", "RemoteError", "exit_code", "joined", "line"]


class Exit(enum.IntEnum):
    """Exit codes of every `umdev` command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_SUPPORTED = 4
    CONFLICT = 5


class RemoteError(UmdevError):
    """What a host process answered; it stands for the error of that name there."""

    def __init__(self, name: str, text: str, code: int) -> None:
        super().__init__(text)
        self.name = name
        self.code = code


_CODES: tuple[tuple[type[UmdevError], Exit], ...] = (
    (InvalidArgument, Exit.USAGE),
    (NotFound, Exit.NOT_FOUND),
    (NotSupported, Exit.NOT_SUPPORTED),
    (ServiceUnavailable, Exit.NOT_SUPPORTED),
    (Conflict, Exit.CONFLICT),
)


def exit_code(error: BaseException) -> int:
    """The exit code that stands for an error."""
    if isinstance(error, RemoteError):
        return error.code
    if isinstance(error, SocketPathError):  # in use, or the folder isn't there
        return Exit.NOT_FOUND if isinstance(error.__cause__, FileNotFoundError) else Exit.CONFLICT
    return next((code for kind, code in _CODES if isinstance(error, kind)), Exit.FAILED)


def line(error: BaseException) -> str:
    """The error's name and text in one line."""
    name = error.name if isinstance(error, RemoteError) else type(error).__name__
    if isinstance(error, BaseExceptionGroup):
        text = "; ".join([error.message, *(line(each) for each in error.exceptions)])
    else:
        text = str(error) or "no reason given"
    return f"{name}: {joined(text)}"


def joined(text: str) -> str:
    """A text of several lines in one."""
    parts = [part.strip() for part in text.splitlines() if part.strip()]
    return "; ".join([*(part.rstrip(":") for part in parts[:-1]), *parts[-1:]])
