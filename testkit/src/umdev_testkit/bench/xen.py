"""The Xen row: what an access of a domain costs that a device model in dom0 answers.

It is measured inside the test bed, which this machine boots for it: both domains, both device models and the clock are
there (`xen_rounds`), in one boot.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from umdev.errors import NotSupported

from umdev_testkit.errors import FetchError, GuestFailed

from .measure import Pair

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from umdev_testkit.xen_guest import XenGuest

__all__ = ["ioreq_c"]

_LIFE = 1500.0  # seconds that the bed may live
_ORDERS, _ANSWERS, _LOG, _NUMBER = (f"/run/bench-{name}" for name in ("orders", "answers", "log", "number"))


@contextmanager
def ioreq_c() -> Iterator[Pair]:
    """A 4-byte read of a domain, answered by a C handler in a restricted process."""
    from umdev_testkit.xen_guest import XenGuest

    if find_spec("umdev_xen") is None:
        raise NotSupported("umdev-xen is not installed: pip install umdev-xen")
    with tempfile.TemporaryDirectory(prefix="umdev-bench-") as folder:
        bed = XenGuest(Path(folder), timeout=_LIFE)
        try:
            bed.fetch()
        except FetchError as error:
            raise NotSupported(f"the Xen test bed: {error}") from error
        with bed:
            _start(bed)
            yield Pair(lambda: _round(bed, "subject"), lambda: _round(bed, "floor"))


def _start(bed: XenGuest) -> None:
    bed.guest.run(f"mkfifo {_ORDERS} {_ANSWERS}")
    bed.python("-c", _BACKGROUND, _ORDERS, _ANSWERS, _LOG, _NUMBER)
    if (said := _answer(bed, "the start")) != "ready":
        raise GuestFailed(f"the process of the rounds begins with {said!r}\n{_log(bed)}")


# Leaves the process behind: a command of the bed ends when what it started in the foreground does.
_BACKGROUND = """
import subprocess, sys
with open(sys.argv[3], "w") as log:
    process = subprocess.Popen(
        [sys.executable, "-m", "umdev_testkit.bench.xen_rounds", *sys.argv[1:3]],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
    )
with open(sys.argv[4], "w") as number:
    number.write(str(process.pid))
"""


def _round(bed: XenGuest, side: str) -> Sequence[float]:
    line = _answer(bed, f"a round of the {side}", f"echo {side} >{_ORDERS} &")
    if not line.startswith("["):
        raise GuestFailed(f"a round of the {side}: {line!r}\n{_log(bed)}")
    times: list[float] = json.loads(line)
    return times


def _answer(bed: XenGuest, what: str, order: str = "") -> str:
    """One line from dom0's process, to an order or to its start; it may have died before it could say one."""
    script = f"""
        {order}
        (while kill -0 $(cat {_NUMBER}) 2>/dev/null; do sleep 1; done; echo '"ended"' >{_ANSWERS}) &
        watcher=$!
        line=$(cat {_ANSWERS})  # not `read`: the end of a child interrupts the shell's own open
        kill $watcher
        echo "$line"
    """
    line = bed.guest.run(script).strip()
    if line == '"ended"':
        raise GuestFailed(f"{what}: the process in dom0 has ended\n{_log(bed)}")
    return line


def _log(bed: XenGuest) -> str:
    return bed.guest.run(f"cat {_LOG}")
