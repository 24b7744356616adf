"""Interleaved rounds, medians, verdicts: what all rows share."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from umdev.errors import InvalidArgument

from umdev_testkit.affinity import one_cpu

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["SLACK", "Pair", "Result", "Round", "Row", "measure"]

SLACK = 1.25
"""`--check` fails where a ratio is over this many times its limit: a shared machine is never quiet."""

LEAST_ROUNDS = 7

Round: TypeAlias = Callable[[], Sequence[float]]
"""Runs one round and returns nanoseconds, one number per operation (or per batch, divided by its operations)."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What is measured, and the bare C that does the same work."""

    subject: Round
    floor: Round


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the bench. `target` is the largest ratio that the design allows.

    `reached`: where the target is missed for a reason that docs/explanation/speed gives, the ratio that holds instead.
    `--check` keeps it from growing; the verdict is still `missed`. `note`: what it does for more than a second before
    its first round.
    """

    name: str
    target: float
    prepare: Callable[[], AbstractContextManager[Pair]]
    reached: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What a row came to; times in `unit`."""

    name: str
    median: float
    p99: float
    floor: float
    runs: int
    target: float
    reached: float = 0.0
    unit: str = "ns"

    @property
    def ratio(self) -> float:
        """This over the floor: lower is better."""
        return self.median / self.floor

    @property
    def verdict(self) -> str:
        """`ok`, `missed` (over the target), or `failed` (over target and `reached`, slack included)."""
        if self.ratio <= self.target:
            return "ok"
        return "missed" if self.ratio <= max(self.target, self.reached) * SLACK else "failed"

    def as_json(self) -> dict[str, object]:
        """The object that `--json` prints."""
        return {
            "name": self.name,
            "median": round(self.median, 2),
            "p99": round(self.p99, 2),
            "unit": self.unit,
            "floor": round(self.floor, 2),
            "ratio": round(self.ratio, 3),
            "runs": self.runs,
        }


def measure(row: Row, rounds: int, progress: Callable[[], None] = lambda: None) -> Result:
    """Measure one row; `progress` is called after each of its rounds.

    Raises: InvalidArgument for fewer than 7 rounds; whatever the row's preparation raises.
    """
    if rounds < LEAST_ROUNDS:
        raise InvalidArgument(f"{rounds} rounds are too few for a median: take {LEAST_ROUNDS} or more")
    subjects: list[Sequence[float]] = []
    floors: list[Sequence[float]] = []
    with one_cpu(), row.prepare() as pair:
        pair.floor()
        pair.subject()
        for number in range(rounds):
            turns = [(pair.floor, floors), (pair.subject, subjects)]
            for run, times in turns if number % 2 else reversed(turns):
                times.append(run())
            progress()
    return Result(
        row.name,
        median=statistics.median(statistics.median(times) for times in subjects),
        p99=statistics.median(_p99(times) for times in subjects),
        floor=statistics.median(statistics.median(times) for times in floors),
        runs=rounds,
        target=row.target,
        reached=row.reached,
    )


def _p99(times: Sequence[float]) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
