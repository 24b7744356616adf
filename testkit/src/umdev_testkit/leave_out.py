"""A pytest plugin that leaves out the tests that a file names, a line each.

`$UMDEV_LEAVE_OUT` names the file; without it all tests run. `HostRootGuest.pytest` loads the plugin in the guest
(`-p umdev_testkit.leave_out`).

pytest's own `--deselect` takes prefixes, so it would leave out `test_read_all` with `test_read`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

__all__ = ["LEAVE_OUT"]

LEAVE_OUT = "UMDEV_LEAVE_OUT"
"""The variable."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Called by pytest."""
    try:
        names = set(Path(os.environ[LEAVE_OUT]).read_text().splitlines())
    except (KeyError, FileNotFoundError):
        return
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in names])
    items[:] = [item for item in items if item.nodeid not in names]
