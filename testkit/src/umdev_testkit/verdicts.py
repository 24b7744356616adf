"""What pytest's verbose output says of each test, however far the run came: a guest that hung has no other record."""

from __future__ import annotations

import re

__all__ = ["VERBOSE", "passed", "unfinished"]

VERBOSE = ("-o", "verbosity_test_cases=1")
"""Makes pytest print a line for each test: its name when it starts, its verdict when it has ended."""

_LINE = re.compile(r"^(\S+::.+?)(?: (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b.*)?$", re.MULTILINE)


def passed(output: str) -> list[str]:
    """Names of the tests that have passed, in order; one whose teardown failed has not."""
    return [name for name, verdict in _verdicts(output).items() if verdict == "PASSED"]


def unfinished(output: str) -> list[str]:
    """Names of the tests that have failed, and of the one that the run did not come back from."""
    return [name for name, verdict in _verdicts(output).items() if verdict in ("FAILED", "ERROR", None)]


def _verdicts(output: str) -> dict[str, str | None]:
    return {match[1].strip(): match[2] for match in _LINE.finditer(output)}
