"""UMDEV_TRACE_HOOKS=1: every hook call on stderr, with who was asked, what came back and how long it took."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_calls = threading.local()


def before(hook: str, implementations: Sequence[Any], arguments: Mapping[str, Any]) -> None:
    """Called by pluggy ahead of each hook call."""
    started = _started()
    if implementations:
        plugins = ", ".join(implementation.plugin_name for implementation in reversed(implementations))
        given = ", ".join(f"{name}={value!r:.60}" for name, value in arguments.items() if name != "decline")
        _write(len(started), f"{hook}({given}) asks {plugins}")
    started.append(time.perf_counter_ns())


def after(outcome: Any, hook: str, implementations: Sequence[Any], _arguments: Mapping[str, Any]) -> None:
    """Called by pluggy behind each hook call, also behind one that raised."""
    started = _started()
    took = (time.perf_counter_ns() - started.pop()) / 1000
    if implementations:
        said = (
            f"raised {outcome.exception!r}" if outcome.exception is not None else f"gave {outcome.get_result()!r:.60}"
        )
        _write(len(started), f"{hook} {said} after {took:.1f} us")


def _started() -> list[int]:
    if not hasattr(_calls, "started"):
        _calls.started = []
    started: list[int] = _calls.started
    return started


def _write(depth: int, text: str) -> None:
    sys.stderr.write(f"umdev: {'  ' * depth}{text}\n")
