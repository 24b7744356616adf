"""`umdev bench`: every number beside its bare-C floor, measured in the same run.

A row runs its subject and its floor in turns, so that whatever disturbs the machine disturbs both. A round's number is
the median over its operations, a row's number the median over its rounds; the ratio of the two is what has a target.
"""

from .measure import Pair, Result, Row, measure
from .rows import ROWS, select

__all__ = ["ROWS", "Pair", "Result", "Row", "measure", "select"]
