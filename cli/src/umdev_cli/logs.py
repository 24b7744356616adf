"""What a process that hosts devices logs. A guest decides how often a model fails, so repetition must cost no disk."""

from __future__ import annotations

import itertools
import logging

__all__ = ["Sparing", "configure"]


class Sparing(logging.Filter):
    """For a handler: passes the first 100 records of a kind, and further ones only when their number has doubled.

    Records of a kind have one logger, one text before its arguments are filled in, and one class of exception. The
    attribute `number`, for the format, is empty for the first hundred. Any thread, re-entrant. It takes no lock: a
    finalizer that logs while a record is counted, or a process that was forked meanwhile, would find it taken for ever.
    """

    WHOLE = 100
    KINDS = 1000
    """What comes beyond so many kinds is one of its own: a text without arguments may be different each time.

    Threads at the edge may each add one more.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[object, itertools.count[int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is written."""
        kind: object = (record.name, str(record.msg), record.exc_info[0] if record.exc_info else None)
        if kind not in self._counts and len(self._counts) >= self.KINDS:
            kind = None
        number = next(self._counts.setdefault(kind, itertools.count(1)))
        record.number = "" if number <= self.WHOLE else f"(number {number}; in between is not told) "
        return number <= self.WHOLE or number & (number - 1) == 0


def configure(*, times: bool) -> None:
    """Log to stderr from INFO on, sparingly; `times`: with the time of each record."""
    handler = logging.StreamHandler()
    handler.addFilter(Sparing())
    start = "%(asctime)s " if times else ""
    handler.setFormatter(logging.Formatter(f"{start}%(name)s %(levelname)s %(number)s%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
