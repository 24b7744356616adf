"""What the environment says about plugins.

- `UMDEV_PLUGINS="name=module:object,..."` adds plugins that are not installed. An entry adds a parent unless it names
  its group, as in `buses/name=module:object`. The module may be a file: `name=./model.py:parent`.
- `UMDEV_DISABLE_PLUGINS="glob,..."` hides plugins whose name, `group/name` or distribution matches a glob.
- `UMDEV_TRACE_HOOKS=1` writes every hook call to stderr.

The variables are read on each use, so a test or a long-lived program may change them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fnmatch import fnmatchcase

from umdev.errors import InvalidArgument

PLUGINS = "UMDEV_PLUGINS"
DISABLE = "UMDEV_DISABLE_PLUGINS"
TRACE = "UMDEV_TRACE_HOOKS"


@dataclass(frozen=True, slots=True)
class Added:
    """One entry of UMDEV_PLUGINS. `group` is the last part of the entry-point group: `parents`, `buses`, ..."""

    group: str
    name: str
    target: str


def added() -> list[Added]:
    """The entries of UMDEV_PLUGINS, in order.

    Raises: InvalidArgument when an entry is malformed.
    """
    entries = [entry.strip() for entry in os.environ.get(PLUGINS, "").split(",")]
    return [_parse(entry) for entry in entries if entry]


def disabled(group: str, name: str, distribution: str) -> bool:
    """Whether UMDEV_DISABLE_PLUGINS hides the plugin; `group` as in `Added`."""
    patterns = [pattern.strip() for pattern in os.environ.get(DISABLE, "").split(",")]
    candidates = (name, f"{group}/{name}", distribution)
    return any(fnmatchcase(candidate, pattern) for pattern in patterns if pattern for candidate in candidates)


def tracing() -> bool:
    """Whether hook calls are written to stderr."""
    return os.environ.get(TRACE, "0") not in ("", "0")


def _parse(entry: str) -> Added:
    head, equals, target = entry.partition("=")
    group, slash, name = head.strip().rpartition("/")
    module, colon, attribute = target.strip().rpartition(":")
    if not (equals and name and colon and module and attribute) or (slash and not group):
        raise InvalidArgument(f"{PLUGINS}: {entry!r} is not [GROUP/]NAME=MODULE:OBJECT")
    return Added(group or "parents", name, target.strip())
