"""Physical region pages: where a command's data lie in the driver's memory (section 4.3).

A transfer begins in the page of PRP1, at any dword in it. What is left is in the page of PRP2 if that suffices, else
PRP2 points to a list of the other pages. A list may begin inside a page; where the entries do not fit into that page,
the last one there names the page in which the list goes on.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from .commands import CommandError, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENTRY = 8
"""Bytes of a list's entry."""


class Segment(NamedTuple):
    """Bytes that are contiguous in the driver's memory."""

    address: int
    length: int


def segments(prp1: int, prp2: int, length: int, page_size: int, read: Callable[[int, int], bytes]) -> Iterator[Segment]:
    """Where the `length` bytes of a transfer lie, in order; neighbours are joined.

    `read(address, length)` fetches a part of a list: entries that the transfer needs and no byte more. So the work is
    bounded by `length`, whatever the entries say.

    Raises: CommandError (PRP_OFFSET_INVALID), and what `read` raises, when the entry in question is reached.
    """
    joined: Segment | None = None
    for segment in _pages(prp1, prp2, length, page_size, read):
        if joined is not None and joined.address + joined.length == segment.address:
            joined = Segment(joined.address, joined.length + segment.length)
            continue
        if joined is not None:
            yield joined
        joined = segment
    if joined is not None:
        yield joined


def _pages(prp1: int, prp2: int, length: int, page_size: int, read: Callable[[int, int], bytes]) -> Iterator[Segment]:
    if prp1 % 4:
        raise CommandError(Status.PRP_OFFSET_INVALID)
    first = min(length, page_size - prp1 % page_size)
    yield Segment(prp1, first)
    left = length - first
    if not left:
        return  # PRP2 is reserved then
    pages = [prp2] if left <= page_size else _listed(prp2, -(-left // page_size), page_size, read)
    for page in pages:
        if page % page_size:
            raise CommandError(Status.PRP_OFFSET_INVALID)
        part = min(left, page_size)
        yield Segment(page, part)
        left -= part


def _listed(at: int, count: int, page_size: int, read: Callable[[int, int], bytes]) -> Iterator[int]:
    """The `count` entries of the list that begins at `at`."""
    if at % ENTRY:
        raise CommandError(Status.PRP_OFFSET_INVALID)
    while count:
        room = (page_size - at % page_size) // ENTRY
        here = min(count, room)
        entries = list(struct.unpack(f"<{here}Q", read(at, here * ENTRY)))
        if count > room:
            at = entries.pop()
            if at % page_size:
                raise CommandError(Status.PRP_OFFSET_INVALID)
        yield from entries
        count -= len(entries)
