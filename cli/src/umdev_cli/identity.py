"""UUIDs on the command line."""

from __future__ import annotations

import re
import uuid

from umdev.errors import InvalidArgument

__all__ = ["new_uuid", "parse_uuid"]

_CANONICAL = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


def parse_uuid(text: str) -> str:
    """The UUID in lower case. Raises: InvalidArgument for anything but the canonical 8-4-4-4-12 form."""
    if not _CANONICAL.fullmatch(text.lower()):
        raise InvalidArgument(f"{text!r} is no UUID; one looks like 783e6dbb-ea0e-411f-94e2-717eaad438bf")
    return text.lower()


def is_uuid(text: str) -> bool:
    """Whether the text is meant as a UUID."""
    return _CANONICAL.fullmatch(text.lower()) is not None


def new_uuid() -> str:
    """A random UUID."""
    return str(uuid.uuid4())
